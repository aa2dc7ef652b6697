"""The cost of an image by its header, for files that Pillow wrote, and for any bytes at all."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedder.images.cost import (
    SLOW_MS,
    UNKNOWN_PIXELS,
    WEBP,
    Cost,
    cost_of,
    unknown_cost,
)

SIZE = (170, 90)
RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (90, 170, 3), dtype=np.uint8))


def encoded(kind: str, image: Image.Image = PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif() -> bytes:
    found = Image.Exif()
    found[0x010F] = "x" * 3000
    return found.tobytes()


FILES = {
    "jpeg": encoded("JPEG"),
    "jpeg with metadata": encoded("JPEG", exif=exif(), icc_profile=bytes(70_000)),
    "jpeg progressive": encoded("JPEG", progressive=True),
    "jpeg grey": encoded("JPEG", PHOTO.convert("L")),
    "png": encoded("PNG"),
    "png with alpha": encoded("PNG", PHOTO.convert("RGBA")),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP"),
    "webp lossless": encoded("WEBP", lossless=True),
    "webp with metadata": encoded("WEBP", exif=exif()),
    "webp with alpha": encoded("WEBP", PHOTO.convert("RGBA")),
    "tiff": encoded("TIFF"),
    "tiff lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff big": encoded("TIFF", big_tiff=True),
    "tiff of motorola": encoded("TIFF", PHOTO.convert("I;16B")),
    "avif": encoded("AVIF", speed=10),
}


@pytest.mark.parametrize("name", FILES)
def test_cost_is_that_of_the_pixels_in_the_header(name: str) -> None:
    """Each format, and each form that it comes in; a small image is never slow."""
    cost = cost_of(FILES[name])
    assert cost.pixels == SIZE[0] * SIZE[1]
    assert 0 < cost.ms < SLOW_MS
    assert cost.pixels < cost.memory < 20 * cost.pixels


@pytest.mark.parametrize("name", FILES)
def test_cost_of_a_file_that_is_cut_is_known_or_that_of_an_unknown_one(name: str) -> None:
    """Wherever the file ends, and with any byte changed, there is a cost and no error."""
    data = FILES[name]
    for end in range(0, min(len(data), 600), 7):
        cost = cost_of(data[:end])
        assert cost.pixels in (SIZE[0] * SIZE[1], UNKNOWN_PIXELS) or end < 60
        assert cost_of(data[:end] + b"\xff" + data[end + 1 :]).pixels >= 0


@settings(max_examples=200, deadline=None)
@given(
    begin=st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II", b"MM\x00+", b"BM", b"\0\0\0"]
    ),
    data=st.binary(max_size=300),
)
def test_cost_of_any_bytes_is_a_number(begin: bytes, data: bytes) -> None:
    """Garbage costs what an unknown image costs, or what it says it is."""
    cost = cost_of(begin + data)
    assert cost.pixels >= 0
    assert cost.ms >= 0
    assert cost.memory >= 0


def png_of(width: int, height: int) -> bytes:
    return FILES["png"][:16] + struct.pack(">II", width, height) + FILES["png"][24:]


def test_cost_grows_with_pixels_and_with_bytes() -> None:
    """A large image of few bytes is slow, and so is a small one of many."""
    wide = cost_of(png_of(7000, 7000))
    assert wide.pixels == 49_000_000
    assert wide.ms > 10 * SLOW_MS
    assert wide.memory > 400 * 2**20
    heavy = cost_of(FILES["webp"] + bytes(10_000_000))
    assert heavy.ms == pytest.approx(cost_of(FILES["webp"]).ms + 10 * WEBP.ms_per_mb)


def test_cost_of_a_jpeg_is_by_how_it_is_decoded() -> None:
    """Half its size if it is large; all at once if progressive, where every scan counts."""

    def jpeg_of(width: int, height: int, name: str = "jpeg") -> bytes:
        data = FILES[name]
        at = data.index(b"\xff\xc2" if "progressive" in name else b"\xff\xc0")
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]

    phone, camera = cost_of(jpeg_of(4032, 3024)), cost_of(jpeg_of(8256, 5504))
    assert phone.ms < SLOW_MS
    assert camera.ms < SLOW_MS
    assert phone.memory / phone.pixels == pytest.approx(4.5)
    assert camera.memory / camera.pixels == pytest.approx(1.5)
    small = jpeg_of(1000, 1000, "jpeg progressive")
    scans = small.count(b"\xff\xda")
    assert scans > 3
    more = cost_of(small + b"\xff\xda" * 40)
    assert more.ms - cost_of(small).ms == pytest.approx(40, rel=0.01)
    large = jpeg_of(6000, 4000, "jpeg progressive")
    assert cost_of(large).ms == cost_of(large + b"\xff\xda").ms - 2 * 41 / 1_000_000
    assert cost_of(large).memory == 5 * 24_000_000


def test_cost_of_run_lengths_is_that_of_python() -> None:
    """A BMP in run lengths is decoded a thousand times slower than others."""
    plain = FILES["bmp"]
    runs = plain[:30] + struct.pack("<I", 1) + plain[34:]
    assert cost_of(runs).ms > 100 * cost_of(plain).ms
    upside_down = plain[:22] + struct.pack("<i", -90) + plain[26:]
    assert cost_of(upside_down).pixels == SIZE[0] * SIZE[1]
    oldest = plain[:14] + struct.pack("<IHH", 12, *SIZE) + bytes(8)
    assert cost_of(oldest).pixels == SIZE[0] * SIZE[1]


def test_cost_of_a_tiff_is_that_of_its_tile_if_that_is_larger() -> None:
    """A tile is decoded whole, however small the image is."""
    tiff = b"II*\0" + struct.pack("<IH", 8, 4)
    for tag, value in ((256, 10), (257, 10), (322, 4000), (323, 3000)):
        tiff += struct.pack("<HHII", tag, 4, 1, value)
    assert cost_of(tiff).pixels == 12_000_000


def test_cost_of_what_is_unknown_is_the_dearest() -> None:
    """No weight of a format is above it, so that nothing is gained by being unreadable."""
    assert cost_of(b"no image") == unknown_cost(UNKNOWN_PIXELS, 8)
    unknown = unknown_cost(SIZE[0] * SIZE[1], 0)
    assert isinstance(unknown, Cost)
    for data in FILES.values():
        assert unknown.memory >= cost_of(data).memory
