"""What a TIFF says about its samples, and the TIFFs that Pillow would read wrongly.

TIFF is a family of formats: samples of any width, signed or not, white as zero, in planes; and
camera raw files, whose first picture is a thumbnail. What Pillow reads as something else is put
right here, or refused by its name.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from shoal.errors import ImageTooManyPixels, ImageUnsupportedFormat

TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of TIFF 6.0, section 15."""
COMPRESSION, ROWS_PER_STRIP = 259, 278
_SUBFILE, _WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _PLANES = 254, 256, 257, 258, 262, 284
_MOST, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION = 281, 330, 339, 50706
_STRIPS, _TILES = 273, 324
_SIGNED: Final = 2
_FILTERS: Final = frozenset({32803, 34892})
"""Pixels behind a colour filter, and raw ones without: what a sensor gives (DNG 1.7)."""
_DEEP: Final = 16
_BIG: Final = 43


def check_tiff(image: TiffImagePlugin.TiffImageFile, *, max_pixels: int) -> None:
    """Refuses a TIFF that Pillow would read wrongly, or whose tiles have too many pixels.

    Raises:
        ImageUnsupportedFormat: the picture is a thumbnail, or its samples are of a kind that Pillow
            takes for another; names the kind.
        ImageTooManyPixels: a tile, which is decoded whole, is larger than an image may be.
    """
    tags = image.tag_v2
    if _DNG_VERSION in tags:
        raise _unsupported("DNG (camera raw)")
    if tags.get(_PHOTOMETRIC) in _FILTERS:
        raise _unsupported("camera raw")
    if _integer(tags.get(_SUBFILE, 0)) & 1 and _SUB_DIRECTORIES in tags:
        raise _unsupported("camera raw, or another TIFF whose first picture is a thumbnail")
    if _SIGNED in _numbers(tags.get(_SAMPLE_FORMAT)):
        raise _unsupported("signed samples")
    bits = _numbers(tags.get(_BITS))
    if len(bits) > 1 and max(bits) > 8 and tags.get(_PLANES) == 2:  # noqa: PLR2004 - bits; separate
        raise _unsupported(f"{max(bits)}-bit samples in planes")
    width, height = (_integer(tags.get(tag, 1)) for tag in (TILE_WIDTH, TILE_LENGTH))
    if width * height > max_pixels:
        msg = f"TIFF image: expected tiles of at most {max_pixels} pixels, got {width}x{height}"
        raise ImageTooManyPixels(msg, max_pixels=str(max_pixels))


def grey_of(
    image: TiffImagePlugin.TiffImageFile, values: npt.NDArray[np.uint16]
) -> npt.NDArray[np.uint8]:
    """The samples of a deep grey TIFF in 8 bits, white as 255.

    Few files say how many of their 16 bits are used. An image whose values all fit into 12, 10 or 8
    bits uses so many: as 16 bits it would be nearly black.
    """
    tags = image.tag_v2
    bits = max(_numbers(tags.get(_BITS)), default=_DEEP)
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    if bits == _DEEP and not white_is_zero:
        said = max(_numbers(tags.get(_MOST)), default=0)
        most = max(int(values.max(initial=0)), said if said & (said + 1) == 0 else 0)
        bits = next((each for each in (8, 10, 12) if most < 1 << each), _DEEP)
    grey = (values >> (bits - 8)).astype(np.uint8)
    return 255 - grey if white_is_zero else grey


def unread_tiff(data: bytes) -> ImageUnsupportedFormat | None:
    """Why Pillow does not open a sound TIFF; None if the file is damaged."""
    head = data[: 16 if _BIG in data[2:4] else 8]
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        whole = {_WIDTH, _LENGTH} <= set(tags) and (_STRIPS in tags or _TILES in tags)
        facts = [tags.get(tag) for tag in (_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, COMPRESSION)]
    except Exception:  # noqa: BLE001 - damaged tags raise anything
        return None
    if not whole:
        return None
    if tags.get(_PHOTOMETRIC) in _FILTERS or _DNG_VERSION in tags:
        return _unsupported("camera raw")
    names = ("photometric", "bits", "sample format", "compression")
    shown = ", ".join(
        f"{name} {fact}" for name, fact in zip(names, facts, strict=True) if fact is not None
    )
    return _unsupported(f"a layout that Pillow does not read ({shown})")


def _unsupported(got: str) -> ImageUnsupportedFormat:
    msg = f"TIFF image: expected grey, palette, RGB, CMYK or YCbCr samples, got {got}"
    return ImageUnsupportedFormat(msg)


def _numbers(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in values if isinstance(each, int))


def _integer(value: object) -> int:
    return max(_numbers(value), default=0)
