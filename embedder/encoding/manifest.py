"""The models of ``encoder.json``, which describes an encoder artefact.

This module owns version 1 of the format, as frozen models that refuse unknown and invalid fields,
and the fingerprint, which ties stored vectors to the encoder that made them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

UNIT_LENGTH_TOLERANCE: Final = 1e-3
"""How far the length of a unit vector may be from 1."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,63}$")]
# A bare file name: no separator and no leading dot, so it cannot leave the directory.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Interpolation = Literal["bicubic", "bilinear"]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
"""Red, green and blue, two lower-case hex digits each."""
WHITE: Final = "#ffffff"
"""The matte of an encoder that is given no other."""
Text = Annotated[str, Field(min_length=1, max_length=2000)]
EncodedVector = Annotated[str, Field(max_length=2**17)]
"""float32 values, little-endian, in base64."""
MinCosine = Annotated[float, Field(gt=0.9, le=1.0)]
Positive = Annotated[float, Field(gt=0)]
Pattern = Literal["gradient", "checker", "noise"]
Precision = Literal["float32", "float16", "int8"]
Clean = Literal["lower", "whitespace", "canonicalize", "none"]
"""A rule for cleaning a text before it is split into tokens (``TextSpec``)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Part):
    """Where the weights come from.

    Attributes:
        package: The library that has the model.
        version: The library's version.
        model: The library's name of the model.
        weights: A tag, or the name and sha256 of a checkpoint's file.
    """

    package: Text
    version: Text
    model: Text | None = None
    weights: Text | None = None


class InputSpec(_Part):
    """The graph's input: uint8, (N, height, width, 3), RGB, for any N."""

    name: TensorName
    layout: Literal["NHWC"]
    dtype: Literal["uint8"]
    height: Pixels
    width: Pixels
    channels: Literal["RGB"]


class OutputSpec(_Part):
    """The graph's output: vectors float32 (N, dim) of unit length."""

    name: TensorName


class Resize(_Part):
    """How an image is scaled, always with antialiasing.

    ``shortest_edge`` keeps the aspect ratio and makes the shortest edge ``size`` pixels long.
    ``stretch`` scales to the size of the crop and ignores the aspect ratio; ``size`` is then the
    crop's longer edge.
    """

    mode: Literal["shortest_edge", "stretch"]
    size: Pixels
    interpolation: Interpolation
    antialias: Literal[True]


class Crop(_Part):
    """The part that is kept: the central ``height`` x ``width`` pixels."""

    mode: Literal["center"]
    height: Pixels
    width: Pixels


class Normalise(_Part):
    """The normalisation ``(x - mean) / scale`` of pixels of 0..255, by channel (RGB).

    It is only recorded here: the graph does it.
    """

    mean: tuple[float, float, float]
    scale: tuple[Positive, Positive, Positive]
    in_graph: Literal[True]


class Preprocessing(_Part):
    """The steps from a decoded image to the graph's input.

    What is transparent shows ``matte``. Without a matte alpha is dropped, as in every artefact of
    Shoal before there were mattes.
    """

    resize: Resize
    crop: Crop
    normalise: Normalise
    matte: Colour | None = None

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        longer = max(self.crop.height, self.crop.width)
        if self.resize.mode == "stretch" and longer != self.resize.size:
            msg = (
                f"a stretched image is its crop: expected resize.size {longer}, "
                f"got {self.resize.size}"
            )
            raise ValueError(msg)
        if longer > self.resize.size:
            msg = (
                f"the crop must fit the resized image: expected at most {self.resize.size} px, "
                f"got {self.crop.height}x{self.crop.width}"
            )
            raise ValueError(msg)
        return self


class FileEntry(_Part):
    """A file of the artefact and the sha256 of its bytes, lower-case hex."""

    path: FileName
    sha256: Sha256


class Files(_Part):
    """The files: a graph for each tower, its weights if they are beside it, and the tokenizer."""

    image: FileEntry
    image_data: FileEntry | None = None
    text: FileEntry | None = None
    text_data: FileEntry | None = None
    tokenizer: FileEntry | None = None

    def entries(self) -> dict[str, FileEntry]:
        """The files that the artefact has, by field."""
        entries = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: entry for name, entry in entries.items() if entry is not None}


class TextCase(_Part):
    """A text, its tokens, and the vector that the reference implementation gives for it."""

    text: Text
    tokens: tuple[int, ...]
    embedding_b64: EncodedVector
    min_cosine: MinCosine

    def reference(self) -> npt.NDArray[np.float32]:
        """The reference vector, float32 (dim,). ValueError if it is not base64."""
        return _decoded(self.embedding_b64, f"text {self.text!r}")


class TextSpec(_Part):
    """The text tower: a graph from tokens int64 (N, context_length) to unit vectors (N, dim).

    ``files.tokenizer`` (a file of the ``tokenizers`` library) makes the tokens, with start and end
    marks. They are cut to ``context_length``, with the end mark last, and padded with ``pad_id``.
    ``clean`` says how a text is cleaned first:

    ``whitespace``: mojibake is mended (ftfy), HTML entities are resolved twice, and white space is
    collapsed. ``lower``: the same, and the text becomes lower case, as open_clip does by default.
    ``canonicalize``: the same as ``lower``, and underscores become blanks and ASCII punctuation is
    removed, as in SigLIP's training (big_vision's prompt engineering). ``none``: the text is not
    cleaned; the tokenizer's file does everything.
    """

    input: TensorName
    output: TensorName
    context_length: Annotated[int, Field(ge=2, le=4096)]
    pad_id: Annotated[int, Field(ge=0)]
    clean: Clean
    self_test: Annotated[tuple[TextCase, ...], Field(min_length=1, max_length=16)]


