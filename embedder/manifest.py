"""The models of ``encoder.json``: what an encoder artefact says about itself.

This module owns the format, version 1: frozen models that refuse unknown and invalid fields, and
the fingerprint, which ties stored vectors to the encoder that made them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

UNIT_LENGTH_TOLERANCE: Final = 1e-3

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,63}$")]
# A bare file name: no separator and no leading dot, so it cannot leave the directory.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Pattern = Literal["gradient", "checker", "noise"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Part):
    """Where the weights come from: a package and its version."""

    package: Text
    version: Text


class InputSpec(_Part):
    """The graph's input: uint8, (N, height, width, 3), RGB; N is free."""

    name: TensorName
    layout: Literal["NHWC"]
    dtype: Literal["uint8"]
    height: Pixels
    width: Pixels
    channels: Literal["RGB"]


class OutputSpec(_Part):
    """The graph's output: float32, (N, dim), rows of unit length."""

    name: TensorName


class Resize(_Part):
    """Scale, keeping the aspect ratio, until the shortest edge is ``size`` pixels."""

    mode: Literal["shortest_edge"]
    size: Pixels
    interpolation: Literal["bicubic"]
    antialias: Literal[True]


class Crop(_Part):
    """Keep the central ``height`` x ``width`` pixels."""

    mode: Literal["center"]
    height: Pixels
    width: Pixels


class Normalise(_Part):
    """``(x - mean) / scale`` on 0..255 pixels. Recorded only: the graph does it."""

    mean: float
    scale: Annotated[float, Field(gt=0)]
    in_graph: Literal[True]


class Preprocessing(_Part):
    """What happens between a decoded image and the graph's input."""

    resize: Resize
    crop: Crop
    normalise: Normalise

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if max(self.crop.height, self.crop.width) > self.resize.size:
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
    """The weight files, by tower."""

    image: FileEntry


class SelfTestCase(_Part):
    """One generated image and the vector that the reference implementation gives for it."""

    pattern: Pattern
    embedding_b64: Annotated[str, Field(max_length=2**17)]
    min_cosine: Annotated[float, Field(gt=0.9, le=1.0)]

    def reference(self) -> npt.NDArray[np.float32]:
        """Return the reference vector, float32 (dim,). ValueError if it is not base64."""
        try:
            raw = base64.b64decode(self.embedding_b64, validate=True)
        except binascii.Error as exc:
            msg = f"self_test {self.pattern}: embedding_b64 is not base64: {exc}"
            raise ValueError(msg) from exc
        if len(raw) % 4:
            msg = f"self_test {self.pattern}: expected whole float32 values, got {len(raw)} bytes"
            raise ValueError(msg)
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)


class EncoderManifest(_Part):
    """``encoder.json``. ``text`` is reserved for a text tower and must be null in version 1."""

    format_version: Literal[1]
    name: Name
    description: Text
    source: Source
    licence: Text
    dim: Annotated[int, Field(ge=1, le=16384)]
    metric: Literal["cosine"]
    input: InputSpec
    output: OutputSpec
    preprocessing: Preprocessing
    files: Files
    text: None
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
            vector = case.reference()
            if vector.shape != (self.dim,):
                msg = f"self_test {case.pattern}: expected {self.dim} values, got {vector.size}"
                raise ValueError(msg)
            length = float(np.linalg.norm(vector))
            if not abs(length - 1.0) <= UNIT_LENGTH_TOLERANCE:
                msg = f"self_test {case.pattern}: expected a unit vector, got length {length}"
                raise ValueError(msg)
        return self


def compute_fingerprint(
    *,
    weights_sha256: str,
    input_spec: InputSpec,
    output_spec: OutputSpec,
    preprocessing: Preprocessing,
) -> str:
    """Return the sha256 hex of everything that decides the value of an image's vector.

    The name, description and self-test are left out: they do not change a vector.
    """
    facts = {
        "input": input_spec.model_dump(mode="json"),
        "output": output_spec.model_dump(mode="json"),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "weights_sha256": weights_sha256,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
