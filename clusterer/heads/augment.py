"""Random views of a picture, as SCP trains on them. Pillow only; knows no encoder.

RandomCrop and GaussianBlur, each with probability 0.5 (arXiv 2502.04226). Views are
files again, so that they reach the encoder by the way of every other picture: its own decoding,
resizing and normalisation.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

PROBABILITY: Final = 0.5
"""Of each of the two changes."""

LEAST_AREA, MOST_AREA = 0.4, 0.9
"""Share of the picture that a crop keeps, uniform in between; the paper does not say."""

MOST_BLUR: Final = 0.01
"""Standard deviation of the blur, at most, as a share of the shorter side: 2.2 pixels of 224."""

_QUALITY: Final = 95


def random_view(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of ``picture`` or not, blurred or not. ``picture`` stays as it is."""
    view = picture
    if rng.random() < PROBABILITY:
        view = _random_crop(view, rng)
    if rng.random() < PROBABILITY:
        sigma = rng.uniform(0, MOST_BLUR) * min(view.size)
        view = view.filter(ImageFilter.GaussianBlur(sigma))
    return view


def _random_crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of ``picture`` of its own shape, anywhere in it."""
    side = np.sqrt(rng.uniform(LEAST_AREA, MOST_AREA))
    width, height = (max(1, round(side * length)) for length in picture.size)
    left = int(rng.integers(picture.width - width + 1))
    upper = int(rng.integers(picture.height - height + 1))
    return picture.crop((left, upper, left + width, upper + height))


def open_picture(data: bytes) -> Image.Image:
    """The picture in a file's bytes, RGB, upright; Pillow's errors for what is none."""
    with Image.open(io.BytesIO(data)) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


def to_file(picture: Image.Image) -> bytes:
    """``picture`` as a JPEG of quality 95 with full colour."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
