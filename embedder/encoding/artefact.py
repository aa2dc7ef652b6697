"""The encoder artefact: a directory with ``encoder.json`` and the files it names.

A mix is a directory of such directories, its parts. This module loads and verifies both kinds, and
owns the self-test, which proves that a loaded encoder gives its reference vectors. An artefact is
untrusted input: every field is checked (the models are in ``embedder.encoding.manifest``), and a
file is opened only after its name was checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from embedder.encoding.manifest import (
    UNIT_LENGTH_TOLERANCE,
    EncoderManifest,
    FileEntry,
    MixManifest,
    Pattern,
    Preprocessing,
    compute_fingerprint,
    mix_fingerprint,
)
from shoal.errors import ArtefactError, SelfTestFailed

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST_NAME: Final = "encoder.json"
MANIFEST_MAX_BYTES: Final = 2**20
BUNDLED_ENCODERS: Final = Path(__file__).parents[1] / "encoders"
SHOWN_INPUT_CHARS: Final = 80


@dataclass(frozen=True, slots=True)
class EncoderArtefact:
    """A validated artefact of one image tower: its directory and its manifest."""

    directory: Path
    manifest: EncoderManifest

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.manifest.name

    @property
    def image_model(self) -> Path:
        """The ONNX file of the image tower."""
        return self.directory / self.manifest.files.image.path

    @property
    def text_model(self) -> Path | None:
        """The ONNX file of the text tower, if there is one."""
        entry = self.manifest.files.text
        return None if entry is None else self.directory / entry.path

    @property
    def tokenizer(self) -> Path | None:
        """The file of the text tower's tokenizer, if there is one."""
        entry = self.manifest.files.tokenizer
        return None if entry is None else self.directory / entry.path

    @property
    def fingerprint(self) -> str:
        """The identity of the vectors this encoder makes, sha256 hex."""
        return self.manifest.fingerprint

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.manifest.dim

    @property
    def license(self) -> str:
        """The license of the weights (SPDX)."""
        return self.manifest.license

    @property
    def source(self) -> str:
        """Where the weights came from, in one line."""
        source = self.manifest.source
        facts = (source.package, source.version, source.model, source.weights)
        return " ".join(fact for fact in facts if fact)

    @property
    def parts(self) -> tuple[EncoderArtefact, ...]:
        """The artefacts whose vectors make up its own: itself alone."""
        return (self,)

    @property
    def before_matte(self) -> EncoderArtefact:
        """The encoder as it was before it had a matte: it drops alpha. Itself if it has none.

        Collections that were made with it keep its rule.
        """
        if self.manifest.preprocessing.matte is None:
            return self
        preprocessing = self.manifest.preprocessing.model_copy(update={"matte": None})
        fingerprint = _fingerprint(self.manifest, preprocessing)
        changes = {"preprocessing": preprocessing, "fingerprint": fingerprint}
        return replace(self, manifest=self.manifest.model_copy(update=changes))


@dataclass(frozen=True, slots=True)
class MixArtefact:
    """A validated mix: its directory, its manifest and the artefacts of its parts, in order."""

    directory: Path
    manifest: MixManifest
    parts: tuple[EncoderArtefact, ...]

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """The identity of the vectors this encoder makes, sha256 hex."""
        return self.manifest.fingerprint

    @property
    def dim(self) -> int:
        """The length of a vector: the sum of its parts' lengths."""
        return self.manifest.dim

    @property
    def license(self) -> str:
        """The licenses of the parts' weights (SPDX), joined by AND."""
        return " AND ".join(dict.fromkeys(part.license for part in self.parts))

    @property
    def source(self) -> str:
        """Where the weights came from, in one line."""
        return " + ".join(part.source for part in self.parts)

    @property
    def before_matte(self) -> MixArtefact:
        """The mix as it was before its parts had mattes; see ``EncoderArtefact.before_matte``."""
        parts = tuple(part.before_matte for part in self.parts)
        fingerprint = mix_fingerprint([part.fingerprint for part in parts])
        manifest = self.manifest.model_copy(update={"fingerprint": fingerprint})
        return replace(self, manifest=manifest, parts=parts)


Artefact: TypeAlias = EncoderArtefact | MixArtefact

_M = TypeVar("_M", bound=BaseModel)


def bundled_artefact(name: str = "efficientnet-lite0") -> Path:
    """The directory of an encoder that this package ships; ArtefactError if it ships none."""
    known = sorted(path.parent.name for path in BUNDLED_ENCODERS.glob(f"*/{MANIFEST_NAME}"))
    if name not in known:
        msg = f"unknown bundled encoder: expected one of {known}, got {name!r}"
        raise ArtefactError(msg, encoder=name)
    return BUNDLED_ENCODERS / name


def load_artefact(path: Path) -> EncoderArtefact:
    """The verified artefact in the directory ``path``, of an encoder with one image tower.

    Every field of ``encoder.json``, the sha256 of every file and the fingerprint are checked.

    Raises:
        ArtefactError: the artefact is damaged or a mix; names the file and the field, what was
            expected and what was got.
    """
    manifest_path = path / MANIFEST_NAME
    if _is_mix(_read(manifest_path)):
        msg = f"{manifest_path}: expected an encoder with one image tower, got a mix"
        raise ArtefactError(msg, file=str(manifest_path), field="kind")
    manifest = _parse(manifest_path, EncoderManifest)
    for field, entry in manifest.files.entries().items():
        _check_file(path, f"files.{field}", entry)
    expected = _fingerprint(manifest, manifest.preprocessing)
    _check_fingerprint(manifest_path, expected, manifest.fingerprint)
    return EncoderArtefact(directory=path, manifest=manifest)


