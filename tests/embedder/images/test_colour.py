"""Colours: what is transparent shows the matte, in every format and way of being transparent."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images.formats import ALL_FORMATS
from embedder.images.preprocess import ImageLimits, decode, decode_for
from shoal.errors import ImageUnsupportedFormat

UInt8 = npt.NDArray[np.uint8]
SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
MATTE = (10, 120, 230)
SIDE = 224
ROUNDING = 2


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, matte: str | None = "#0a78e6") -> UInt8:
    spec = SPEC.model_copy(update={"matte": matte, "resize": SPEC.resize.model_copy()})
    return decode(data, limits=ImageLimits(), spec=spec)


def drawing(number: int, mode: str = "RGBA") -> Image.Image:
    """Black lines on a transparent ground whose hidden colour is black too."""
    image = Image.new("RGBA", (300, 240), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for at in range(3 + number):
        draw.line((20 + 40 * at, 10, 290 - 30 * number, 220 - 20 * at), (0, 0, 0, 255), width=5)
    return image.convert(mode)


def shades() -> Image.Image:
    """Colours that go from opaque on the left to transparent on the right."""
    y, x = np.mgrid[0:240, 0:300]
    values = np.stack(
        [x * 255 // 299, y * 255 // 239, 255 - x * 255 // 299, 255 - x * 255 // 299], -1
    )
    return Image.fromarray(values.astype(np.uint8))


def seen(image: Image.Image) -> Image.Image:
    """The image as anybody sees it who looks at it on the matte."""
    ground = Image.new("RGBA", image.size, (*MATTE, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def assert_seen(data: bytes, image: Image.Image, *, most: float = ROUNDING) -> None:
    expected = pixels(encode(seen(image))).astype(int)
    got = pixels(data)
    assert np.abs(got - expected).max() <= most
    hidden = pixels(data, None).astype(int)
    assert np.abs(hidden - expected).mean() > 5, "the picture tells nothing"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_partial_alpha_shows_the_matte(kind: str, mode: str) -> None:
    """Each pixel is as much of the matte as it is transparent."""
    if kind not in ALL_FORMATS:
        pytest.skip("this Pillow has no AVIF")
    image = shades().convert(mode)
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    most = 12 if kind == "AVIF" else ROUNDING
    assert_seen(encode(image, kind, **options.get(kind, {})), image, most=most)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_drawings_on_nothing_differ(kind: str) -> None:
    """Black lines on a transparent black ground are all black to whoever drops alpha."""
    if kind == "BMP":
        files = [bmp(drawing(number)) for number in range(4)]
    else:
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        files = [encode(drawing(number), kind, **options) for number in range(4)]
    made = [pixels(each, "#ffffff").astype(int) for each in files]
    for at, one in enumerate(made):
        assert one.max() == 255
        assert one.min() < 60
        for other in made[:at]:
            assert np.abs(one - other).mean() > 3


def bmp(image: Image.Image) -> bytes:
    """A BMP of 32 bits with a mask for alpha (version 4)."""
    red, green, blue, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
    body = np.stack([blue, green, red, alpha], -1)[::-1].tobytes()
    header = struct.pack(
        "<IiiHHIIiiII", 108, image.width, image.height, 1, 32, 3, len(body), 0, 0, 0, 0
    )
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    at = 14 + 108
    rest = b"BGRs" + bytes(108 - len(header) - len(masks) - 4)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + header + masks + rest + body


def test_a_bmp_whose_alpha_is_all_zero_is_opaque() -> None:
    """Many programs leave the fourth byte of a pixel zero."""
    image = shades()
    image.putalpha(0)
    np.testing.assert_array_equal(pixels(bmp(image)), pixels(encode(image.convert("RGB"))))
    assert_seen(bmp(shades()), shades())


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_shows_the_matte(kind: str) -> None:
    """One index of the palette, as GIF and small PNGs have it."""
    image = shades().convert("RGB").quantize(16)
    clear = image.copy()
    clear.info["transparency"] = 3
    assert_seen(encode(image, kind, transparency=3, optimize=False), clear)


@pytest.mark.filterwarnings("error")
def test_a_palettes_alpha_shows_the_matte() -> None:
    """An alpha for each index; nothing is warned of, with a matte or without."""
    image = shades().convert("RGB").quantize(16)
    alphas = bytes(range(0, 256, 16))
    clear = image.copy()
    clear.info["transparency"] = alphas
    assert_seen(encode(image, transparency=alphas), clear)


def png(bits: int, colour: int, rows: list[bytes], size: tuple[int, int], key: bytes) -> bytes:
    """A PNG of any depth with a transparent colour, ``key``."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (b"IHDR", header), (b"tRNS", key), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(
    ("bits", "row", "key"),
    [
        (1, b"\x0f", 1),
        (1, b"\xf0", 0),
        (2, b"\x55\xff", 3),
        (4, b"\x33\x33\xcc\xcc", 12),
        (8, b"\x33" * 4 + b"\xcc" * 4, 0xCC),
        (16, b"\x33\x01" * 4 + b"\xcc\x02" * 4, 0xCC02),
    ],
)
def test_a_transparent_grey_shows_the_matte(bits: int, row: bytes, key: int) -> None:
    """At every depth: eight pixels wide, and the right half is transparent."""
    data = png(bits, 0, [row] * 8, (8, 8), struct.pack(">H", key))
    got = pixels(data)
    assert (got[:, -40:] == MATTE).all()
    assert (got[:, :40] == got[0, 0, 0]).all()
    assert got[0, 0, 0] == {1: 255 * (key == 0), 2: 85}.get(bits, 0x33)


