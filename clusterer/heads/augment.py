"""Random views of a picture, for SCP's pairs. Pillow only; knows no encoder.

A view is cropped and blurred, each with probability 0.5 (arXiv 2502.04226). It is a file again: it
reaches the encoder as every other picture does, by the encoder's own decoding, resizing and
normalisation.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

PROBABILITY: Final = 0.5
"""The probability of each of the two changes."""

LEAST_AREA, MOST_AREA = 0.4, 0.9
"""The range of the share of the picture that a crop keeps; the paper does not say."""

MOST_BLUR: Final = 0.01
"""The largest standard deviation of the blur, as a share of the shorter side: 2.2 pixels of 224."""

_QUALITY: Final = 95


def random_view(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A new picture: ``picture``, perhaps cropped, perhaps blurred."""
    view = picture
    if rng.random() < PROBABILITY:
        view = _random_crop(view, rng)
    if rng.random() < PROBABILITY:
        sigma = rng.uniform(0, MOST_BLUR) * min(view.size)
        view = view.filter(ImageFilter.GaussianBlur(sigma))
    return view


def _random_crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of ``picture`` with the same shape, at a random place."""
    side = np.sqrt(rng.uniform(LEAST_AREA, MOST_AREA))
    width, height = (max(1, round(side * length)) for length in picture.size)
    left = int(rng.integers(picture.width - width + 1))
    upper = int(rng.integers(picture.height - height + 1))
    return picture.crop((left, upper, left + width, upper + height))


def open_picture(data: bytes) -> Image.Image:
    """The picture in a file's bytes, RGB and upright.

    Raises:
        Exception: whatever Pillow raises for bytes that are no picture.
    """
    with Image.open(io.BytesIO(data)) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


def to_file(picture: Image.Image) -> bytes:
    """``picture`` as a JPEG of quality 95 with full colour."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
