"""What an image will cost to decode, estimated from its first bytes. Decodes nothing.

A file of 17 kB may have 49 megapixels that take a core most of a second and 900 MiB. So images are
admitted, shared out and decoded by their cost, and this module says the cost: pixels by the header,
times the weight of the format, and a weight of the coded bytes.

The header is read as quickly as can be, in a few microseconds, and never believed: an image may
have no more pixels than this module said (``embedder.images.decoding`` holds decoders to it).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

_MEGA: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """The estimated cost of an image.

    Attributes:
        pixels: width times height by the header; UNKNOWN_PIXELS where it cannot be read.
        ms: milliseconds of one core.
        memory: bytes at the peak.
    """

    pixels: int
    ms: float
    memory: int


@dataclass(frozen=True, slots=True)
class Weight:
    """What a format costs: ms for a megapixel and for a megabyte of the file, bytes for a pixel."""

    ms_per_mp: float
    ms_per_mb: float
    bytes_per_pixel: float


# Measured on one core of an AMD EPYC with Pillow 13 on flat, patterned and noisy images of 6 to 49
# megapixels, rounded up. bytes_per_pixel: the growth of the process's peak.
JPEG: Final = Weight(1.0, 16, 4.5)
JPEG_REDUCED: Final = Weight(1.0, 16, 1.5)
"""A JPEG so large that it is decoded at half its size or less."""
JPEG_PROGRESSIVE: Final = Weight(5.0, 41, 5.0)
PNG: Final = Weight(12.0, 5, 9.0)
WEBP: Final = Weight(13.0, 66, 19.5)
GIF: Final = Weight(6.0, 5, 7.0)
TIFF: Final = Weight(12.0, 4, 12.0)
BMP: Final = Weight(4.0, 1, 6.0)
BMP_RUN_LENGTHS: Final = Weight(1_100.0, 1, 10.0)
"""Pillow decodes run lengths in Python, up to 1 us for a pixel."""
AVIF: Final = Weight(10.0, 70, 10.0)
OTHER: Final = Weight(13.0, 70, 19.5)
"""A format, or a header, that this module cannot read: as the dearest one."""

MS_PER_SCAN_MP: Final = 1.0
"""What each scan of a progressive JPEG adds for a megapixel."""
UNKNOWN_PIXELS: Final = 1_000_000
"""The pixels of an image whose header cannot be read; most such files are no images."""

_REDUCED_EDGE: Final = 3_072
"""A JPEG whose edges are longer than this is decoded at half its size by an encoder of up to 384
pixels (``preprocess.DRAFT_MARGIN``)."""
SLOW_MS: Final = 50.0
"""An image that takes longer is slow: it is decoded apart from the others."""
_MOST_SEGMENTS: Final = 64
_MOST_ENTRIES: Final = 256
_AVIF_HEAD: Final = 64 * 2**10

_SOF_PROGRESSIVE: Final = 0xC2
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers SOF0 to SOF15; those left out are no frames: DHT, JPG, DAC."""
_START_OF_SCAN: Final = b"\xff\xda"
_TIFF_WIDTH, _TIFF_HEIGHT, _BIG_TIFF = 256, 257, 43
_TIFF_TILE: Final = (322, 323)


def cost_of(data: bytes) -> Cost:
    """The cost of the encoded image ``data``; what cannot be read is one megapixel of ``OTHER``."""
    for begin, read in _READERS:
        if data.startswith(begin):
            try:
                pixels, weight = read(data)
            except (IndexError, OverflowError, ValueError, struct.error):
                break
            return _with_scans(_cost(pixels, weight, len(data)), weight, data)
    return unknown_cost(UNKNOWN_PIXELS, len(data))


def unknown_cost(pixels: int, size: int) -> Cost:
    """The cost of an image of at most ``pixels`` whose header was not right; ``size``: bytes."""
    return _cost(pixels, OTHER, size)


