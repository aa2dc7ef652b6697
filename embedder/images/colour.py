"""From a decoded image in any mode to grey or RGB of 8 bits, on a matte where it is transparent.

Without a matte alpha is dropped: the colour under a transparent pixel counts, which is not what
anybody sees, and is black in most drawings.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    PngImagePlugin,
    TiffImagePlugin,
)

from embedder.images.tiff import grey_of
from shoal.errors import ImageUnsupportedFormat

Box: TypeAlias = tuple[int, int, int, int]
"""A part of an image: left, top, right, bottom, in pixels."""

GREY_16_MODES: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
CONVERTIBLE_MODES: Final = frozenset({"RGBA", "RGBX", "PA", "CMYK", "YCbCr"})
_ALPHA_MODES: Final = frozenset({"RGBA", "LA", "PA"})
_OPAQUE: Final = 255
_PNG_BITS: Final = 24
"""Where a PNG has the number of bits of a sample."""
_EIGHT, _SIXTEEN = 8, 16


def to_rgb_or_grey(
    image: Image.Image, *, matte: str | None, alpha: Image.Image | None
) -> Image.Image:
    """The image in mode RGB or L, 8 bits.

    Args:
        image: a decoded image.
        matte: the colour behind transparent pixels, ``#rrggbb``; None: alpha is dropped.
        alpha: how opaque each pixel is, from ``alpha_of``.

    Raises:
        ImageUnsupportedFormat: the image's values have no known meaning in RGB.
    """
    colour = _to_rgb_or_grey(image)
    if matte is None or alpha is None:
        return colour
    colour = colour.copy() if colour is image and image.mode == "RGB" else colour.convert("RGB")
    colour.paste(matte, (0, 0, *colour.size), ImageChops.invert(alpha))
    return colour


def alpha_of(image: Image.Image, drawn: Box | None, data: bytes) -> Image.Image | None:
    """How opaque each pixel is, in mode L, 0 to 255; None if every pixel is opaque.

    Args:
        image: a decoded image.
        drawn: the part of a GIF that its first frame covers.
        data: its file.
    """
    alpha = _alpha_of(image, data)
    if drawn and isinstance(image, GifImagePlugin.GifImageFile) and drawn != (0, 0, *image.size):
        # A frame may be smaller than the screen. Nothing is drawn in the rest of the screen.
        whole = alpha or Image.new("L", image.size, _OPAQUE)
        alpha = Image.new("L", image.size, 0)
        alpha.paste(whole.crop(drawn), drawn)
    if alpha is None:
        return None
    least, most = alpha.getextrema()
    if least == _OPAQUE or (most == 0 and isinstance(image, BmpImagePlugin.BmpImageFile)):
        return None  # many programs leave the fourth byte of a BMP's pixels zero
    return alpha


def _alpha_of(image: Image.Image, data: bytes) -> Image.Image | None:
    if image.mode in _ALPHA_MODES:
        return image.getchannel("A")
    key = image.info.get("transparency")
    if key is None:
        return None
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    bits = data[_PNG_BITS] if isinstance(image, PngImagePlugin.PngImageFile) else _EIGHT
    if image.mode in GREY_16_MODES:
        return Image.fromarray(np.where(np.asarray(image) == key, 0, _OPAQUE).astype(np.uint8))
    if image.mode not in ("1", "L", "RGB"):
        return None
    keys = key if isinstance(key, tuple) else (key,)
    if image.mode == "L":  # Pillow scales the samples to 8 bits, and leaves the key as it is
        keys = tuple(each * _OPAQUE // ((1 << min(bits, _EIGHT)) - 1) for each in keys)
    if bits == _SIXTEEN:
        keys = tuple(each >> _EIGHT for each in keys)
    bands = (image.convert("L") if image.mode == "1" else image).split()
    unlike = [
        band.point([0 if value == each else _OPAQUE for value in range(256)])
        for band, each in zip(bands, keys, strict=True)
    ]
    alpha = unlike[0]
    for other in unlike[1:]:
        alpha = ImageChops.lighter(alpha, other)
    return alpha


def _to_rgb_or_grey(image: Image.Image) -> Image.Image:
    """The image in mode RGB or L, 8 bits."""
    mode = image.mode
    if mode in ("RGB", "L"):
        return image
    if mode in ("1", "LA"):
        return image.convert("L")
    if mode == "P":
        # By way of RGBA: Pillow warns if a palette with transparency is converted to RGB directly.
        through = image.convert("RGBA") if "transparency" in image.info else image
        return through.convert("RGB")
    if mode in CONVERTIBLE_MODES:
        return image.convert("RGB")
    if mode in GREY_16_MODES or mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            msg = "image: expected grey values of 8 or 16 bits, got values outside 0..65535"
            raise ImageUnsupportedFormat(msg, mode=mode)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and mode in GREY_16_MODES:
            return Image.fromarray(grey_of(image, values))
        # Pillow's own conversion clips at 255, which would make nearly every image white.
        return Image.fromarray((values >> 8).astype(np.uint8))
    msg = f"image: expected grey, palette, RGB, CMYK or YCbCr pixels, got Pillow mode {mode}"
    raise ImageUnsupportedFormat(msg, mode=mode)
