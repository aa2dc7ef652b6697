"""What files are: by their first bytes, whatever their names say."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import pytest
from PIL import Image

from shoal.sources.kinds import HEAD_BYTES, is_image, reason_to_leave_out
from shoal.sources.left_out import REASONS


def picture(kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 30)).save(data, kind, **options)
    return data.getvalue()[:HEAD_BYTES]


def ftyp(major: bytes, *others: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(others)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands


@pytest.mark.parametrize(
    "head",
    [
        picture("JPEG"),
        picture("MPO", save_all=True, append_images=[Image.new("RGB", (8, 6))]),
        picture("PNG"),
        picture("PNG", save_all=True, append_images=[Image.new("RGB", (8, 6), (1, 2, 3))]),
        picture("GIF"),
        picture("BMP"),
        picture("TIFF"),
        picture("TIFF", big_tiff=True),
        b"MM\0*\0\0\0\x08",
        b"MM\0+\0\x08\0\0",
        b"GIF87a",
        b"GIF89a",
        ftyp(b"msf1", b"hevc"),
        picture("WEBP"),
        picture("AVIF"),
        picture("JPEG2000"),
        picture("JPEG2000", no_jp2=True),
        ftyp(b"heic", b"mif1", b"heic"),
        ftyp(b"mif1", b"MiHE", b"miaf", b"heix"),
        b"\xff\x0a\xfa\x7f",
        b"\0\0\0\x0cJXL \r\n\x87\n",
    ],
    ids=range(21),
)
@pytest.mark.parametrize("name", ["a", "IMG_1", "x.HEIC", "x.jfif", "x.txt", "d/x.dat", "x.JPG"])
def test_an_image_is_one_by_its_content(head: bytes, name: str) -> None:
    """Without a suffix, and with any."""
    assert is_image(head)
    assert reason_to_leave_out(name, head) == ""


def sound() -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(600))
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("notes.txt", b"BM is how this text begins, and goes on", "not_an_image"),
        ("empty", b"", "not_an_image"),
        ("sound.wav", sound()[:HEAD_BYTES], "not_an_image"),
        ("film.mp4", ftyp(b"isom", b"iso2", b"avc1", b"mp41"), "not_an_image"),
        ("film.mov", ftyp(b"qt  ", b"qt  "), "not_an_image"),
        ("film.mp4", ftyp(b"isom") + b"\0\0\0\x08heic", "not_an_image"),
        ("drawing.SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "other_image"),
        (".x.jpg", picture("JPEG"), "hidden"),
        ("d/._x.jpg", b"\0\x05\x16\x07", "hidden"),
        ("x.NEF", picture("TIFF"), "camera_raw"),
        ("x", b"II*\0\x10\0\0\0CR\x02\0", "camera_raw"),
        ("x", b"FUJIFILMCCD-RAW 0201", "camera_raw"),
        ("x.psd", b"8BPS", "other_image"),
        ("x.ico", picture("PNG"), ""),
        *(
            ("x", start + bytes(20), "camera_raw")
            for start in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb")
        ),
        *((f"x.{raw}", b"II*\0", "camera_raw") for raw in ("dng", "ARW", "cr2", "raf", "orf")),
        *((f"x.{other}", b"", "other_image") for other in ("svgz", "exr", "TGA", "ppm", "xcf")),
        ("x.tbz", b"BZh9", "archive"),
        ("x.txz", b"\xfd7zXZ\0", "archive"),
        ("x.zst", b"\x28\xb5\x2f\xfd", "archive"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c", "archive"),
        ("x.rar", b"Rar!\x1a\x07", "archive"),
        ("x.tgz", b"\x1f\x8b\x08\0", "archive"),
        ("x.zip", b"PK\x03\x04", "archive"),
        ("x.tar", b"name" + bytes(253) + b"ustar\0", "archive"),
        ("x.JPG", b"this is no image", ""),
        ("d.x/x.heif", b"", ""),
    ],
)
def test_what_is_left_out_has_a_reason(name: str, head: bytes, reason: str) -> None:
    """A file that is called an image is sent, so that the server says what is wrong with it."""
    assert reason_to_leave_out(name, head) == reason


SUFFIXES = "jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif heic heif hif jxl jp2 j2k"


def test_a_file_that_is_called_an_image_is_sent() -> None:
    """Whatever is in it, in capitals or not: the server names what is wrong."""
    for suffix in SUFFIXES.split():
        for name in (f"x.{suffix}", f"d.d/X.{suffix.upper()}"):
            assert reason_to_leave_out(name, b"text") == "", name


def test_each_reason_has_its_words() -> None:
    """What is counted can be told."""
    heads = [b"", b"PK\x03\x04", b"II*\0\x10\0\0\0CR"]
    names = ["x", ".x", "x.nef", "x.svg"]
    found = {reason_to_leave_out(name, head) for name in names for head in heads}
    assert found == {"not_an_image", "archive", "camera_raw", "hidden", "other_image"}
    assert found <= REASONS.keys()
