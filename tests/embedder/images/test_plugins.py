"""HEIF and JPEG XL: decoded where their packages are installed, else told with what to install."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images import formats, plugins
from embedder.images.limits import ImageLimits
from embedder.images.plugins import INSTALLED, size_of_jxl
from embedder.images.preprocess import decode
from shoal.errors import ImageCorrupt, ImageTooManyPixels, ImageUnsupportedFormat

SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
LIMITS = ImageLimits()
BOX = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "


def media(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(box) + 4) + box + bytes(100)


@pytest.fixture
def none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "INSTALLED", frozenset())
    monkeypatch.setattr(formats, "ALL_FORMATS", formats.ALL_FORMATS - {"HEIF", "JXL"})


@pytest.mark.usefixtures("none_installed")
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (media(b"heic"), "HEIC"),
        (media(b"mif1", b"mif1", b"heic"), "HEIC"),
        (media(b"mif1", b"miaf"), "HEIC"),
        (media(b"msf1", b"hevc"), "HEIC"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (BOX + bytes(50), "JPEG XL"),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra(data: bytes, name: str) -> None:
    """What a phone takes by default is refused by its name, and both ways out are told."""
    told = rf"got {name}; convert it to one of these, or install shoal\[heif\]"
    with pytest.raises(ImageUnsupportedFormat, match=told) as caught:
        decode(data, limits=LIMITS, spec=SPEC)
    assert caught.value.metadata["format"] == name


@pytest.mark.parametrize(
    ("kind", "data"), [("HEIF", media(b"heic")), ("JXL", b"\xff\x0a" + bytes(50))]
)
def test_a_package_that_cannot_be_loaded_is_told(
    kind: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that it needs may be missing: the image is not damaged."""

    def broken(_: str) -> None:
        msg = "libheif.so.1: cannot open shared object file"
        raise ImportError(msg)

    monkeypatch.setattr(formats, "ALL_FORMATS", formats.ALL_FORMATS | {kind})
    monkeypatch.setattr(plugins, "_load_plugin", broken)
    with pytest.raises(ImageUnsupportedFormat, match=r"cannot open shared object.*reinstall shoal"):
        decode(data, limits=LIMITS, spec=SPEC)


def codestream(*fields: tuple[int, int]) -> bytes:
    """A JPEG XL whose header has ``fields``: values and their numbers of bits, lowest first."""
    bits = at = 0
    for value, count in fields:
        bits |= value << at
        at += count
    return b"\xff\x0a" + bits.to_bytes(16, "little")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (((1, 1), (3, 5), (0, 3), (1, 5)), (16, 32)),
        (((1, 1), (31, 5), (1, 3)), (256, 256)),
        (((1, 1), (9, 5), (5, 3)), (142, 80)),
        (((0, 1), (0, 2), (299, 9), (0, 3), (1, 2), (4999, 13)), (5000, 300)),
        (((0, 1), (2, 2), (99_999, 18), (7, 3)), (200_000, 100_000)),
        (((0, 1), (3, 2), (2**30 - 1, 30), (1, 3)), (2**30, 2**30)),
        (((0, 1), (0, 2), (119, 9), (2, 3)), (144, 120)),
        (((0, 1), (0, 2), (119, 9), (3, 3)), (160, 120)),
        (((0, 1), (0, 2), (119, 9), (4, 3)), (180, 120)),
        (((0, 1), (0, 2), (119, 9), (6, 3)), (150, 120)),
    ],
)
def test_a_jpeg_xl_says_its_size_in_its_header(
    fields: tuple[tuple[int, int], ...], size: tuple[int, int]
) -> None:
    """Bare, in a box, and in the first of several boxes, of either length."""
    bare = codestream(*fields)
    assert size_of_jxl(bare) == size
    assert size_of_jxl(BOX + struct.pack(">I", len(bare) + 8) + b"jxlc" + bare) == size
    assert size_of_jxl(BOX + b"\0\0\0\1jxlc" + struct.pack(">Q", len(bare) + 16) + bare) == size
    notes = b"\0\0\0\x0cExif" + bytes(4)
    parts = struct.pack(">I", len(bare) + 12) + b"jxlp" + bytes(4) + bare
    assert size_of_jxl(BOX + notes + parts) == size


@pytest.mark.parametrize(
    "data", [b"", BOX, BOX + bytes(8), BOX + b"\0\0\0\x0ajxlcxx", b"\0\0\0\x08none" * 200]
)
def test_a_jpeg_xl_without_a_header_is_none(data: bytes) -> None:
    """However its boxes go on."""
    with pytest.raises(ValueError, match="no codestream"):
        size_of_jxl(data)


INSTALLED_KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(kind not in INSTALLED, reason="shoal[heif] is not installed"),
    )
    for kind in ("HEIF", "JXL")
]


@pytest.fixture(scope="module")
def encode() -> Callable[..., bytes]:
    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        plugins._load_plugin(kind)
        out = io.BytesIO()
        image.save(out, kind, quality=95, **options)
        return out.getvalue()

    return encoded


def flower(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((300, 214)).convert(mode)


def plain(image: Image.Image) -> np.ndarray:
    out = io.BytesIO()
    image.save(out, "PNG")
    return decode(out.getvalue(), limits=LIMITS, spec=SPEC).astype(int)


@pytest.mark.parametrize("kind", INSTALLED_KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_an_image_is_read(kind: str, mode: str, encode: Callable[..., bytes]) -> None:
    """In colour, in grey, and on the matte where it is transparent."""
    image = flower(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    got = decode(encode(image, kind), limits=LIMITS, spec=SPEC)
    ground = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    assert np.abs(got - plain(expected)).mean() < 4


@pytest.mark.parametrize("kind", INSTALLED_KINDS)
def test_an_image_is_turned_once(kind: str, encode: Callable[..., bytes]) -> None:
    """By what its own format says; EXIF, which is only a copy of that, does not turn it again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = flower()
    data = encode(stored, kind, exif=exif.tobytes())
    turned = stored.transpose(Image.Transpose.ROTATE_270) if kind == "HEIF" else stored
    got = decode(data, limits=LIMITS, spec=SPEC)
    assert np.abs(got - plain(turned)).mean() < 4


@pytest.mark.parametrize("kind", INSTALLED_KINDS)
def test_pixels_are_counted_before_they_are_decoded(
    kind: str, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the header; the number is told, so that the image can be decoded apart."""
    data = encode(flower(), kind)
    monkeypatch.setattr("embedder.images.preprocess._load", None)
    if kind == "JXL":
        monkeypatch.setattr("pillow_jxl.JpegXLImagePlugin.Decoder", None)
    limits = ImageLimits(max_pixels=300 * 214 - 1)
    with pytest.raises(ImageTooManyPixels, match="300x214 = 64200") as caught:
        decode(data, limits=limits, spec=SPEC)
    assert caught.value.metadata["pixels"] == "64200"


@pytest.mark.parametrize("kind", INSTALLED_KINDS)
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
def test_a_part_of_a_file_is_corrupt(kind: str, share: float, encode: Callable[..., bytes]) -> None:
    """Never half an image, and one line that says so."""
    data = encode(flower(), kind)
    with pytest.raises(ImageCorrupt) as caught:
        decode(data[: max(16, int(len(data) * share))], limits=LIMITS, spec=SPEC)
    assert "\n" not in caught.value.message