def _cost(pixels: int, weight: Weight, size: int) -> Cost:
    ms = (pixels * weight.ms_per_mp + size * weight.ms_per_mb) / _MEGA
    return Cost(pixels, ms, round(pixels * weight.bytes_per_pixel))


def _with_scans(cost: Cost, weight: Weight, data: bytes) -> Cost:
    """``cost``, and that of a progressive JPEG's scans: each passes over all pixels.

    They are not counted where the image is slow without them: counting takes a millisecond for a
    megabyte.
    """
    if weight is not JPEG_PROGRESSIVE or cost.ms > SLOW_MS:
        return cost
    scans = data.count(_START_OF_SCAN)
    return replace(cost, ms=cost.ms + scans * cost.pixels * MS_PER_SCAN_MP / _MEGA)


def _jpeg(data: bytes) -> tuple[int, Weight]:
    """The first frame header (ITU T.81, B.2.2)."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        at = data.index(b"\xff", at) if data[at] != 0xFF else at  # noqa: PLR2004 - a marker
        while data[at] == 0xFF:  # noqa: PLR2004 - any number of fill bytes
            at += 1
        code = data[at]
        if code in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 4)
            if code == _SOF_PROGRESSIVE:
                return width * height, JPEG_PROGRESSIVE
            return width * height, JPEG_REDUCED if min(width, height) > _REDUCED_EDGE else JPEG
        at += 1 + int.from_bytes(data[at + 1 : at + 3], "big")
    raise IndexError


def _png(data: bytes) -> tuple[int, Weight]:
    width, height = struct.unpack_from(">II", data, 16)
    return width * height, PNG


def _gif(data: bytes) -> tuple[int, Weight]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width * height, GIF


def _bmp(data: bytes) -> tuple[int, Weight]:
    if data[14] == 12:  # noqa: PLR2004 - the size of the oldest header
        width, height = struct.unpack_from("<HH", data, 18)
        return width * height, BMP
    width, height, _, _, coding = struct.unpack_from("<iiHHI", data, 18)
    return abs(width * height), BMP_RUN_LENGTHS if coding in (1, 2) else BMP


def _webp(data: bytes) -> tuple[int, Weight]:
    """The first chunk (RFC 9649, 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        size = [1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)]
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        size = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    else:
        size = [each & 0x3FFF for each in struct.unpack_from("<HH", data, 26)]
    return size[0] * size[1], WEBP


def _tiff(data: bytes) -> tuple[int, Weight]:
    """Width and height in the first directory (TIFF 6.0, section 2, and BigTIFF).

    Or those of its tiles, if they are larger: a tile is decoded whole.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = _BIG_TIFF in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    found = dict.fromkeys((_TIFF_WIDTH, _TIFF_HEIGHT, *_TIFF_TILE), 0)
    for _ in range(min(entries, _MOST_ENTRIES)):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in found:
            short = {3: "H", 4: "I"}.get(kind, "Q")
            (found[tag],) = struct.unpack_from(order + short, data, at + (12 if big else 8))
        at += 20 if big else 12
    pixels = found[_TIFF_WIDTH] * found[_TIFF_HEIGHT]
    if not pixels:
        raise IndexError
    return max(pixels, found[_TIFF_TILE[0]] * found[_TIFF_TILE[1]]), TIFF


def _avif(data: bytes) -> tuple[int, Weight]:
    """The largest of the sizes that the header names (ISO/IEC 23008-12, 6.5.3)."""
    head = data[:_AVIF_HEAD]
    pixels, at = 0, head.find(b"ispe")
    while at >= 0:
        width, height = struct.unpack_from(">II", head, at + 8)
        pixels = max(pixels, width * height)
        at = head.find(b"ispe", at + 4)
    if not pixels:
        raise IndexError
    return pixels, AVIF


_READERS: Final[tuple[tuple[bytes, Callable[[bytes], tuple[int, Weight]]], ...]] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG", _png),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
    (b"II", _tiff),
    (b"MM", _tiff),
    (b"BM", _bmp),
    (b"\0\0\0", _avif),
)