class Measured(_Part):
    """How close an export is to its reference in float32.

    The reference of a variant is its float32 artefact, that of another export its library's model.

    Attributes:
        images: The images that it was measured on.
        min_cosine: The lowest cosine with the reference.
        recall_at_10: For a variant, the share of each image's ten nearest that stay the same.
        nmi_change: For a variant, the normalised mutual information of k-means with the true
            classes, less the float32 artefact's; None if the classes are not known.
    """

    images: Text
    min_cosine: float
    recall_at_10: float | None = None
    nmi_change: float | None = None


class SelfTestCase(_Part):
    """One generated image and the vector that the reference implementation gives for it."""

    pattern: Pattern
    embedding_b64: EncodedVector
    min_cosine: MinCosine

    def reference(self) -> npt.NDArray[np.float32]:
        """The reference vector, float32 (dim,). ValueError if it is not base64."""
        return _decoded(self.embedding_b64, f"self_test {self.pattern}")


def _decoded(embedding_b64: str, name: str) -> npt.NDArray[np.float32]:
    try:
        raw = base64.b64decode(embedding_b64, validate=True)
    except binascii.Error as exc:
        msg = f"{name}: embedding_b64 is not base64: {exc}"
        raise ValueError(msg) from exc
    if len(raw) % 4:
        msg = f"{name}: expected whole float32 values, got {len(raw)} bytes"
        raise ValueError(msg)
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)


class EncoderManifest(_Part):
    """``encoder.json`` of an encoder with one image tower, with or without a text tower."""

    format_version: Literal[1]
    name: Name
    description: Text
    source: Source
    license: Text = Field(alias="licence")
    """The license of the weights (SPDX); ``licence`` in the file, whose format is stable."""
    dim: Annotated[int, Field(ge=1, le=16384)]
    metric: Literal["cosine"]
    input: InputSpec
    output: OutputSpec
    preprocessing: Preprocessing
    files: Files
    text: TextSpec | None
    precision: Precision = "float32"
    measured: Measured | None = None
    fingerprint: Sha256
    self_test: Annotated[tuple[SelfTestCase, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        crop = self.preprocessing.crop
        if (crop.height, crop.width) != (self.input.height, self.input.width):
            msg = (
                f"preprocessing.crop must equal input: expected "
                f"{self.input.height}x{self.input.width}, got {crop.height}x{crop.width}"
            )
            raise ValueError(msg)
        for case in self.self_test:
            _check_reference(case.reference(), f"self_test {case.pattern}", self.dim)
        if self.text is None:
            return self
        if self.files.text is None or self.files.tokenizer is None:
            msg = "a text tower needs files.text and files.tokenizer: expected both"
            raise ValueError(msg)
        for text_case in self.text.self_test:
            name = f"text {text_case.text!r}"
            _check_reference(text_case.reference(), name, self.dim)
            if len(text_case.tokens) != self.text.context_length:
                expected = self.text.context_length
                msg = f"{name}: expected {expected} tokens, got {len(text_case.tokens)}"
                raise ValueError(msg)
        return self


class MixManifest(_Part):
    """``encoder.json`` of a mix: the concatenation of its parts' unit vectors, scaled to length 1.

    ``parts`` names subdirectories, each the artefact of an encoder with one image tower.
    """

    format_version: Literal[1]
    kind: Literal["mix"]
    name: Name
    description: Text
    dim: Annotated[int, Field(ge=2, le=65536)]
    metric: Literal["cosine"]
    parts: Annotated[tuple[Name, ...], Field(min_length=2, max_length=8)]
    fingerprint: Sha256

    @model_validator(mode="after")
    def _parts_differ(self) -> Self:
        if len(set(self.parts)) != len(self.parts):
            msg = f"parts: expected different names, got {self.parts}"
            raise ValueError(msg)
        return self


def mix_fingerprint(parts: Sequence[str]) -> str:
    """The fingerprint of a mix, sha256 hex, from its parts' fingerprints in their order."""
    return hashlib.sha256(("mix:" + ",".join(parts)).encode("ascii")).hexdigest()


def _check_reference(vector: npt.NDArray[np.float32], name: str, dim: int) -> None:
    if vector.shape != (dim,):
        msg = f"{name}: expected {dim} values, got {vector.size}"
        raise ValueError(msg)
    length = float(np.linalg.norm(vector))
    if not abs(length - 1.0) <= UNIT_LENGTH_TOLERANCE:
        msg = f"{name}: expected a unit vector, got length {length}"
        raise ValueError(msg)


def compute_fingerprint(
    *, files: Files, input_spec: InputSpec, output_spec: OutputSpec, preprocessing: Preprocessing
) -> str:
    """The fingerprint, sha256 hex, of everything that decides the values of a vector.

    The name, description and self-test are left out: they do not change a vector. The files of
    the text tower count too, because texts are compared with stored images.
    """
    hashes = {f"{name}_sha256": entry.sha256 for name, entry in files.entries().items()}
    facts = {
        "input": input_spec.model_dump(mode="json"),
        "output": output_spec.model_dump(mode="json"),
        # A field that an artefact lacks leaves its fingerprint as it was before the field existed.
        "preprocessing": preprocessing.model_dump(mode="json", exclude_none=True),
        "weights_sha256": hashes.pop("image_sha256"),
        **hashes,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
