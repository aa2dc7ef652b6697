"""Limits on the number of parts of a file, checked before Pillow reads it.

Pillow reads the parts around the pixels in loops in Python. Their time depends on the number of
parts, not on the pixels: 20 MiB of padding before a JPEG of 32 x 32 take 20 s of a core, with the
GIL held. Here the parts are counted, in a hundredth of that time, and a file with more parts than
any camera or tool writes is refused. A malformed file is left for the decoder to refuse.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from PIL import BmpImagePlugin, Image, JpegImagePlugin

from shoal.errors import ImageUnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SEGMENTS: Final = 10_000
"""The most segments of a JPEG before its first scan. 20 MiB of metadata fit into 320 full ones."""
MAX_RESOURCES: Final = 10_000
"""The most Photoshop resources in a JPEG. Photoshop writes about fifty."""
MAX_JUNK_BYTES: Final = 65_536
"""The most bytes of a JPEG or a GIF that are between its parts and belong to none."""
MAX_CHUNKS: Final = 50_000
"""The most chunks of a PNG. libpng writes 8 KiB of pixels into each."""
MAX_SUB_BLOCKS: Final = 4_096
"""The most sub-blocks of a GIF's extensions before its first image: 1 MiB of metadata."""
MAX_STRIPS: Final = 65_536
"""The most strips or tiles of a TIFF."""
MAX_ENTRIES: Final = 65_535
"""The most entries of a TIFF's directory; a BigTIFF could have more."""

MAX_RUN_LENGTH_PIXELS: Final = 2_100_000
"""The most pixels of a run-length BMP: a screen of 1920 x 1080, which such files show."""

_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
_SCAN: Final = 0xDA
_RESOURCE: Final = b"8BIM"
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = b",!;"
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_BIG_TIFF: Final = 43
_RUN_LENGTHS: Final = "bmp_rle"
"""Pillow's decoder of run lengths. It is written in Python and takes up to 1 us for a pixel."""


def check_structure(kind: str, data: bytes) -> None:
    """Refuses a file with so many parts that reading around the pixels would take seconds.

    ``kind`` is Pillow's name of the format. JPEG, PNG, GIF and TIFF are checked; the parts of other
    formats are read in C.

    Raises:
        ImageUnsupportedFormat: the file has too many of one kind of part; names the kind.
    """
    check = {"JPEG": _check_jpeg, "PNG": _check_png, "GIF": _check_gif, "TIFF": _check_tiff}
    if kind in check:
        check[kind](data)


def check_run_lengths(image: Image.Image) -> None:
    """Refuses a large run-length BMP, which few programs write.

    Raises:
        ImageUnsupportedFormat: the BMP has too many pixels.
    """
    if not isinstance(image, BmpImagePlugin.BmpImageFile):
        return
    pixels, most = image.width * image.height, MAX_RUN_LENGTH_PIXELS
    if pixels > most and any(tile.codec_name == _RUN_LENGTHS for tile in image.tile):
        msg = f"BMP image: expected at most {most} pixels in run lengths, got {pixels}"
        raise ImageUnsupportedFormat(msg, pixels=str(pixels))


def _refuse(kind: str, most: int, what: str) -> ImageUnsupportedFormat:
    return ImageUnsupportedFormat(f"{kind} image: expected at most {most} {what}, got more")


def _check_jpeg(data: bytes) -> None:
    """Counts segments (ITU T.81, B.1.1) as Pillow reads them: byte by byte up to a marker."""
    at, junk = 2, 0
    for _ in range(MAX_SEGMENTS):
        end = min(at + MAX_JUNK_BYTES + 3 - junk, len(data))
        found = _MARKER.search(data, at, end)
        junk += (found.start() if found else end) - at
        if junk > MAX_JUNK_BYTES:
            raise _refuse("JPEG", MAX_JUNK_BYTES, "bytes between its segments")
        if found is None:
            return
        at = found.end()
        code = data[at - 1]
        known = JpegImagePlugin.MARKER.get(0xFF00 | code)
        if code == _SCAN or known is None:
            if data.count(_RESOURCE, 0, at) > MAX_RESOURCES:
                raise _refuse("JPEG", MAX_RESOURCES, "Photoshop resources")
            return
        if known[2] is not None:  # the segment begins with its length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise _refuse("JPEG", MAX_SEGMENTS, "segments before its first scan")


def _check_png(data: bytes) -> None:
    """Counts chunks (PNG, 5.3): length, type, data and CRC."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at >= len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise _refuse("PNG", MAX_CHUNKS, "chunks")


def _check_gif(data: bytes) -> None:
    """Counts the sub-blocks of the extensions before the first image (GIF89a, 15 to 26)."""
    if len(data) < 13:  # noqa: PLR2004 - header and screen descriptor
        return
    flags = data[10]
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    blocks = junk = 0
    while at < len(data):
        kind = data[at]
        at += 1
        if kind in (_GIF_IMAGE, _GIF_END):
            return
        if kind != _GIF_EXTENSION:
            junk += 1
            if junk > MAX_JUNK_BYTES:
                raise _refuse("GIF", MAX_JUNK_BYTES, "bytes between its blocks")
            continue
        at += 1  # the label
        while at < len(data):
            size = data[at]
            at += 1 + size
            blocks += 1
            if blocks > MAX_SUB_BLOCKS:
                raise _refuse("GIF", MAX_SUB_BLOCKS, "sub-blocks before its first image")
            if not size:
                break


def _check_tiff(data: bytes) -> None:
    """Counts the strips and tiles of the first directory (TIFF 6.0, section 2, and BigTIFF)."""
    for tag, count in _entries(data):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > MAX_STRIPS:
            raise _refuse("TIFF", MAX_STRIPS, "strips or tiles")


def _entries(data: bytes) -> Iterator[tuple[int, int]]:
    """The tag and the number of values of each entry of the directory that the file holds."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (struct.pack("<H", _BIG_TIFF), struct.pack(">H", _BIG_TIFF))
    offset, number, entry = ("8xQ", "Q", "HHQ8x") if big else ("4xL", "H", "HHL4x")
    try:
        (start,) = struct.unpack_from(order + offset, data)
        (entries,) = struct.unpack_from(order + number, data, start)
    except struct.error:
        return
    if entries > MAX_ENTRIES:
        raise _refuse("TIFF", MAX_ENTRIES, "entries of its directory")
    start += struct.calcsize(number)
    size = struct.calcsize(order + entry)
    whole = min(entries, max(0, len(data) - start) // size)
    for tag, _, count in struct.iter_unpack(order + entry, data[start : start + whole * size]):
        yield tag, count
