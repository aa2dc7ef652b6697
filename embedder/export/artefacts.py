"""Writes an artefact: the graphs, ``encoder.json``, and nothing at all if a step fails."""

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

MIN_SELF_TEST_COSINE: Final = 0.999

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Label:
    """What an artefact says of itself. ``licence`` is that of the weights (SPDX)."""

    name: str
    description: str
    licence: str
    source: Source


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything of an artefact but its directory, in which the files lie already.

    ``reference`` embeds uint8 (N, H, W, 3) as the model itself does, float32 (N, D).
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


def check_request(output: Path, *, name: str, licence: str = "unknown") -> None:
    """Check what a user says of an artefact, before any work is lost on it.

    Raises:
        ExportRefused: ``output`` exists, or ``name`` (empty: the default) or ``licence`` cannot be
            in ``encoder.json``.
    """
    _check_absent(output)
    if name and not _fits(name, Name):
        msg = (
            "name: expected 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a "
            f"digit, got {name!r}"
        )
        raise ExportRefused(msg)
    if not _fits(licence, Text):
        msg = f"licence: expected 1 to 2000 characters, got {len(licence)}"
        raise ExportRefused(msg)


def read_encoder(path: Path, *, mixes: str) -> EncoderArtefact:
    """The artefact of an encoder at ``path``; ``mixes`` says why not of a mix, and what instead.

    Raises:
        ArtefactError: it is damaged.
        ExportRefused: it is a mix.
    """
    found = load_any_artefact(path)
    if isinstance(found, MixArtefact):
        parts = ", ".join(str(part.directory) for part in found.parts)
        msg = f"{path} is a mix, and {mixes}: {parts}"
        raise ExportRefused(msg)
    return found


def _fits(value: str, annotation: TypeAlias) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _check_absent(output: Path) -> None:
    if output.exists():
        msg = f"{output} exists: expected a directory that does not"
        raise ExportRefused(msg)


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``output`` if the block ends well.

    Raises:
        ExportRefused: ``output`` exists.
    """
    _check_absent(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield made
        made.chmod(0o755)
        made.replace(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def write_manifest(directory: Path, draft: Draft) -> EncoderArtefact:
    """Write ``encoder.json`` for the files in ``directory``; the artefact, loaded and verified."""
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
        "licence": draft.label.licence,
        "dim": draft.dim,
        "metric": "cosine",
        "input": input_spec.model_dump(mode="json"),
        "output": output_spec.model_dump(mode="json"),
        "preprocessing": draft.preprocessing.model_dump(mode="json"),
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
    """A vector as ``encoder.json`` has it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
