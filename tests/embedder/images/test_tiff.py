"""TIFFs that Pillow reads as something else: right, or refused by their names."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images.preprocess import ImageLimits, decode
from shoal.errors import ImageCorrupt, ImageTooManyPixels, ImageUnsupportedFormat

SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
SIDE = 256
RAMP = np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1))
"""Every grey of 8 bits, from left to right."""


def tiff(
    strips: list[bytes], *, order: str = "<", size: tuple[int, int] = (SIDE, SIDE), **tags: Any
) -> bytes:
    """An uncompressed TIFF of ``strips`` with ``tags`` (named ``t262``; a value or several)."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    at, offsets = 8, []
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    entries: dict[int, Any] = {
        256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 273: offsets, 277: 1, 278: size[1],
        279: [len(strip) for strip in strips],
    }  # fmt: skip
    entries |= {int(name[1:]): value for name, value in tags.items()}
    directory, beyond = b"", b""
    start = at + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        values = entries[tag] if isinstance(entries[tag], (list, tuple)) else [entries[tag]]
        packed = struct.pack(order + f"{len(values)}I", *values)
        where = packed
        if len(packed) > 4:
            where = struct.pack(order + "I", start + len(beyond))
            beyond += packed
        directory += struct.pack(order + "HHI", tag, 4, len(values)) + where
    table = struct.pack(order + "H", len(entries)) + directory + bytes(4)
    return head + struct.pack(order + "I", at) + b"".join(strips) + table + beyond


def deep(values: npt.NDArray[Any], order: str = "<", **tags: Any) -> bytes:
    """A grey TIFF of 16 bits."""
    return tiff([values.astype(order + "u2").tobytes()], order=order, t258=16, **tags)


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return decode(data, limits=ImageLimits(), spec=SPEC)


def assert_is_the_ramp(data: bytes) -> None:
    expected = pixels(tiff([RAMP.tobytes()])).astype(int)
    assert np.abs(pixels(data) - expected).max() <= 1
    assert expected.std() > 50


def packed12(values: npt.NDArray[np.uint16]) -> bytes:
    """Two samples of 12 bits in three bytes."""
    one, other = values.reshape(-1, 2).T
    return (
        np.stack([one >> 4, (one & 15) << 4 | other >> 8, other & 255], -1)
        .astype(np.uint8)
        .tobytes()
    )


RAMP16 = RAMP.astype(np.uint16) * 257


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_grey_is_scaled(order: str) -> None:
    """16 bits of either byte order become 8."""
    assert_is_the_ramp(deep(RAMP16, order))


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_may_be_zero(order: str) -> None:
    """In 16 bits as in 8; Pillow does not read the one of 16 bits in the other byte order."""
    assert_is_the_ramp(tiff([(255 - RAMP).tobytes()], order=order, t262=0))
    inverse = deep(65535 - RAMP16, order, t262=0)
    if order == "<":
        assert_is_the_ramp(inverse)
    else:
        with pytest.raises(ImageUnsupportedFormat, match=r"not read \(photometric 0, bits"):
            pixels(inverse)


def test_a_bright_picture_whose_white_is_zero_stays_bright() -> None:
    """Its small values are its white: they say nothing about the number of bits."""
    got = pixels(deep(RAMP16 >> 4, t262=0))
    assert got.min() >= 239


def test_samples_of_12_bits_are_scaled() -> None:
    """Packed, as the tag says; white as zero, too."""
    values = RAMP16 >> 4
    assert_is_the_ramp(tiff([packed12(values)], t258=12))


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("order", ["<", ">"])
def test_few_bits_in_16_are_scaled(bits: int, order: str) -> None:
    """Cameras and microscopes write 10 or 12 bits into 16; as 16 they would be nearly black."""
    assert_is_the_ramp(deep(RAMP16 >> 16 - bits, order))


