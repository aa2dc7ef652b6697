"""The picture in a JPEG file: taken out of what surrounds it, and refused if some of it is gone."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images import jpeg
from embedder.images.preprocess import ImageLimits, decode
from shoal.errors import ImageCorrupt, ImageUnsupportedFormat

UInt8 = npt.NDArray[np.uint8]
SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
PHOTO = Image.fromarray(load_sample_image("flower.jpg")).resize((300, 200))
END = b"\xff\xd9"
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "restarts": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 1},
    "4:2:0": {"subsampling": 2},
    "progressive, 4:2:0, restarts": {
        "progressive": True,
        "subsampling": 2,
        "restart_marker_blocks": 2,
    },
}


def encode(image: Image.Image = PHOTO, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 85, "subsampling": 0, **options})
    return out.getvalue()


def pixels(data: bytes) -> UInt8:
    return decode(data, limits=ImageLimits(), spec=SPEC)


def segment(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(body) + 2) + body


def with_segments(segments: bytes, **options: Any) -> bytes:
    data = encode(**options)
    return data[:2] + segments + data[2:]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(300, 200), (33, 17), (1, 1)])
def test_the_picture_alone_gives_pillows_pixels(
    mode: str, kind: str, size: tuple[int, int]
) -> None:
    """What is left out, and how the rest is decoded, changes no pixel."""
    data = encode(PHOTO.resize(size).convert(mode), **KINDS[kind])
    found = jpeg.parse(data)
    assert found is not None
    image = Image.open(io.BytesIO(found.data))
    found.load(image)
    with Image.open(io.BytesIO(data)) as plain:
        assert (image.mode, image.size) == (plain.mode, plain.size)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_drafted_picture_gives_pillows_pixels(kind: str, scale: int) -> None:
    """Decoding at a part of the size goes with decoding scan by scan."""
    data = encode(**KINDS[kind])
    found = jpeg.parse(data)
    assert found is not None
    image, plain = (Image.open(io.BytesIO(each)) for each in (found.data, data))
    for each in (image, plain):
        each.draft(None, (300 // scale, 200 // scale))
    found.load(image)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
    assert image.size == (-(-300 // scale), -(-200 // scale))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_end_marker_misses_no_pixel(kind: str, missing: int) -> None:
    """The last two bytes are the end marker: without them all pixels are there."""
    data = encode(**KINDS[kind])
    np.testing.assert_array_equal(pixels(data[:-missing]), pixels(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.4, 0.5, 0.75, 0.95])
def test_a_part_of_a_picture_is_truncated_though_it_has_an_end(kind: str, share: float) -> None:
    """What is missing is grey in libjpeg's eyes, and Pillow does not tell."""
    data = encode(**KINDS[kind])
    part = data[: int(len(data) * share)]
    for end in (b"", END, END + data):
        with pytest.raises(ImageCorrupt, match="truncated"):
            pixels(part + end)


def test_a_progressive_picture_without_its_last_scans_is_truncated() -> None:
    """Each scan that there is may be whole: the coefficients of the others are still missing."""
    data = encode(progressive=True)
    last = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
    with pytest.raises(ImageCorrupt, match="truncated: scans are missing"):
        pixels(data[:last] + END)


def test_a_restart_marker_in_a_picture_without_intervals_ends_its_data() -> None:
    """What follows it is grey in libjpeg's eyes."""
    data = bytearray(encode())
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd3"
    with pytest.raises(ImageCorrupt, match="truncated"):
        pixels(bytes(data))


