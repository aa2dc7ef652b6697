"""Photographs in the sizes, modes and formats that arrive, to compare preprocessing on.

All are made from the two photographs that scikit-learn ships.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

_ORIENTATION = 0x0112
_SIDEWAYS = 6


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image, and the decoded image that a library's own transform gets.

    ``seen`` is upright, lies on the encoder's matte if there is one, has 8 bits and no palette, and
    is otherwise as Pillow opens it. A palette
    image is converted first because open_clip's transform resizes before it converts to RGB, and
    Pillow resizes a palette image to the nearest pixel: there Shoal does better than its reference.
    """

    name: str
    data: bytes
    seen: Image.Image


def photographs() -> tuple[Image.Image, Image.Image]:
    """The two photographs, RGB, 640 x 427."""
    china, flower = (Image.fromarray(load_sample_image(n)) for n in ("china.jpg", "flower.jpg"))
    return china, flower


def pictures(size: int, *, matte: str | None = None) -> list[Picture]:
    """Photographs larger and smaller than ``size`` pixels, and in rare modes and formats.

    What is transparent is seen on ``matte``; without one, alpha is dropped.
    """
    china, flower = photographs()
    small = china.crop((100, 50, 100 + size // 3, 50 + size // 4))
    large = flower.resize((flower.width * 3, flower.height * 3), Image.Resampling.BICUBIC)
    grey16 = Image.fromarray(np.asarray(china.convert("L")).astype(np.uint16) * 257)
    alpha = flower.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(flower.size))
    return [
        _picture("photograph", china, "JPEG", quality=92),
        _picture("another", flower, "JPEG", quality=92),
        _picture("portrait", flower.rotate(90, expand=True), "JPEG", quality=92),
        _picture("panorama", china.crop((0, 100, 640, 200)), "JPEG", quality=92),
        _picture("upscaled", small, "PNG"),
        _picture("large", large, "JPEG", quality=92),
        _picture("grey", china.convert("L"), "JPEG", quality=92),
        _picture("cmyk", flower.convert("CMYK"), "JPEG", quality=92),
        _palette(china.quantize(64)),
        _transparent(alpha, matte),
        _turned(flower),
        _sixteen_bit(grey16),
        _picture("webp", flower, "WEBP", quality=90),
    ]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """``image`` encoded as ``kind``, Pillow's name of a format."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _picture(name: str, image: Image.Image, kind: str, **options: object) -> Picture:
    data = encoded(image, kind, **options)
    return Picture(name, data, Image.open(io.BytesIO(data)))


def _palette(image: Image.Image) -> Picture:
    data = encoded(image, "PNG")
    return Picture("palette", data, Image.open(io.BytesIO(data)).convert("RGB"))


def _transparent(image: Image.Image, matte: str | None) -> Picture:
    data = encoded(image, "PNG")
    if matte is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, matte), image)
    return Picture("alpha", data, image)


def _turned(image: Image.Image) -> Picture:
    exif = Image.Exif()
    exif[_ORIENTATION] = _SIDEWAYS
    data = encoded(image, "JPEG", quality=92, exif=exif)
    return Picture("exif-rotated", data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def _sixteen_bit(image: Image.Image) -> Picture:
    data = encoded(image, "PNG")
    values = np.asarray(Image.open(io.BytesIO(data)))
    return Picture("16-bit", data, Image.fromarray((values >> 8).astype(np.uint8)))
