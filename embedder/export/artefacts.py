"""Writes an artefact: its files and ``encoder.json``, or nothing if a step fails."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from embedder.encoding.artefact import (
    MANIFEST_NAME,
    EncoderArtefact,
    MixArtefact,
    load_any_artefact,
    load_artefact,
    pattern_image,
)
from embedder.encoding.manifest import (
    Colour,
    EncoderManifest,
    FileEntry,
    Files,
    InputSpec,
    Measured,
    Name,
    OutputSpec,
    Pattern,
    Precision,
    Preprocessing,
    Source,
    Text,
    TextSpec,
    compute_fingerprint,
)
from shoal.errors import ExportRefused
from shoal.files import put_in_place

MIN_SELF_TEST_COSINE: Final = 0.999
"""The lowest cosine with the model's own vectors that the self-test of an export accepts."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Label:
    """The name, description and source of an artefact, and the license of its weights (SPDX)."""

    name: str
    description: str
    license: str
    source: Source


@dataclass(frozen=True, slots=True)
class Draft:
    """The facts about an artefact whose files are already in its directory.

    ``reference`` gives the model's own vectors, float32 (N, D), of images uint8 (N, H, W, 3).
    """

    label: Label
    dim: int
    preprocessing: Preprocessing
    input: str
    output: str
    files: dict[str, str]
    reference: Callable[[npt.NDArray[np.uint8]], Float32]
    measured: Measured
    text: TextSpec | None = None
    precision: Precision = "float32"


def check_request(output: Path, *, name: str, license: str = "unknown") -> None:  # noqa: A002 - the wire's word
    """Checks a request's directory, name and license before anything is loaded.

    Raises:
        ExportRefused: ``output`` exists, or ``encoder.json`` cannot hold ``name`` (empty: the
            default name) or ``license``.
    """
    _check_absent(output)
    if name and not _fits(name, Name):
        msg = (
            "name: expected 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a "
            f"digit, got {name!r}"
        )
        raise ExportRefused(msg)
    if not _fits(license, Text):
        raise ExportRefused(f"licence: expected 1 to 2000 characters, got {len(license)}")


def read_encoder(path: Path, *, mixes: str) -> EncoderArtefact:
    """The artefact of the single encoder at ``path``.

    ``mixes`` ends the error for a mix: why a mix will not do, and what to name instead.

    Raises:
        ArtefactError: the artefact is damaged.
        ExportRefused: the artefact is a mix.
    """
    artefact = load_any_artefact(path)
    if isinstance(artefact, MixArtefact):
        parts = ", ".join(str(part.directory) for part in artefact.parts)
        raise ExportRefused(f"{path} is a mix, and {mixes}: {parts}")
    return artefact


def to_matte(matte: str) -> str | None:
    """The matte as ``encoder.json`` has it; None for an empty one: alpha is dropped.

    Raises:
        ExportRefused: it is no colour.
    """
    if matte and not _fits(matte.lower(), Colour):
        raise ExportRefused(f"matte: expected #rrggbb, such as #ffffff, or nothing, got {matte!r}")
    return matte.lower() or None


def _fits(value: str, annotation: TypeAlias) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _check_absent(output: Path) -> None:
    if output.exists():
        raise ExportRefused(f"{output} exists: expected a directory that does not")


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A directory to write into. It becomes ``output`` if the block ends without an exception.

    Raises:
        ExportRefused: ``output`` exists.
    """
    _check_absent(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        put_in_place(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_manifest(directory: Path, draft: Draft) -> EncoderArtefact:
    """Writes ``encoder.json`` for the files in ``directory``; returns the verified artefact."""
    crop = draft.preprocessing.crop
    input_spec = InputSpec(
        name=draft.input,
        layout="NHWC",
        dtype="uint8",
        height=crop.height,
        width=crop.width,
        channels="RGB",
    )
    output_spec = OutputSpec(name=draft.output)
    files = Files(
        **{
            field: FileEntry(path=name, sha256=_sha256(directory / name))
            for field, name in draft.files.items()
        }
    )
    patterns: tuple[Pattern, ...] = get_args(Pattern)
    references = draft.reference(
        np.stack([pattern_image(each, crop.height, crop.width) for each in patterns])
    )
    document = {
        "format_version": 1,
        "name": draft.label.name,
        "description": draft.label.description,
        "source": draft.label.source.model_dump(mode="json", exclude_none=True),
        "licence": draft.label.license,
        "dim": draft.dim,
        "metric": "cosine",
        "input": input_spec.model_dump(mode="json"),
        "output": output_spec.model_dump(mode="json"),
        "preprocessing": draft.preprocessing.model_dump(mode="json", exclude_none=True),
        "files": files.model_dump(mode="json", exclude_none=True),
        "text": None if draft.text is None else draft.text.model_dump(mode="json"),
        "precision": draft.precision,
        "measured": draft.measured.model_dump(mode="json", exclude_none=True),
        "fingerprint": compute_fingerprint(
            files=files,
            input_spec=input_spec,
            output_spec=output_spec,
            preprocessing=draft.preprocessing,
        ),
        "self_test": [
            {
                "pattern": pattern,
                "embedding_b64": encode_vector(vector),
                "min_cosine": MIN_SELF_TEST_COSINE,
            }
            for pattern, vector in zip(patterns, references, strict=True)
        ],
    }
    text = json.dumps(document, indent=1)
    EncoderManifest.model_validate_json(text)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return load_artefact(directory)


def encode_vector(vector: Float32) -> str:
    """The vector as ``encoder.json`` holds it: float32, little-endian, in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
