"""Formats by their first bytes: decoded, or refused by their names."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
from typing import Any

import pytest
from PIL import Image

from embedder.images.formats import ALL_FORMATS, format_of, name_of
from embedder.images.limits import FORMATS, ImageLimits
from shoal.errors import ImageUnsupportedFormat

LIMITS = ImageLimits()


def encode(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, kind, **options)
    return out.getvalue()


def media(brand: bytes, *others: bytes) -> bytes:
    """The beginning of an ISO base media file."""
    box = b"ftyp" + brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(box) + 4) + box + b"\0\0\1\0meta" + bytes(100)


@pytest.mark.parametrize(
    "kind", sorted(ALL_FORMATS & {"AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"})
)
def test_what_pillow_writes_is_known(kind: str) -> None:
    """By content: there is no name to look at."""
    assert format_of(encode(kind), LIMITS) == kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (media(b"avif"), "AVIF"),
        (media(b"avis"), "AVIF"),
        (media(b"mif1", b"miaf", b"avif"), "AVIF"),
    ],
)
def test_every_signature_of_a_format_is_known(data: bytes, kind: str) -> None:
    """In both byte orders, small and big, still and moving."""
    if kind in ALL_FORMATS:
        assert format_of(data, LIMITS) == kind


NAMES: list[tuple[bytes, str]] = [
    (media(b"crx ", b"isom"), "CR3 (camera raw)"),
    (media(b"qt  "), "QuickTime (MOV)"),
    (media(b"isom", b"mp42"), "MP4 or another film of its family"),
    (media(b"M4A ", b"isom"), "MPEG-4 audio"),
    (b"\0\0\0\x08moov" + bytes(9), "QuickTime (MOV)"),
    (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "JPEG 2000"),
    (b"\xff\x4f\xff\x51" + bytes(20), "JPEG 2000"),
    (b"II\xbc\x01" + bytes(20), "JPEG XR"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI" + bytes(9), "PNG as Apple's tools crush it (CgBI)"),
    (b"II*\0\x10\0\0\0CR\2\0" + bytes(20), "CR2 (camera raw)"),
    (b"IIRO\x08\0\0\0", "ORF (camera raw)"),
    (b"IIU\0\x18\0\0\0", "RW2 (camera raw)"),
    (b"FUJIFILMCCD-RAW 0201", "RAF (camera raw)"),
    (b"FOVb\1\2\3\4", "X3F (camera raw)"),
    (b"%PDF-1.7\n", "PDF"),
    (b"%!PS-Adobe-3.0 EPSF", "PostScript"),
    (b"8BPS\0\1" + bytes(20), "PSD (Photoshop)"),
    (b"\0\0\1\0\1\0" + bytes(20), "ICO"),
    (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR"),
    (b"#?RADIANCE\n", "Radiance HDR"),
    (b"DDS \x7c\0\0\0", "DDS"),
    (b"qoif\0\0\0\1", "QOI"),
    (bytes(128) + b"DICM" + bytes(9), "DICOM"),
    (b"SIMPLE  =                    T", "FITS"),
    (b"\x1aE\xdf\xa3" + bytes(20), "WebM or Matroska"),
    (b"RIFF\x24\0\0\0AVI LIST", "AVI"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "WAV"),
    (b"PK\3\4" + bytes(20), "a ZIP archive"),
    (gzip.compress(b"<svg/>", mtime=0), "a gzip file"),
    (b"name".ljust(257, b"\0") + b"ustar\0", "a tar archive"),
    (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "macOS's notes on a file (AppleDouble), not the file"),
    (bytes(500), "a file that begins with zeros, as an unfinished download does"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer, not its file",
    ),
    (b"<svg xmlns='x'/>", "SVG"),
    (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns='x'/>", "SVG"),
    (b"<?xml version='1.0'?><rss/>", "XML"),
    (b"\n<!DOCTYPE html>\n<html><body><svg/></body></html>", "SVG"),
    (b"<!DOCTYPE html><html lang='en'>" + b" " * 2000, "a web page (HTML)"),
    (b"<HTML><HEAD><TITLE>404</TITLE>", "a web page (HTML)"),
    (b'{"error": "not found"}', "JSON"),
    (b"P6\n1 1\n255\n\0\0\0", "PNM"),
    (b"hello, world", "text"),
    ("Ein schöner Gruß\n".encode(), "text"),
]


@pytest.mark.parametrize(("data", "name"), NAMES)
def test_a_file_of_another_kind_is_named(data: bytes, name: str) -> None:
    """A sound file is not a corrupt one: its sender is told what was sent."""
    if name == "SVG" and b"DOCTYPE" in data:
        name = "a web page (HTML)"
    with pytest.raises(ImageUnsupportedFormat) as caught:
        format_of(data, LIMITS)
    accepted = ", ".join(sorted(ALL_FORMATS))
    assert caught.value.message.startswith(f"image: expected one of {accepted}, got {name}")
    assert caught.value.metadata["format"] == name


@pytest.mark.parametrize("data", [b"x", b"\xfe\xed\0\1\2\3", b"RIFF\0\0\0\0what"])
def test_an_unknown_file_is_told_by_its_first_bytes(data: bytes) -> None:
    """So that its sender can find out."""
    with pytest.raises(
        ImageUnsupportedFormat, match="got unknown first bytes " + data[:8].hex(" ")
    ):
        format_of(data, LIMITS)
    assert name_of(data) is None


def test_a_format_that_the_limits_leave_out_is_named() -> None:
    """A deployment can accept fewer formats."""
    limits = ImageLimits(formats=frozenset({"PNG"}))
    with pytest.raises(ImageUnsupportedFormat, match="expected one of PNG, got GIF"):
        format_of(encode("GIF"), limits)
    assert format_of(encode("PNG"), limits) == "PNG"
    assert ALL_FORMATS <= FORMATS


def test_the_start_of_a_file_may_be_short() -> None:
    """Every beginning of every file has an answer."""
    for data, _ in NAMES:
        for end in range(1, min(len(data), 300)):
            with contextlib.suppress(ImageUnsupportedFormat):
                assert format_of(data[:end], LIMITS) in ALL_FORMATS
