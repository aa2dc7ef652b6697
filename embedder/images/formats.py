"""The format of a file by its first bytes: one that is decoded, or one that is refused by its name.

What a name says about a file is not looked at. A sound file of another kind is told what it is, so
that nobody takes it for a damaged image.
"""

from __future__ import annotations

import re
from typing import Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from embedder.images.limits import FORMATS, ImageLimits
from embedder.images.plugins import EXTRA, HEIF, INSTALLED, JXL, PACKAGES
from shoal.errors import ImageUnsupportedFormat

# Naming the plugin classes also registers them: otherwise the first WebP or TIFF of a process
# would make Pillow import every plugin it has.
JPEG: Final = JpegImagePlugin.JpegImageFile.format
PNG: Final = PngImagePlugin.PngImageFile.format
WEBP: Final = WebPImagePlugin.WebPImageFile.format
GIF: Final = GifImagePlugin.GifImageFile.format
BMP: Final = BmpImagePlugin.BmpImageFile.format
TIFF: Final = TiffImagePlugin.TiffImageFile.format
AVIF: Final = AvifImagePlugin.AvifImageFile.format
_MISSING: Final = frozenset(PACKAGES) - INSTALLED | (set() if features.check("avif") else {AVIF})
ALL_FORMATS: Final = FORMATS - _MISSING
"""The formats that are decoded here: Pillow may be built without AVIF, and HEIF and JPEG XL have
packages of their own."""

SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"BM", BMP),
    (b"II*\x00", TIFF),
    (b"MM\x00*", TIFF),
    (b"II+\x00", TIFF),
    (b"MM\x00+", TIFF),
    (b"\xff\x0a", JXL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JXL),
)
AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
)
"""The brands of ISO/IEC 23008-12 for HEVC."""
HEIF_GENERAL: Final = frozenset({b"mif1", b"mif2", b"msf1"})
"""The brands of an image of any coding: of HEVC, if no other brand is known."""
MAX_FTYP_BYTES: Final = 256
"""How much of a file type box (ISO/IEC 14496-12, 4.3) is searched for brands."""

_BRANDS: Final[tuple[tuple[frozenset[bytes], str], ...]] = (
    (frozenset({b"crx "}), "CR3 (camera raw)"),
    (frozenset({b"qt  "}), "QuickTime (MOV)"),
    (frozenset({b"M4A ", b"M4B "}), "MPEG-4 audio"),
)
"""Brands of ISO base media files, the first that fits, and what they are."""
_OTHERS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not its file"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (12, b"CgBI", "PNG as Apple's tools crush it (CgBI)"),
    (8, b"CR\x02", "CR2 (camera raw)"),
    (0, b"II\x1a\0\0\0HEAPCCDR", "CRW (camera raw)"),
    (0, b"IIRO", "ORF (camera raw)"),
    (0, b"IIRS", "ORF (camera raw)"),
    (0, b"MMOR", "ORF (camera raw)"),
    (0, b"IIU\0", "RW2 (camera raw)"),
    (0, b"FUJIFILMCCD-RAW", "RAF (camera raw)"),
    (0, b"FOVb", "X3F (camera raw)"),
    (0, b"\0MRM", "MRW (camera raw)"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"8BPS", "PSD (Photoshop)"),
    (0, b"gimp xcf", "XCF (GIMP)"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0", "CUR"),
    (0, b"icns", "ICNS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"FLIF", "FLIF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"\x8aMNG", "MNG"),
    (0, b"\x8bJNG", "JNG"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"AT&TFORM", "DjVu"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (4, b"ftyp", "MP4 or another film of its family"),
    (4, b"moov", "QuickTime (MOV)"),
    (4, b"mdat", "QuickTime (MOV)"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (8, b"AVI ", "AVI"),
    (8, b"WAVE", "WAV"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b"fLaC", "FLAC"),
    (0, b"\0\0\1\xba", "an MPEG film"),
    (0, b"\0\0\1\xb3", "an MPEG film"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\0\x05\x16\x07", "macOS's notes on a file (AppleDouble), not the file"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, bytes(16), "a file that begins with zeros, as an unfinished download does"),
)
"""Other files that are taken for images: where their signature is, the signature, their name."""
_MARKUP: Final[tuple[tuple[bytes, str], ...]] = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"<head", "a web page (HTML)"),
    (b"<body", "a web page (HTML)"),
)
"""What a text is that begins with an angle bracket, by the first of these tags in it."""
_TEXTS: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"P[1-7FfnN]\s"), "PNM"),
    (re.compile(rb"[\[{]\s*[\"\[{}\]0-9-]"), "JSON"),
    (re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]{8,}\Z"), "text"),
)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_TEXT_BYTES: Final = 1024
"""How much of a file is looked at for a text."""


def format_of(data: bytes, limits: ImageLimits) -> str:
    """Pillow's name of the format of ``data``, which ``limits`` accept.

    Raises:
        ImageUnsupportedFormat: it is not accepted, or of another kind; names it.
    """
    formats = limits.formats & ALL_FORMATS
    accepted = ", ".join(sorted(formats))
    kind = _known(data)
    if kind in formats:
        return kind
    name = _SPOKEN.get(kind, kind) if kind is not None else name_of(data)
    if name is None:
        msg = f"image: expected one of {accepted}, got unknown first bytes {data[:8].hex(' ')}"
        raise ImageUnsupportedFormat(msg, accepted=accepted)
    msg = f"image: expected one of {accepted}, got {name}"
    if kind in PACKAGES and kind not in INSTALLED:
        msg += f"; convert it to one of these, or install {EXTRA} where it is decoded"
    raise ImageUnsupportedFormat(msg, accepted=accepted, format=name)


_SPOKEN: Final = {HEIF: "HEIC", JXL: "JPEG XL"}
"""The names by which people know formats, where Pillow has others."""


def _known(data: bytes) -> str | None:
    """Pillow's name of the format, if Shoal decodes it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    brands = _brands(data)
    if brands & AVIF_BRANDS:
        return AVIF
    if brands & HEIF_BRANDS or (brands & HEIF_GENERAL and b"crx " not in brands):
        return HEIF
    if data[12:16] == b"CgBI" or data[8:11] == b"CR\x02":
        return None
    return next((name for magic, name in SIGNATURES if data.startswith(magic)), None)


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO base media file; empty for any other file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), MAX_FTYP_BYTES)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def name_of(data: bytes) -> str | None:
    """What a file is that Shoal does not decode; None if it is not known."""
    brands = _brands(data)
    for some, name in _BRANDS:
        if brands & some:
            return name
    for at, signature, name in _OTHERS:
        if data.startswith(signature, at):
            return name
    text = data[:_TEXT_BYTES].removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"<"):
        lower = text.lower()
        found = [(lower.find(tag), name) for tag, name in _MARKUP if tag in lower]
        if found:
            return min(found)[1]
        if lower.startswith(b"<?xml"):
            return "XML"
    return next((name for pattern, name in _TEXTS if pattern.match(text)), None)
