"""Formats that packages of their own decode, where they are installed: HEIF and JPEG XL.

They are loaded with the first image of their format. Each decodes with one thread, as Pillow does.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from PIL import Image, ImageFile

from shoal.errors import ImageUnsupportedFormat

HEIF: Final = "HEIF"
JXL: Final = "JXL"
PACKAGES: Final = {HEIF: "pillow_heif", JXL: "pillow_jxl"}
"""The formats, by the names of Pillow's plugins, and the modules that decode them."""
INSTALLED: Final = frozenset(kind for kind, package in PACKAGES.items() if find_spec(package))
"""The formats whose package is installed."""
EXTRA: Final = "shoal[heif]"
"""The extra that installs both packages."""

_CODESTREAM: Final = b"\xff\x0a"
_CODESTREAM_BOXES: Final = {b"jxlc": 0, b"jxlp": 4}
"""The boxes that hold the codestream, and where in them it begins (ISO/IEC 18181-2)."""
_MOST_BOXES: Final = 100
_LENGTHS: Final = (9, 13, 18, 30)
_RATIOS: Final = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def open_with_plugin(
    kind: str, data: bytes, *, check_size: Callable[[tuple[int, int]], None]
) -> ImageFile.ImageFile:
    """The opened image of a format in ``INSTALLED``. The package's errors pass through.

    ``check_size`` gets width and height, and raises if they are too large, before anything is
    decoded.

    Raises:
        ImageUnsupportedFormat: the package is installed and cannot be loaded.
    """
    try:
        _load_plugin(kind)
    except ImportError as exc:
        msg = f"{kind} image: expected a package that decodes it, got: {exc}; reinstall {EXTRA}"
        raise ImageUnsupportedFormat(msg, format=kind) from exc
    if kind == JXL:
        check_size(size_of_jxl(data))
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except BaseException as exc:  # a panic in Rust is not an Exception
        if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
            raise
        raise RuntimeError(str(exc)) from exc


@functools.cache
def _load_plugin(kind: str) -> None:
    """Registers the decoder of ``kind`` with Pillow; ImportError if it cannot be loaded."""
    if kind == HEIF:
        import pillow_heif  # noqa: PLC0415 - 20 ms, for a format that most servers never see

        # Without thumbnails: Pillow's draft would take one for the image.
        pillow_heif.register_heif_opener(
            decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
        )
    elif kind == JXL:
        from pillow_jxl import JpegXLImagePlugin  # noqa: PLC0415 - as above

        JpegXLImagePlugin.DECODE_THREADS = 0


def size_of_jxl(data: bytes) -> tuple[int, int]:
    """Width and height by the header of a JPEG XL (ISO/IEC 18181-1, D.2), which opens decoded.

    Raises:
        ValueError: there is no header.
    """
    at = _codestream(data)
    bits = int.from_bytes(data[at + 2 : at + 14], "little")
    taken = 0

    def take(count: int) -> int:
        nonlocal taken
        taken += count
        return bits >> (taken - count) & ((1 << count) - 1)

    def length(*, small: bool) -> int:
        return 8 * (take(5) + 1) if small else take(_LENGTHS[take(2)]) + 1

    small = bool(take(1))
    height = length(small=small)
    ratio = take(3)
    if ratio == 0:
        return length(small=small), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _codestream(data: bytes) -> int:
    """Where the codestream begins, bare or in the boxes of a container."""
    at = 0
    if data.startswith(_CODESTREAM):
        return at
    for _ in range(_MOST_BOXES):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 16 if size == 1 else 8
        if kind in _CODESTREAM_BOXES:
            start = at + head + _CODESTREAM_BOXES[kind]
            if data.startswith(_CODESTREAM, start):
                return start
            break
        at += int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if size == 0 or at >= len(data):
            break
    raise ValueError("no codestream")