def test_a_film_behind_the_picture_is_not_looked_at() -> None:
    """A motion photo: a film holds markers of scans as any bytes do, and once counted as scans."""
    data = encode(PHOTO.resize((2000, 1500)))
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" * 100_000
    np.testing.assert_array_equal(pixels(data + film), pixels(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, which serving silences
@pytest.mark.parametrize(
    "segments",
    [
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(60_000)) * 100,
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) * 100,
        segment(0xEB, b"JP\0\1" + bytes(60_000)) * 200,
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) * 20,
        segment(0xFE, b"\xff\xda\xff\xd9" * 1000) * 300,
        segment(0xE0, b"JFXX\0\x10" + encode(PHOTO.resize((40, 30)))),
        segment(0xE5, encode(PHOTO.resize((160, 120)))),
    ],
)
def test_metadata_nobody_reads_costs_no_picture(segments: bytes) -> None:
    """Previews, maps, profiles and notes, sound or not, large or small."""
    np.testing.assert_array_equal(pixels(with_segments(segments)), pixels(encode()))


def test_metadata_that_decides_pixels_is_kept() -> None:
    """An orientation turns, and Adobe's segment says which colours the components are."""
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = PHOTO.transpose(Image.Transpose.ROTATE_180)
    upright = pixels(encode()).astype(int)
    assert np.abs(pixels(encode(turned, exif=exif)) - upright).mean() < 3
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>'
    data = encode(turned)
    lying = data[:2] + segment(0xE1, xmp) + data[2:]
    assert np.abs(pixels(lying) - upright).mean() < 3
    components = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")  # RGB, where no JFIF says YCbCr
    data = encode()
    assert np.abs(pixels(data[:2] + components + data[20:]) - upright).mean() > 20
    assert np.abs(pixels(data[:20] + components + data[20:]) - upright).mean() == 0


def frame(data: bytes) -> int:
    """Where the frame's marker is."""
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((4, 12), "expected 8 bits for each value, got a 12-bit JPEG"),
        ((9, 2), "expected 1, 3 or 4 components, got 2"),
        ((1, 0xC3), "got lossless coding"),
        ((1, 0xC5), "got hierarchical coding"),
        ((1, 0xC9), "got arithmetic coding"),
        ((1, 0xCE), "got arithmetic coding"),
        ((1, 0xF7), "got the coding of JPEG-LS"),
    ],
)
def test_jpegs_that_libjpeg_does_not_read_are_named(change: tuple[int, int], said: str) -> None:
    """A sound file of a rare kind is not corrupt."""
    data = bytearray(encode())
    data[frame(data) + change[0]] = change[1]
    with pytest.raises(ImageUnsupportedFormat, match=said):
        pixels(bytes(data))


def test_scans_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs time, however small the picture; the limit is inclusive."""
    data = encode(PHOTO.resize((8, 8)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert pixels(data[:-2] + last * 5000 + END).shape == (224, 224, 3)
    assert jpeg.MAX_SCANS == 10_000
    scans = data.count(b"\xff\xda")
    monkeypatch.setattr(jpeg, "MAX_SCANS", scans)
    assert pixels(data).shape == (224, 224, 3)
    with pytest.raises(ImageUnsupportedFormat, match=f"at most {scans} scans, got more"):
        pixels(data[:-2] + last + END)


def test_segments_are_counted() -> None:
    """Those without a body, too, before the first scan and between scans."""
    assert pixels(with_segments(b"\xff\xe5\0\2" * 9_990)).shape == (224, 224, 3)
    with pytest.raises(ImageUnsupportedFormat, match="at most 10000 segments, got more"):
        pixels(with_segments(b"\xff\xd0" * 10_000))
    data = encode(progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(ImageUnsupportedFormat, match="at most 10000 segments, got more"):
        pixels(data[:second] + b"\xff\xe5\0\2" * 10_000 + data[second:])


def test_nothing_is_found_in_a_damaged_head() -> None:
    """The decoder refuses it, and says why."""
    data = encode()
    for end in (12, 20, frame(data) + 3, data.index(b"\xff\xda")):
        assert jpeg.parse(data[:end]) is None
        with pytest.raises(ImageCorrupt):
            pixels(data[:end])
    assert jpeg.parse(data[:2] + END + data[2:]) is None
    bare = data[: frame(data)] + data[frame(data) + 19 :]
    assert jpeg.parse(bare) is None