def test_the_largest_sample_may_be_told() -> None:
    """A dark picture of 12 bits keeps its darkness where the file says that they are 12."""
    dark = (RAMP16 >> 4) // 8
    got = pixels(deep(dark, t281=4095))
    assert np.abs(got.astype(int) - pixels(tiff([(RAMP // 8).tobytes()]))).max() <= 1
    assert pixels(deep(dark)).max() > 100  # not told, it is taken for one of 10 bits
    told = pixels(deep(dark, t281=3000))  # the largest there is, and no number of bits
    np.testing.assert_array_equal(told, pixels(deep(dark)))


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    """13 bits and more are no camera's: the picture is dark."""
    got = pixels(deep(RAMP16 >> 3))
    assert 28 <= got.max() <= 32
    assert pixels(deep(RAMP16 * 0)).max() == 0


CFA = {"t262": 32803}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff([RAMP.tobytes()], t50706=0x01040000), r"got DNG \(camera raw\)"),
        (tiff([RAMP.tobytes()], t254=1, t330=8), "first picture is a thumbnail"),
        (tiff([RAMP.tobytes()], t339=2), "got signed samples"),
        (deep(RAMP16, t339=2), "got signed samples"),
        (tiff([RAMP.tobytes()], **CFA), "got camera raw"),
        (deep(RAMP16, t262=34892), "got camera raw"),
        (
            tiff([RAMP16.tobytes()] * 3, t258=(16, 16, 16), t262=2, t277=3, t284=2),
            "got 16-bit samples in planes",
        ),
        (tiff([RAMP16.tobytes()], t258=14), r"layout that Pillow does not read \(.*bits \(14,\)"),
        (tiff([RAMP16.tobytes()], t258=16, t339=3), "layout that Pillow does not read"),
        (tiff([RAMP.tobytes()], t259=34712), "compression 34712"),
        (tiff([RAMP.tobytes()], t262=9), "layout that Pillow does not read"),
    ],
)
def test_a_tiff_of_another_kind_is_named(data: bytes, said: str) -> None:
    """Whatever it is called, its thumbnail is not taken for it, and it is not called damaged."""
    with pytest.raises(ImageUnsupportedFormat, match=said):
        pixels(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "tags",
    [
        {"t34665": 2**31},
        {"t34665": 8},
        {"t34665": (5, 6, 7)},
        {"t34853": 77},
        {"t40965": 50},
        {"t330": 2**31},
        {"t34675": (1, 2, 3)},
        {"t282": 0},
    ],
)
def test_damaged_metadata_costs_no_picture(tags: dict[str, Any]) -> None:
    """Directories of EXIF, GPS and previews that lead nowhere; a profile that is none."""
    assert_is_the_ramp(tiff([RAMP.tobytes()], **tags))


def test_planes_of_8_bits_are_read() -> None:
    """Red, green and blue one after the other."""
    planes = [RAMP.tobytes(), RAMP[:, ::-1].tobytes(), bytes(SIDE * SIDE)]
    got = pixels(tiff(planes, t258=(8, 8, 8), t262=2, t277=3, t284=2))
    grey = pixels(tiff([RAMP.tobytes()]))
    assert np.abs(got[:, :, 0].astype(int) - grey[:, :, 0]).max() <= 1
    assert np.abs(got[:, ::-1, 1].astype(int) - grey[:, :, 0]).max() <= 1
    assert got[:, :, 2].max() == 0


def test_a_smaller_copy_without_another_is_the_picture() -> None:
    """A page that calls itself a reduced one, alone in its file, is all that there is."""
    assert_is_the_ramp(tiff([RAMP.tobytes()], t254=1))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("end", [8, 9, 20, SIDE * SIDE + 8, SIDE * SIDE + 60])
def test_a_damaged_tiff_is_corrupt(end: int) -> None:
    """A directory that is not there says nothing about a kind."""
    with pytest.raises(ImageCorrupt):
        pixels(tiff([RAMP.tobytes()])[:end])


def test_a_tile_that_is_larger_than_an_image_may_be_is_refused() -> None:
    """A tile is decoded whole, however small the image that it belongs to."""
    side = 4096
    tile = zlib.compress(bytes(side * side), 1)
    tags = {"t259": 8, "t322": side, "t323": side, "t324": 8, "t325": len(tile)}
    file = tiff([tile], size=(16, 8), **tags)
    with pytest.raises(ImageTooManyPixels, match="tiles of at most 1000000 pixels, got 4096x4096"):
        decode(file, limits=ImageLimits(max_pixels=1_000_000), spec=SPEC)
    limits = ImageLimits(max_pixels=side * side)
    assert decode(file, limits=limits, spec=SPEC).shape == (224, 224, 3)
