"""The parts of a file that decide its pixels; limits on the number of parts.

Two things around the pixels are kept from Pillow. It reads metadata, and refuses the whole file if
a profile or a text is damaged or large: here the metadata that nobody reads is left out. And it
reads parts in loops in Python, whose time depends on the number of parts, not on the pixels: 20 MiB
of padding before a JPEG of 32 x 32 take 20 s of a core, with the GIL held. Here the parts are
counted, in a hundredth of that time, and a file with more parts than any camera or tool writes is
refused. A malformed file is left for the decoder to refuse.

JPEG has a module of its own, ``jpeg``.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from PIL import BmpImagePlugin, Image

from shoal.errors import ImageUnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_JUNK_BYTES: Final = 65_536
"""The most bytes of a GIF that are between its blocks and belong to none."""
MAX_CHUNKS: Final = 50_000
"""The most chunks of a PNG. libpng writes 8 KiB of pixels into each."""
MAX_SUB_BLOCKS: Final = 100_000
"""The most sub-blocks of a GIF's extensions before its first image. 20 MiB fit into 82,000."""
MAX_STRIPS: Final = 65_536
"""The most strips or tiles of a TIFF."""
MAX_ENTRIES: Final = 65_535
"""The most entries of a TIFF's directory; a BigTIFF could have more."""

MAX_RUN_LENGTH_PIXELS: Final = 2_100_000
"""The most pixels of a run-length BMP: a screen of 1920 x 1080, which such files show."""

MAX_PNG_TEXT: Final = 2**20
"""The most bytes of a compressed text that is read for a PNG's orientation; Pillow refuses more."""
_PNG_TRANSPARENCY: Final = b"tRNS"
_PNG_ORIENTATIONS: Final = {
    b"eXIf": b"",
    b"tEXt": b"Raw profile type exif\0",
    b"zTXt": b"Raw profile type exif\0",
    b"iTXt": b"XML:com.adobe.xmp\0",
}
"""The kinds of chunk in which Pillow finds an orientation, and how their data begin."""
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = b",!;"
_GIF_CONTROL: Final = 0xF9
"""The extension that says which colour is transparent."""
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_BIG_TIFF: Final = 43
_RUN_LENGTHS: Final = "bmp_rle"
"""Pillow's decoder of run lengths. It is written in Python and takes up to 1 us for a pixel."""


def pixel_parts(kind: str, data: bytes) -> bytes:
    """The file ``data`` without the metadata that nobody reads and that Pillow may refuse.

    ``kind`` is Pillow's name of the format. PNG and GIF are shortened, and TIFF is checked; the
    metadata of other formats is read in C, or when it is asked for.

    Raises:
        ImageUnsupportedFormat: the file has too many of one kind of part; names the kind.
    """
    if kind == "PNG":
        return _of_png(data)
    if kind == "GIF":
        return _of_gif(data)
    if kind == "TIFF":
        _check_tiff(data)
    return data


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


def _of_png(data: bytes) -> bytes:
    """The chunks (PNG, 5.3: length, type, data and CRC) of the pixels and the orientation.

    The frames of an animation after the first are left out too: they have chunks of their own kind.
    """
    at, start = 8, 0
    kept, orientations = list[bytes](), set[bytes]()
    for _ in range(MAX_CHUNKS):
        if at >= len(data):
            kept.append(data[start:])
            return b"".join(kept)
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        # The first letter of a chunk that a reader must understand is a capital.
        if kind[:1].isupper() or kind == _PNG_TRANSPARENCY or end > len(data):
            pass
        elif kind not in orientations and _says_orientation(kind, data[at + 4 : end]):
            orientations.add(kind)
        else:
            kept.append(data[start:at])
            start = end
        at = end
    raise _refuse("PNG", MAX_CHUNKS, "chunks")


def _says_orientation(kind: bytes, chunk: bytes) -> bool:
    """Whether a chunk, from its type to its CRC, may say how a PNG lies, and Pillow can read it."""
    keyword, body = _PNG_ORIENTATIONS.get(kind), chunk[4:-4]
    if keyword is None or not body.startswith(keyword):
        return False
    if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    rest = body[len(keyword) :]
    if kind == b"zTXt":
        return _unpacks(rest[1:])
    if kind == b"iTXt" and rest[:1] != b"\0":  # compressed: flags, language, keyword, text
        return _unpacks(rest[2:].split(b"\0", 2)[-1])
    return True


def _unpacks(packed: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_PNG_TEXT + 1)) <= MAX_PNG_TEXT
    except zlib.error:
        return False


def _of_gif(data: bytes) -> bytes:
    """The file without the extensions before the first image (GIF89a, 15 to 26)."""
    if len(data) < 13:  # noqa: PLR2004 - header and screen descriptor
        return data
    flags = data[10]
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept, blocks, junk = [data[:at]], 0, 0
    while at < len(data):
        kind, start = data[at], at
        if kind in (_GIF_IMAGE, _GIF_END):
            break
        at += 1
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
        if data[start + 1 : start + 2] == bytes((_GIF_CONTROL,)):
            kept.append(data[start:at])
    return b"".join((*kept, data[at:]))


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
