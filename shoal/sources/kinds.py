"""What a file is, by its first bytes and its suffix."""

from __future__ import annotations

import os
from typing import Final

_SUFFIXES: Final = (
    ".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff "
    ".avif .avifs .heic .heics .heif .heifs .hif .jxl .jp2 .j2k .jpf .jpx"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""A file with one of these suffixes is sent whatever its bytes are: the server says what is wrong
with it."""

HEAD_BYTES: Final = 512
"""As many bytes as the longest rule below looks at: a tar's mark is at byte 257."""

_STARTS = (
    b"\xff\xd8\xff",  # JPEG, MPO
    b"\x89PNG\r\n\x1a\n",  # PNG, APNG
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"II+\0",  # BigTIFF
    b"MM\0+",
    b"\xff\x0a",  # JPEG XL, without and with a container
    b"\0\0\0\x0cJXL \r\n\x87\n",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
)
_BRANDS = frozenset(
    b"avif avis heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 miaf".split()
)
"""What an ISO media file says that it is, if it is a picture (ISO/IEC 23008-12, MIAF, AVIF)."""
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
"""The sizes that the second header of a BMP has."""

_RAW: Final = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
    ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
)
_RAW_SUFFIXES = frozenset(_RAW.split())
_RAW_STARTS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb")

_OTHERS: Final = (
    ".svg .svgz .psd .psb .xcf .ico .icns .cur .eps .exr .hdr .dds .tga .pcx .pbm .pgm .ppm .pnm "
    ".jxr .wdp .wmf .emf"
)
_OTHER_SUFFIXES = frozenset(_OTHERS.split())
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""gzip, bzip2, xz, zstd."""
_OTHER_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a tar's name is no path


def is_hidden(name: str) -> bool:
    """True when ``name``, of a file or in a tar, begins with a point."""
    return name.rpartition("/")[2].startswith(".")


def has_image_suffix(name: str) -> bool:
    """True when ``name`` ends as an image's does."""
    return _suffix(name) in IMAGE_SUFFIXES


def is_tar(head: bytes) -> bool:
    """True when a file that begins with ``head`` is a tar (of 1988 or later), not compressed."""
    return head[257:262] == b"ustar"


def is_compressed(head: bytes) -> bool:
    """True when a file that begins with ``head`` is compressed as a tar may be, and no image is."""
    return head.startswith(_COMPRESSED)


def is_image(head: bytes) -> bool:
    """True when a file that begins with ``head`` is an image, of a format that Shoal may know."""
    if is_tar(head):
        return False
    if head.startswith(_STARTS):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if head[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    return not _BRANDS.isdisjoint(brands)


def reason_to_leave_out(name: str, head: bytes) -> str:
    """Why the file ``name``, which begins with ``head``, is left out; empty if it is sent.

    The rule is for the files of a directory or tar. A file that is named by itself is always sent.
    """
    if is_hidden(name):
        return "hidden"
    if has_image_suffix(name):
        return ""
    canon = head.startswith(b"II*\0") and head[8:10] == b"CR"
    if _suffix(name) in _RAW_SUFFIXES or canon or head.startswith(_RAW_STARTS):
        return "camera_raw"
    if is_image(head):
        return ""
    if _suffix(name) in _OTHER_SUFFIXES:
        return "other_image"
    archive = is_tar(head) or is_compressed(head) or head.startswith(_OTHER_ARCHIVES)
    return "archive" if archive else "not_an_image"
