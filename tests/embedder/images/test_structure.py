"""Files of few pixels and many parts: refused by what there is too much of, unread."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.images import structure
from embedder.images.preprocess import ImageLimits, decode
from shoal.errors import ImageUnsupportedFormat

SIDE = 32
HUGE = 4 * 2**20
SPEC = load_artefact(bundled_artefact()).manifest.preprocessing


def encode(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (9, 90, 200)).save(out, kind)
    return out.getvalue()


def jpeg(parts: bytes) -> bytes:
    """With ``parts`` between the first marker and the rest."""
    data = encode("JPEG")
    return data[:2] + parts + data[2:]


def photoshop(resources: int) -> bytes:
    """APP13 segments with so many empty resources."""
    each = b"8BIM\4\4\0\0\0\0\0\0"
    full, rest = divmod(resources, 5000)
    bodies = [b"Photoshop 3.0\0" + each * count for count in [5000] * full + [rest]]
    return b"".join(b"\xff\xed" + struct.pack(">H", len(body) + 2) + body for body in bodies)


def png(chunks: int) -> bytes:
    """With so many empty private chunks more than an image needs."""
    data = encode("PNG")
    chunk = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    return data[:33] + chunk * chunks + data[33:]


def gif(parts: bytes) -> bytes:
    """With ``parts`` after the palette."""
    data = encode("GIF")
    start = 13 + (3 << ((data[10] & 7) + 1))
    return data[:start] + parts + data[start:]


def comment(sub_blocks: int) -> bytes:
    return b"!\xfe" + b"\1x" * (sub_blocks - 1) + b"\0"


def tiff(strips: int, *, big: bool = False) -> bytes:
    """A column of grey pixels, one in each strip."""
    head = 16 if big else 8
    offsets = head + strips
    counts = offsets + 8 * strips
    directory = counts + 8 * strips
    entries = [
        *((256, 4, 1, 1), (257, 4, 1, strips), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1)),
        *((273, 16 if big else 4, strips, offsets), (277, 4, 1, 1), (278, 4, 1, 1)),
        (279, 16 if big else 4, strips, counts),
    ]
    integer = "<u8" if big else "<u4"
    table = (np.arange(strips) + head).astype(integer).tobytes().ljust(8 * strips, b"\0")
    sizes = np.ones(strips, integer).tobytes().ljust(8 * strips, b"\0")
    if big:
        start = b"II+\0" + struct.pack("<HHQ", 8, 0, directory)
        listed = struct.pack("<Q", len(entries)) + b"".join(
            struct.pack("<HHQQ", *each) for each in entries
        )
    else:
        start = b"II*\0" + struct.pack("<I", directory)
        listed = struct.pack("<H", len(entries)) + b"".join(
            struct.pack("<HHII", *each) for each in entries
        )
    return start + bytes(strips) + table + sizes + listed + bytes(8)


def bmp_in_run_lengths(width: int, height: int) -> bytes:
    rows = (bytes([width % 256 or 255, 7]) + b"\0\0") * height
    body = rows + b"\0\1"
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    at = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + header + palette + body


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: jpeg(b"\xff" * HUGE), "65536 bytes between its segments"),
        (lambda: jpeg(b"\xff\0" * HUGE), "65536 bytes between its segments"),
        (lambda: jpeg(b"\xff\xe5\0\2" * 10_001), "10000 segments"),
        (lambda: jpeg(b"\xff\xd0" * 10_001), "10000 segments"),
        (lambda: png(50_000), "50000 chunks"),
        (lambda: gif(b"\1" * 65_537), "65536 bytes between its blocks"),
        (lambda: gif(comment(100_001)), "100000 sub-blocks before its first image"),
        (lambda: gif(comment(2) * 50_001), "100000 sub-blocks before its first image"),
        (lambda: tiff(65_537), "65536 strips or tiles"),
        (lambda: tiff(65_537, big=True), "65536 strips or tiles"),
        (
            lambda: b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 65_536),
            "65535 entries of its directory",
        ),
        (lambda: bmp_in_run_lengths(200, 10_501), "2100000 pixels in run lengths"),
    ],
)
def test_too_many_parts_are_refused(make: Callable[[], bytes], said: str) -> None:
    """Each would keep a core for seconds, and the interpreter's lock for much of them."""
    with pytest.raises(ImageUnsupportedFormat, match=f"expected at most {said}"):
        decode(make(), limits=ImageLimits(), spec=SPEC)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jpeg(b"\xff" * 65_000),
        lambda: jpeg(b"\xff\xe5\0\2" * 9_000),
        lambda: jpeg(photoshop(90_000)),
        lambda: png(40_000),
        lambda: gif(comment(99_000)),
        lambda: tiff(10_000),
        lambda: tiff(10_000, big=True),
        lambda: bmp_in_run_lengths(200, 1000),
    ],
)
def test_many_parts_are_read(make: Callable[[], bytes]) -> None:
    """The limits are above what programs write; below them nothing changes."""
    assert decode(make(), limits=ImageLimits(), spec=SPEC).shape[2] == 3