def test_a_grey_of_16_bits_is_transparent_in_all_its_bits() -> None:
    """A grey that differs in its lower byte only is another grey."""
    data = png(16, 0, [b"\xcc\x02" * 4 + b"\xcc\x03" * 4] * 8, (8, 8), b"\xcc\x02")
    got = pixels(data)
    assert (got[:, :40] == MATTE).all()
    assert (got[:, -40:] == 0xCC).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_shows_the_matte(bits: int) -> None:
    """Only the colour that is the key in all three channels."""
    wide = bits // 8
    colours = [(1, 2, 3), (1, 2, 4), (9, 2, 3)]
    row = b"".join(bytes([c]) * wide for colour in colours for _ in range(8) for c in colour)
    key = b"".join(c.to_bytes(2 // wide if wide == 2 else 2, "big") * wide for c in (1, 2, 3))
    got = pixels(png(bits, 2, [row] * 24, (24, 24), key))
    assert (got[:, :20] == MATTE).all()
    assert (got[112, 112] == (1, 2, 4)).all()
    assert (got[:, -20:] == (9, 2, 3)).all()


def test_alpha_of_16_bits_shows_the_matte() -> None:
    """The upper eight bits count."""
    row = b"".join(struct.pack(">HHHH", 0, 0, 0, alpha) for alpha in (0, 0xFFFF) for _ in range(4))
    data = png(16, 6, [row] * 8, (8, 8), b"").replace(b"tRNS", b"prVt")
    got = pixels(data)
    assert (got[:, :40] == MATTE).all()
    assert (got[:, -40:] == 0).all()


def test_premultiplied_alpha_shows_the_matte_once() -> None:
    """A TIFF may store colours that are multiplied with their alpha already."""
    image = Image.new("RGBA", (64, 64), (200, 100, 40, 128))
    multiplied = Image.new("RGBA", (64, 64), (100, 50, 20, 128))
    out = io.BytesIO()
    multiplied.save(out, "TIFF")
    entry = struct.pack("<HHI", 338, 3, 1)  # ExtraSamples: 2 is alpha, 1 premultiplied alpha
    assert_seen(out.getvalue().replace(entry + b"\2", entry + b"\1"), image)


def test_the_first_frame_of_a_gif_lies_on_the_matte() -> None:
    """Its transparent colour, and the part of the screen that it does not cover."""
    data = bytearray(encode(Image.new("P", (40, 40), 1), "GIF", optimize=False))
    data[6:10] = struct.pack("<HH", 80, 80)
    got = pixels(bytes(data))
    hidden = pixels(bytes(data), None)
    assert (got[-40:] == MATTE).all()
    assert (got[:, -40:] == MATTE).all()
    np.testing.assert_array_equal(got[:90, :90], hidden[:90, :90])
    frames = [drawing(0), drawing(3)]
    film = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
    np.testing.assert_array_equal(pixels(film), pixels(encode(frames[0], "GIF")))
    assert (pixels(film) == MATTE).all(axis=-1).any()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_a_film_lies_on_the_matte(kind: str) -> None:
    """Animated PNG and WebP, as their still pictures."""
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    film = encode(drawing(0), kind, save_all=True, append_images=[drawing(3)], **options)
    still = encode(drawing(0), kind, **options)
    np.testing.assert_array_equal(pixels(film), pixels(still))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_an_opaque_image_has_no_matte(mode: str) -> None:
    """With a matte its pixels are those without."""
    image = shades().convert("RGB").convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(pixels(data), pixels(data, None))


def test_a_sideways_image_lies_on_the_matte() -> None:
    """The matte does not depend on how an image lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = shades().transpose(Image.Transpose.ROTATE_90)
    assert_seen(encode(turned, exif=exif), shades(), most=ROUNDING + 1)


def test_an_image_lies_on_each_matte_as_it_came() -> None:
    """One matte leaves no trace for the next, though the image needs no conversion."""
    data = png(8, 2, [bytes((1, 2, 3)) * 4] * 4, (4, 4), bytes((0, 1, 0, 2, 0, 3)))
    specs = [SPEC.model_copy(update={"matte": m}) for m in ("#ff0000", "#0000ff", None)]
    got = [each[0, 0].tolist() for each in decode_for(data, limits=ImageLimits(), specs=specs)]
    assert got == [[255, 0, 0], [0, 0, 255], [1, 2, 3]]


@pytest.mark.parametrize(
    ("value", "grey"), [(0, 0), (0x8000, 0x80), (65535, 255), (-1, None), (65536, None)]
)
def test_wide_integers_are_read_as_16_bits_if_they_fit(value: int, grey: int | None) -> None:
    """Others have no known range."""
    data = encode(Image.new("I", (9, 9), value), "TIFF").replace(
        struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    )
    if grey is not None:
        assert (pixels(data) == grey).all()
        return
    with pytest.raises(ImageUnsupportedFormat, match=r"outside 0\.\.65535"):
        pixels(data)
