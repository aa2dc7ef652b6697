"""Compressed files: every stream of a file, and damage that is told wherever it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zlib
from collections.abc import Callable

import pytest

from shoal.sources import compression
from shoal.sources.compression import decompressed

DATA = bytes(range(256)) * 300

Pack = Callable[[bytes], bytes]


def has_zstd() -> bool:
    """A dependency of the project, which an older environment may lack."""
    try:
        import backports.zstd  # noqa: F401, PLC0415 - whether it can be
    except ImportError:
        return False
    return True


def zstd(data: bytes) -> bytes:
    """One frame with a check sum, behind a frame to be skipped, as pzstd writes."""
    from backports.zstd import CompressionParameter, compress  # noqa: PLC0415 - in these tests only

    skipped = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    return skipped + compress(data, options={CompressionParameter.checksum_flag: 1})


def gzip_with_everything(data: bytes) -> bytes:
    """A member whose header has an extra field, a name, a comment and a check sum of its own."""
    header = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\x00\x03"
    header += struct.pack("<H", 6) + b"BC\x02\x00\x01\x02" + b"name\0" + b"comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(data) + packer.flush()
    return header + body + struct.pack("<II", zlib.crc32(data), len(data))


PACKS: list[object] = [
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(gzip_with_everything, id="gzip with FEXTRA"),
    pytest.param(bz2.compress, id="bzip2"),
    pytest.param(lambda data: lzma.compress(data, check=lzma.CHECK_SHA256), id="xz"),
    pytest.param(
        zstd,
        id="zstd",
        marks=pytest.mark.skipif(not has_zstd(), reason="needs backports.zstd"),
    ),
]


def unpack(data: bytes) -> bytes:
    return decompressed(io.BufferedReader(io.BytesIO(data))).read()  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", PACKS)
def test_all_streams_of_a_file_are_read(pack: Pack) -> None:
    """One, several, an empty one among them, and zeros between and after them."""
    packed = pack(DATA)
    assert unpack(packed) == DATA
    parts = [pack(DATA[:70_000]), pack(b""), bytes(8), pack(DATA[70_000:]), bytes(512)]
    assert unpack(b"".join(parts)) == DATA


@pytest.mark.parametrize("pack", PACKS)
def test_cut_data_are_an_error_wherever_they_are_cut(pack: Pack) -> None:
    """Also in the check sum at the end, and in the first bytes of the second stream."""
    packed = pack(DATA)
    for cut in (len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(EOFError, match="data stop before their end"):
            unpack(packed[:cut])
        with pytest.raises(EOFError, match="data stop before their end"):
            unpack(packed + packed[:cut])
    with pytest.raises(EOFError):
        unpack(packed + packed[:1])


@pytest.mark.parametrize("pack", PACKS)
def test_changed_data_are_an_error_in_any_stream(pack: Pack) -> None:
    """The standard library's readers of bzip2 and xz take a damaged second stream for the end."""
    packed = pack(DATA)
    spoiled = bytearray(packed)
    spoiled[-6] ^= 0xFF  # the check sum, or what stands for it
    for data in (bytes(spoiled), packed + bytes(spoiled), packed + b"no stream at all"):
        with pytest.raises(
            (ValueError, EOFError), match=r"damaged \w+ data|data stop before|no more of them"
        ):
            unpack(data)
    with pytest.raises(ValueError, match=r"^what follows \w+ data is no more of them: "):
        unpack(packed + b"no stream at all, whatever it may be")


def test_a_large_output_of_a_small_file_is_read_in_pieces() -> None:
    """A reader that asks for little gets little: 20 MiB of zeros are never held at once."""
    packed = io.BufferedReader(io.BytesIO(gzip.compress(bytes(20 * 2**20))))  # type: ignore[arg-type]
    stream = decompressed(packed)
    total = 0
    while found := stream.read(5000):
        assert len(found) <= 5000
        total += len(found)
    assert total == 20 * 2**20


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x1f\x9d\x90", "compress"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP\x01", "lzip"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, kind: str) -> None:
    """The message says which, and what is read."""
    with pytest.raises(
        ValueError, match=rf"plain or in gzip, bzip2, xz or zstd, got one in {kind}"
    ):
        unpack(start + bytes(20))


def test_zstd_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""

    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(compression.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"zstd, which needs the package \w+\.zstd"):
        unpack(b"\x28\xb5\x2f\xfd" + bytes(20))


def test_what_is_not_compressed_is_as_it_is() -> None:
    """Whatever it is."""
    assert unpack(b"plain") == b"plain"
    assert unpack(b"") == b""