def test_broken_tags_leave_nothing_in_the_log(tmp_path: Path) -> None:
    """Pillow warns of each one; in a server that is a line of the log each, of any sender's."""
    tags = b"".join(struct.pack("<HHII", 1000 + tag, 7, 300, 8) for tag in range(50))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 50) + tags + bytes(4)
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(out, "WEBP", exif=exif)
    file = tmp_path / "broken.webp"
    file.write_bytes(out.getvalue())
    program = (
        "import sys; from pathlib import Path; from embedder.images.preprocess import *;"
        "from embedder.encoding.artefact import bundled_artefact, load_artefact;"
        "spec = load_artefact(bundled_artefact()).manifest.preprocessing;"
        "print(decode(Path(sys.argv[1]).read_bytes(), limits=ImageLimits(), spec=spec).shape)"
    )
    command = [sys.executable, "-W", "default", "-c", program, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(224, 224, 3)\n"
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_every_beginning_of_a_file_can_be_checked(kind: str) -> None:
    """What is cut off is the decoder's to refuse; the check neither fails nor goes on for ever."""
    data = encode(kind)
    for end in range(len(data)):
        structure.pixel_parts(kind, data[:end])


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    sum_ = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sum_)


def with_chunks(chunks: bytes, *, at_end: bool = False) -> bytes:
    """A PNG of noise, which no file can be mistaken for, with ``chunks`` before or after pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    data = out.getvalue()
    at = len(data) - 12 if at_end else 33
    return data[:at] + chunks + data[at:]


def pixels(data: bytes) -> np.ndarray:
    return decode(data, limits=ImageLimits(), spec=SPEC)


def oriented(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes().removeprefix(b"Exif\0\0")


RAW = b"Raw profile type exif\0"
HEX = b"\nexif\n  26\n" + oriented(3).hex().encode()


BIG = zlib.compress(bytes(3 * 2**20))
XMP = b"XML:com.adobe.xmp\0"


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"iCCP", b"profile\0\0" + BIG),
        chunk(b"iCCP", b"profile\0\7damaged"),
        chunk(b"zTXt", b"workflow\0\0" + BIG),
        chunk(b"zTXt", b"workflow\0\7damaged"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BIG),
        chunk(b"zTXt", b"Raw profile type exif\0\0damaged"),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + BIG),
        chunk(b"iTXt", XMP + b"\1\0\0\0" + BIG),
        chunk(b"iTXt", XMP + b"\1\0\0\0damaged"),
        chunk(b"iTXt", XMP + b"\1"),
        chunk(b"tEXt", b"parameters\0" + bytes(2**20)) * 10,
        chunk(b"tEXt", b"transparency\0none"),
        *(chunk(kind, b"") for kind in (b"tEXt", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL")),
        chunk(b"tEXt", b"Comment\0sum", crc=1),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        chunk(b"eXIf", b"II*\0", crc=1),
        chunk(b"eXIf", bytes(2**20 + 1)),
        chunk(b"zTXt", RAW + b"\0" + zlib.compress(HEX + b"00" * 2**19)),
        chunk(b"fdAT", b"x"),
        chunk(b"caBX", bytes(3 * 2**20)),
    ],
)
def test_a_pngs_metadata_costs_no_picture(chunks: bytes, at_end: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """A profile of 1.5 MB, a workflow of 1.6 MB, damaged notes: the pixels are whole."""
    np.testing.assert_array_equal(
        pixels(with_chunks(chunks, at_end=at_end)), pixels(with_chunks(b""))
    )


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"eXIf", oriented(3)),
        chunk(b"tEXt", RAW + HEX),
        chunk(b"zTXt", RAW + b"\0" + zlib.compress(HEX)),
        chunk(b"iTXt", XMP + b'\0\0\0\0<x tiff:Orientation="3"/>'),
        chunk(b"iTXt", XMP + b"\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="3"/>')),
        chunk(b"tEXt", b"Title\0A view") + chunk(b"eXIf", oriented(3)),
        chunk(b"eXIf", oriented(3)) + chunk(b"eXIf", oriented(8)),
        chunk(b"eXIf", oriented(3) + bytes(2**21)),
        chunk(b"tEXt", RAW + HEX + b"00" * 2**20),
    ],
)
def test_a_png_is_turned_by_what_says_how_it_lies(chunks: bytes) -> None:
    """The first orientation of its kind counts, in whichever chunk a program writes it."""
    upright = pixels(with_chunks(b""))
    np.testing.assert_array_equal(pixels(with_chunks(chunks)), upright[::-1, ::-1])


def test_an_animated_png_is_its_first_picture() -> None:
    """The frames that follow may even be damaged."""
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "lime")]
    out = io.BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    data = out.getvalue()
    assert (pixels(data) == (255, 0, 0)).all()
    assert (pixels(data.replace(b"fcTL", b"fcTl", 1)) == (255, 0, 0)).all()


def test_a_gifs_metadata_costs_no_picture() -> None:
    """2 MiB of notes in full sub-blocks; the extension with the transparent colour stays."""
    notes = b"!\xfe" + (b"\xff" + bytes(255)) * 8_000 + b"\0"
    np.testing.assert_array_equal(pixels(gif(notes)), pixels(gif(b"")))
    out = io.BytesIO()
    Image.new("P", (SIDE, SIDE)).save(out, "GIF", transparency=7)
    data = structure.pixel_parts("GIF", out.getvalue())
    assert Image.open(io.BytesIO(data)).info["transparency"] == 7