def load_any_artefact(path: Path) -> Artefact:
    """The verified artefact in ``path``, of either kind; see ``load_artefact``.

    A mix is verified part by part.
    """
    manifest_path = path / MANIFEST_NAME
    if not _is_mix(_read(manifest_path)):
        return load_artefact(path)
    manifest = _parse(manifest_path, MixManifest)
    parts = tuple(load_artefact(path / part) for part in manifest.parts)
    dim = sum(part.dim for part in parts)
    if manifest.dim != dim:
        msg = (
            f"{manifest_path}: field dim: expected {dim}, the sum of its parts', got {manifest.dim}"
        )
        raise ArtefactError(msg, file=str(manifest_path), field="dim")
    expected = mix_fingerprint([part.fingerprint for part in parts])
    _check_fingerprint(manifest_path, expected, manifest.fingerprint)
    return MixArtefact(path, manifest, parts)


def _fingerprint(manifest: EncoderManifest, preprocessing: Preprocessing) -> str:
    """The fingerprint of an encoder with another preprocessing."""
    return compute_fingerprint(
        files=manifest.files,
        input_spec=manifest.input,
        output_spec=manifest.output,
        preprocessing=preprocessing,
    )


def _check_file(directory: Path, field: str, entry: FileEntry) -> None:
    file = directory / entry.path
    got = _sha256(file, field)
    if got != entry.sha256:
        msg = (
            f"{file}: sha256 differs from {field}.sha256 of {MANIFEST_NAME}: "
            f"expected {entry.sha256}, got {got}"
        )
        raise ArtefactError(msg, file=str(file), field=f"{field}.sha256")


def _check_fingerprint(path: Path, expected: str, got: str) -> None:
    if got != expected:
        msg = (
            f"{path}: field fingerprint does not match the contents: expected {expected}, got {got}"
        )
        raise ArtefactError(msg, file=str(path), field="fingerprint")


def _is_mix(raw: bytes) -> bool:
    """Whether the manifest ``raw`` is of a mix. One that cannot be parsed is not."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("kind") == "mix"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MANIFEST_MAX_BYTES + 1)
    except OSError as exc:
        msg = f"{path}: expected a readable file, got {exc.strerror or exc}"
        raise ArtefactError(msg, file=str(path)) from exc
    if len(raw) > MANIFEST_MAX_BYTES:
        msg = f"{path}: expected at most {MANIFEST_MAX_BYTES} bytes, got more"
        raise ArtefactError(msg, file=str(path))
    return raw


def _parse(path: Path, kind: type[_M]) -> _M:
    try:
        return kind.model_validate_json(_read(path))
    except ValidationError as exc:
        first, *rest = exc.errors(include_url=False)
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        shown = repr(first["input"])
        if len(shown) > SHOWN_INPUT_CHARS:
            shown = shown[:SHOWN_INPUT_CHARS] + "..."
        more = f" (and {len(rest)} more)" if rest else ""
        msg = f"{path}: field {field}: {first['msg']}; got {shown}{more}"
        raise ArtefactError(msg, file=str(path), field=field) from exc


def _sha256(path: Path, field: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        msg = f"{path}: expected a readable file, got {exc.strerror or exc}"
        raise ArtefactError(msg, file=str(path), field=f"{field}.path") from exc


def pattern_image(pattern: Pattern, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A self-test image, uint8 (height, width, 3), the same on every machine."""
    if pattern == "noise":
        generator = np.random.Generator(np.random.PCG64(0))
        return generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    if pattern == "checker":
        cell = (y // 16 + x // 16) % 2
        channels = (cell * 255, (1 - cell) * 200, cell * 64 + 32)
    else:
        channels = (
            x * 255 // max(width - 1, 1),
            y * 255 // max(height - 1, 1),
            (x + y) * 255 // max(height + width - 2, 1),
        )
    return np.stack(channels, axis=-1).astype(np.uint8)


def self_test_images(artefact: EncoderArtefact) -> list[npt.NDArray[np.uint8]]:
    """The self-test images, each uint8 (height, width, 3), in the manifest's order."""
    spec = artefact.manifest.input
    return [
        pattern_image(case.pattern, spec.height, spec.width) for case in artefact.manifest.self_test
    ]


def check_self_test(
    artefact: EncoderArtefact,
    embed: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
) -> None:
    """Embeds the self-test images and compares their vectors with the reference vectors.

    Args:
        artefact: a loaded artefact.
        embed: uint8 (N, height, width, 3) to float32 (N, dim), rows of unit length.

    Raises:
        SelfTestFailed: the shape, dtype, length or direction of a vector is wrong.
    """
    cases = artefact.manifest.self_test
    name = artefact.manifest.name
    got = embed(np.stack(self_test_images(artefact)))
    shape = (len(cases), artefact.dim)
    if got.shape != shape or got.dtype != np.float32:
        msg = f"encoder {name}: expected float32 {shape}, got {got.dtype} {got.shape}"
        raise SelfTestFailed(msg, encoder=name)
    for case, vector in zip(cases, got, strict=True):
        length = float(np.linalg.norm(vector))
        # The comparison is written such that NaN fails too.
        if not abs(length - 1.0) <= UNIT_LENGTH_TOLERANCE:
            msg = f"encoder {name}, image {case.pattern}: expected unit length, got {length}"
            raise SelfTestFailed(msg, encoder=name, pattern=case.pattern)
        cosine = float(vector @ case.reference())
        if not cosine >= case.min_cosine:
            msg = (
                f"encoder {name}, image {case.pattern}: expected cosine >= {case.min_cosine} "
                f"with the reference vector, got {cosine:.6f}"
            )
            raise SelfTestFailed(msg, encoder=name, pattern=case.pattern)
