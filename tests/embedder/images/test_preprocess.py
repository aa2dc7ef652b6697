"""From image bytes to pixels: parity with the plain path, and every refusal."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image, TiffImagePlugin
from sklearn.datasets import load_sample_image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images import preprocess
from embedder.images.formats import ALL_FORMATS
from embedder.images.plugins import PACKAGES, _load_plugin
from embedder.images.preprocess import ImageLimits, decode, decode_for
from shoal.errors import (
    ConfigError,
    ImageCorrupt,
    ImageEmpty,
    ImageInvalid,
    ImageTooLarge,
    ImageTooManyPixels,
    ImageUnsupportedFormat,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedder.encoding.manifest import Preprocessing

UInt8 = npt.NDArray[np.uint8]
LIMITS = ImageLimits()
# Of 255: Pillow chooses the order of its two passes by size, and rounds between them.
ROUNDING = 3
GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def spec() -> Preprocessing:
    return load_artefact(bundled_artefact()).manifest.preprocessing


@pytest.fixture(scope="module")
def embed() -> Callable[[UInt8], npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(
        bundled_artefact() / "image.onnx", providers=["CPUExecutionProvider"]
    )

    def run(pixels: UInt8) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["embedding"], {"pixels": pixels[None]})[0][0])

    return run


@pytest.fixture(scope="module")
def flower() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg"))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind in PACKAGES:
        _load_plugin(kind)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(image: Image.Image) -> UInt8:
    """Resize, then crop, in the plainest way."""
    image = image.convert("RGB")
    shortest = min(image.size)
    width, height = (int(256 * edge / shortest) for edge in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def difference(one: UInt8, other: UInt8) -> int:
    """Return the largest difference of a channel, 0..255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size and whose data is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["china", "flower"])
def test_goldens(
    name: str, spec: Preprocessing, embed: Callable[[UInt8], npt.NDArray[np.float32]]
) -> None:
    """Bytes to vector gives what PyTorch gave on real photographs."""
    image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    vector = embed(decode(encode(image, compress_level=1), limits=LIMITS, spec=spec))
    assert float(vector @ np.load(GOLDENS / f"{name}.npy")) >= 0.9999


@pytest.mark.parametrize(
    "size", [(640, 427), (427, 640), (257, 1001), (100, 77), (32, 32), (8, 8), (1, 9)]
)
def test_equals_the_plain_path(
    flower: Image.Image, spec: Preprocessing, size: tuple[int, int]
) -> None:
    """One combined resize equals resize and crop, for large and for tiny images."""
    image = flower.resize(size)
    got = decode(encode(image), limits=LIMITS, spec=spec)
    assert got.shape == (224, 224, 3)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert difference(got, plain(image)) <= ROUNDING


def test_drafted_jpeg_keeps_parity(
    flower: Image.Image, spec: Preprocessing, embed: Callable[[UInt8], npt.NDArray[np.float32]]
) -> None:
    """A large JPEG is decoded at reduced size, and its vector stays the same."""
    data = encode(flower.resize((3201, 2135), Image.Resampling.LANCZOS), "JPEG", quality=90)
    expected = embed(plain(Image.open(io.BytesIO(data))))
    assert float(embed(decode(data, limits=LIMITS, spec=spec)) @ expected) >= 0.9999


@pytest.mark.parametrize("kind", sorted(ALL_FORMATS))
def test_every_format(flower: Image.Image, spec: Preprocessing, kind: str) -> None:
    """Each accepted format decodes to about the same pixels."""
    got = decode(encode(flower, kind), limits=LIMITS, spec=spec).astype(float)
    assert np.abs(got - plain(flower)).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(
    flower: Image.Image, spec: Preprocessing, kind: str, orientation: int
) -> None:
    """A turned image with the EXIF tag that undoes it equals the upright image."""
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = flower.resize((301, 214))
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    options = quality.get(kind, {})
    got = decode(encode(stored, kind, exif=exif, **options), limits=LIMITS, spec=spec)
    allowed = 8 if kind in ("JPEG", "AVIF") else ROUNDING
    assert difference(got, plain(upright)) <= allowed


@pytest.mark.parametrize(
    ("kind", "value"), [(1, b"\6"), (7, b"\6"), (1, b"\0\6"), (4, b"\0\0\0\6"), (3, b"\0\6\0\1")]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_orientation_of_any_type_counts(
    flower: Image.Image, spec: Preprocessing, form: str, kind: int, value: bytes
) -> None:
    """Some programs write a byte, where EXIF asks for a short; one of two values is none."""
    sizes = {1: 1, 3: 2, 4: 4, 7: 1}
    entry = struct.pack(">HHI", 0x0112, kind, len(value) // sizes[kind]) + value.ljust(4, b"\0")
    upright = flower.resize((300, 214))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + entry + bytes(4)
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    data = encode(stored, form, exif=exif, **options)
    got = decode(data, limits=LIMITS, spec=spec)
    expected = plain(upright if len(value) != 4 or kind == 4 else stored)
    assert difference(got, expected) <= (8 if form == "JPEG" else ROUNDING)


@pytest.mark.parametrize("kind", [1, 3, 4, 7])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_an_orientation_of_any_type_turns_a_tiff(
    flower: Image.Image, spec: Preprocessing, kind: int, compression: str
) -> None:
    """Once: Pillow turns a TIFF itself where the type is right."""
    upright = flower.resize((300, 214))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, "TIFF", tiffinfo={0x0112: 6}, compression=compression)
    short = struct.pack("<HHI", 0x0112, 3, 1)
    assert data.count(short) == 1
    data = data.replace(short, struct.pack("<HHI", 0x0112, kind, 1))
    assert difference(decode(data, limits=LIMITS, spec=spec), plain(upright)) <= ROUNDING


@pytest.mark.parametrize("value", [b"\0", b"\x09", b"\xff", b"\1"])
def test_an_orientation_that_does_not_exist_is_none(
    flower: Image.Image, spec: Preprocessing, value: bytes
) -> None:
    """The image is left as it lies."""
    entry = struct.pack(">HHI", 0x0112, 1, 1) + value.ljust(4, b"\0")
    data = encode(flower, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1" + entry + bytes(4))
    assert difference(decode(data, limits=LIMITS, spec=spec), plain(flower)) <= ROUNDING


def test_drafted_sideways_jpeg(flower: Image.Image, spec: Preprocessing) -> None:
    """Reduced decoding and orientation go together."""
    upright = flower.resize((3201, 2135))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    assert difference(decode(data, limits=LIMITS, spec=spec), plain(upright)) <= 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_modes(flower: Image.Image, spec: Preprocessing, mode: str) -> None:
    """Bilevel, grey, palette and alpha images become the RGB that ``convert`` gives."""
    image = flower.resize((300, 224)).convert(mode)
    expected = plain(image.convert("L" if mode == "1" else "RGB"))
    assert difference(decode(encode(image), limits=LIMITS, spec=spec), expected) <= ROUNDING


def test_each_encoder_has_its_own_matte(spec: Preprocessing) -> None:
    """From one decode: what is transparent is white for one, red for another, dropped for a third.

    Dropped as in the encoders' evaluation code: the colour counts that nobody sees.
    """
    data = encode(Image.new("RGBA", (50, 50), (200, 100, 50, 0)))
    mattes = ("#ffffff", "#ff0000", None, "#ffffff")
    specs = [spec.model_copy(update={"matte": matte}) for matte in mattes]
    assert spec.matte == "#ffffff"
    got = [tuple(each[0, 0].tolist()) for each in decode_for(data, limits=LIMITS, specs=specs)]
    assert got == [(255, 255, 255), (255, 0, 0), (200, 100, 50), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(spec: Preprocessing, kind: str) -> None:
    """CMYK becomes RGB: pure yellow ink is yellow."""
    image = Image.new("CMYK", (64, 64), (0, 0, 255, 0))
    got = decode(encode(image, kind), limits=LIMITS, spec=spec)
    assert difference(got, np.broadcast_to(np.array([255, 255, 0], np.uint8), got.shape)) <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey(spec: Preprocessing, kind: str) -> None:
    """16-bit grey is scaled to 8 bits, not clipped."""
    eight = np.tile(np.arange(0, 256, dtype=np.uint8), (256, 1))
    deep = Image.fromarray(eight.astype(np.uint16) * 257)
    got = decode(encode(deep, kind), limits=LIMITS, spec=spec)
    assert difference(got, plain(Image.fromarray(eight))) <= ROUNDING


def test_first_frame_counts(spec: Preprocessing) -> None:
    """Of an animated GIF the first frame is embedded."""
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    got = decode(encode(red, "GIF", save_all=True, append_images=[blue]), limits=LIMITS, spec=spec)
    assert (got == (255, 0, 0)).all()


def test_multi_picture_jpeg(flower: Image.Image, spec: Preprocessing) -> None:
    """Phones write JPEG files with a second picture inside; they are JPEG."""
    image = flower.resize((320, 214))
    data = encode(image, "MPO", save_all=True, append_images=[image.resize((64, 64))])
    expected = plain(Image.open(io.BytesIO(encode(image, "JPEG"))))
    assert difference(decode(data, limits=LIMITS, spec=spec), expected) <= ROUNDING


def test_broken_exif_is_ignored(flower: Image.Image, spec: Preprocessing) -> None:
    """Unreadable metadata does not spoil readable pixels."""
    image = flower.resize((320, 214))
    data = encode(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert difference(decode(data, limits=LIMITS, spec=spec), plain(image)) <= ROUNDING


@pytest.mark.parametrize(
    "options",
    [
        {"icc_profile": bytes(3 * 2**20)},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0" + bytes(2**20)},
        {"xmp": b"<x>" * 2**20},
    ],
)
@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "TIFF", "PNG"])
def test_metadata_costs_no_picture(
    flower: Image.Image, spec: Preprocessing, kind: str, options: dict[str, Any]
) -> None:
    """Large or damaged profiles, EXIF and XMP change nothing, whatever the format."""
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tag, value = {"icc_profile": 34675, "exif": 33723, "xmp": 700}, options.popitem()
        tags[tag[value[0]]] = value[1]
        options = {"tiffinfo": tags}
    image = flower.resize((80, 60))
    expected = decode(encode(image, kind), limits=LIMITS, spec=spec)
    got = decode(encode(image, kind, **options), limits=LIMITS, spec=spec)
    assert difference(got, expected) <= ROUNDING


@pytest.mark.parametrize("kind", sorted(ALL_FORMATS))
@pytest.mark.parametrize("behind", [b"\0" * 5000, b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 99])
def test_what_follows_a_file_costs_no_picture(
    flower: Image.Image, spec: Preprocessing, kind: str, behind: bytes
) -> None:
    """A film or padding behind the end of the picture is not looked at."""
    data = encode(flower.resize((80, 60)), kind)
    expected = decode(data, limits=LIMITS, spec=spec)
    np.testing.assert_array_equal(decode(data + behind, limits=LIMITS, spec=spec), expected)


def test_empty(spec: Preprocessing) -> None:
    """No bytes is its own error."""
    with pytest.raises(ImageEmpty, match="got no bytes"):
        decode(b"", limits=LIMITS, spec=spec)


def test_too_many_bytes(spec: Preprocessing) -> None:
    """The byte limit comes before anything else, and the message has both numbers."""
    with pytest.raises(ImageTooLarge, match="at most 99 bytes, got 100"):
        decode(b"\0" * 100, limits=ImageLimits(max_bytes=99), spec=spec)
    data = encode(Image.new("RGB", (9, 9)))
    assert decode(data, limits=ImageLimits(max_bytes=len(data)), spec=spec).shape[0] == 224


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", [7072, 9000, 12000, 50000, 2**31 - 1])
def test_too_many_pixels_from_the_header(spec: Preprocessing, edge: int) -> None:
    """A header that claims too many pixels is refused without decoding, with no warning."""
    with pytest.raises(ImageTooManyPixels, match="at most 50000000 pixels"):
        decode(png_header(edge, edge), limits=LIMITS, spec=spec)


def test_pixel_limit_is_inclusive(spec: Preprocessing) -> None:
    """An image of exactly the limit is accepted; one pixel more is not."""
    limits = ImageLimits(max_pixels=100)
    assert decode(encode(Image.new("RGB", (10, 10))), limits=limits, spec=spec).shape[0] == 224
    with pytest.raises(ImageTooManyPixels, match="101x1 = 101"):
        decode(encode(Image.new("RGB", (101, 1))), limits=limits, spec=spec)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_jpeg_with_endless_scans_is_not_decoded(spec: Preprocessing, kind: str) -> None:
    """A scan of 75 bytes passes over all pixels: a small file could take hours."""
    photo = Image.new("RGB", (1000, 1000), (9, 99, 199))
    if kind == "JPEG":
        data = encode(photo, "JPEG", progressive=True)
        assert decode(data, limits=LIMITS, spec=spec).shape == (224, 224, 3)
        last_scan = data[data.rindex(b"\xff\xda") : -2]
        bomb = data[:-2] + last_scan * 1000 + data[-2:]
    else:
        data = encode(photo, "TIFF", compression="jpeg")
        assert decode(data, limits=LIMITS, spec=spec).shape == (224, 224, 3)
        bomb = data + b"\xff\xda" * 70_000
    assert len(bomb) < 300_000
    with pytest.raises(ImageUnsupportedFormat, match=r"scans at this size, got \d+"):
        decode(bomb, limits=LIMITS, spec=spec)


def test_the_limit_on_scans_is_inclusive(spec: Preprocessing) -> None:
    """Twenty scans of the most pixels are decoded; one more is not."""
    limits = ImageLimits(max_pixels=64 * 64)
    data = encode(Image.new("RGB", (64, 64), (9, 99, 199)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    scans = data.count(b"\xff\xda")
    full = data[:-2] + last * (20 - scans) + data[-2:]
    assert decode(full, limits=limits, spec=spec).shape == (224, 224, 3)
    with pytest.raises(ImageUnsupportedFormat, match="at most 20 scans at this size, got 21"):
        decode(full[:-2] + last + full[-2:], limits=limits, spec=spec)


def wide(spec: Preprocessing, **resize: Any) -> Preprocessing:
    """The preprocessing with a crop that is twice as wide as high."""
    crop = spec.crop.model_copy(update={"height": 100, "width": 200})
    return spec.model_copy(update={"crop": crop, "resize": spec.resize.model_copy(update=resize)})


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["shortest_edge", "stretch"])
def test_a_crop_need_not_be_square(
    flower: Image.Image, spec: Preprocessing, orientation: int, mode: str
) -> None:
    """Upright and on its side, cropped and stretched."""
    upright = flower.resize((480, 420))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    given = wide(spec, mode=mode, size=200 if mode == "stretch" else 256)
    got = decode(encode(stored, exif=exif), limits=LIMITS, spec=given)
    if mode == "stretch":
        expected = upright.resize((200, 100), Image.Resampling.BICUBIC)
    else:
        resized = upright.resize((292, 256), Image.Resampling.BICUBIC)
        expected = resized.crop((46, 78, 246, 178))
    assert difference(got, np.asarray(expected)) <= ROUNDING


def test_a_jpeg_is_reduced_for_the_encoder_that_needs_most(
    flower: Image.Image, spec: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several encoders; and as far as that one allows."""
    small = spec.model_copy(
        update={
            "crop": spec.crop.model_copy(update={"height": 32, "width": 32}),
            "resize": spec.resize.model_copy(update={"size": 32}),
        }
    )
    seen: list[tuple[int, int]] = []
    resize = preprocess.resize

    def watched(image: Image.Image, how: Any) -> Image.Image:
        seen.append(image.size)
        return resize(image, how)

    monkeypatch.setattr(preprocess, "resize", watched)
    data = encode(flower.resize((3200, 2400)), "JPEG", quality=50)
    for specs in ((small,), (spec,), (small, spec)):
        decode_for(data, limits=LIMITS, specs=specs)
    assert seen == [(400, 300), (1600, 1200), (1600, 1200), (1600, 1200)]


def test_an_avif_is_decoded_on_one_core() -> None:
    """The other cores decode other images."""
    assert preprocess.AvifImagePlugin.DEFAULT_MAX_THREADS == 1


def test_jpeg_that_claims_too_many_pixels_is_refused_for_those(spec: Preprocessing) -> None:
    """One scan over too many pixels is too many pixels, not too many scans."""
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 9000, 9000)
    with pytest.raises(ImageTooManyPixels, match="at most 50000000 pixels, got 9000x9000"):
        decode(bytes(data), limits=LIMITS, spec=spec)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(ImageTooManyPixels):
        decode(bytes(data), limits=LIMITS, spec=spec)


def test_only_the_first_frame_is_decoded(spec: Preprocessing, flower: Image.Image) -> None:
    """A film costs no more than its first picture: what follows may even be damaged."""
    first, rest = (
        flower.resize((64, 48)),
        [Image.new("RGB", (64, 48), (n, 0, 0)) for n in range(99)],
    )
    film = encode(first, "GIF", save_all=True, append_images=rest)
    alone = decode(encode(first, "GIF"), limits=LIMITS, spec=spec)
    got = decode(film[: len(film) - 200], limits=LIMITS, spec=spec)
    assert difference(got, alone) <= ROUNDING


@pytest.mark.parametrize(
    "image", [Image.new("F", (9, 9)), Image.new("LAB", (9, 9)), Image.new("I", (9, 9), 70000)]
)
def test_pixels_without_rgb_meaning(spec: Preprocessing, image: Image.Image) -> None:
    """Kinds of pixel whose range or colour is not known are refused, not guessed at."""
    with pytest.raises(ImageUnsupportedFormat, match="image: expected grey"):
        decode(encode(image, "TIFF"), limits=LIMITS, spec=spec)


@pytest.mark.parametrize("kind", sorted(ALL_FORMATS))
def test_truncated(flower: Image.Image, spec: Preprocessing, kind: str) -> None:
    """A file cut anywhere but in its last bytes is an error, never half an image."""
    data = encode(flower.resize((200, 150)), kind)
    for share in (0.03, 0.2, 0.5, 0.9):
        with pytest.raises(ImageCorrupt, match=f"{kind} image: expected a complete, valid file"):
            decode(data[: int(len(data) * share)], limits=LIMITS, spec=spec)


def half_of_a_gif(data: bytes) -> bytes:
    """The first half of the sub-blocks of its image, then the end of the image and of the file."""
    at = data.index(b",", 13 + (3 << ((data[10] & 7) + 1))) + 11
    blocks = []
    while data[at]:
        blocks.append(at)
        at += 1 + data[at]
    return data[: blocks[len(blocks) // 2]] + b"\0;"


def half_of_a_png(data: bytes) -> bytes:
    """The first half of its pixels in a sound chunk, then the end."""
    at = data.index(b"IDAT")
    size = int.from_bytes(data[at - 4 : at], "big")
    chunk = data[at : at + 4 + size // 2]
    head = data[: at - 4] + struct.pack(">I", len(chunk) - 4)
    return head + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


@pytest.mark.parametrize(("kind", "half"), [("GIF", half_of_a_gif), ("PNG", half_of_a_png)])
def test_half_a_file_is_corrupt_though_it_has_an_end(
    flower: Image.Image, spec: Preprocessing, kind: str, half: Callable[[bytes], bytes]
) -> None:
    """Each part of the file is sound: only pixels are missing."""
    data = encode(flower.resize((64, 48)), kind)
    with pytest.raises(ImageCorrupt, match="truncated"):
        decode(half(data), limits=LIMITS, spec=spec)


@pytest.mark.parametrize(("bits", "coding"), [(24, 4), (24, 5), (5, 0)])
def test_a_bmp_that_pillow_does_not_read_is_named(
    spec: Preprocessing, bits: int, coding: int
) -> None:
    """A JPEG in a BMP is as sound as it is rare."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    data[28:34] = struct.pack("<HI", bits, coding)
    with pytest.raises(ImageUnsupportedFormat, match=r"BMP image: .* got: Unsupported BMP"):
        decode(bytes(data), limits=LIMITS, spec=spec)


@pytest.mark.parametrize("kind", sorted(ALL_FORMATS))
def test_signature_alone(spec: Preprocessing, kind: str) -> None:
    """A right signature with nothing behind it is corrupt, not unsupported."""
    data = encode(Image.new("RGB", (64, 64)), kind)
    with pytest.raises(ImageCorrupt):
        decode(data[:12], limits=LIMITS, spec=spec)


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """``data`` with bytes overwritten, cut out, repeated or put in, near its start or anywhere."""
    damaged = bytearray(data)
    reach = len(data) if random.random() < 0.5 else min(len(data), 200)
    kind = random.integers(5)
    if kind <= 1:
        for position in random.integers(4, reach, size=random.integers(1, 9)):
            damaged[position] = random.integers(256)
        return bytes(damaged)
    start = int(random.integers(4, reach))
    end = min(len(data), start + int(random.integers(1, 64)))
    piece = damaged[start:end]
    if kind == 2:
        del damaged[start:end]
    elif kind == 3:
        damaged[start:start] = piece * int(random.integers(1, 9))
    else:
        damaged[start:end] = random.bytes(len(piece))
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(ALL_FORMATS))
def test_damaged_bytes_never_escape(flower: Image.Image, spec: Preprocessing, kind: str) -> None:
    """Of 1,000 mutations of a real file, each gives pixels or an ``ImageInvalid``."""
    data = encode(flower.resize((48, 36)), kind)
    random = np.random.default_rng(11)
    for _ in range(1000):
        with contextlib.suppress(ImageInvalid):
            damaged = mutate(data, random)
            assert decode(damaged, limits=LIMITS, spec=spec).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_pixels": 10**9}, "max_pixels"),
        ({"formats": frozenset()}, "formats"),
        ({"formats": frozenset({"EPS"})}, "formats"),
    ],
)
def test_limits_are_checked(options: dict[str, Any], field: str) -> None:
    """A limit out of range is a configuration error that names it."""
    with pytest.raises(ConfigError, match=field):
        ImageLimits(**options)
