"""Compressed files, read front to back: all streams of a file, and the check sum of each.

The readers of Python's standard library take what follows the first stream of a file for its end
if it is damaged, and say nothing. These raise.
"""

from __future__ import annotations

import bz2
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Final, Protocol

_CHUNK_BYTES: Final = 2**16
_MOST_MEMORY: Final = 2**30
"""The largest dictionary of xz, which a hostile file may claim. `xz -9` needs 64 MiB."""


class _Stream(Protocol):
    """One compressed stream, as ``bz2.BZ2Decompressor`` has it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One member of a gzip file, with whatever its header has."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _xz() -> _Stream:
    return lzma.LZMADecompressor(memlimit=_MOST_MEMORY)


def _zstd() -> _Stream:
    """One frame of zstd; ValueError if the package that reads it is missing."""
    package = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        module = importlib.import_module(package)
    except ImportError as exc:
        msg = f"compressed with zstd, which needs the package {package}"
        raise ValueError(msg) from exc
    stream: _Stream = module.ZstdDecompressor()
    return stream


# What pzstd and others write first is a frame to be skipped.
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", *(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(0x50, 0x60)))


_KINDS: Final[tuple[tuple[tuple[bytes, ...], str, Callable[[], _Stream]], ...]] = (
    ((b"\x1f\x8b",), "gzip", _Gzip),
    ((b"BZh",), "bzip2", bz2.BZ2Decompressor),
    ((b"\xfd7zXZ\0", b"]\0\0"), "xz", _xz),
    (_ZSTD, "zstd", _zstd),
)
_NOT_READ: Final = {
    b"\x1f\x9d": "compress (.Z)",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
    b"\x89LZO": "lzop",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
}


def decompressed(file: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """What ``file`` has, decompressed if it is compressed; its first bytes tell how.

    Reading raises ValueError where the data are damaged, and EOFError where they stop too early.

    Raises:
        ValueError: the format is known, but not read; the message names it.
    """
    head = file.peek(16)
    for starts, kind, make in _KINDS:
        if head.startswith(starts):
            return io.BufferedReader(_Streams(file, kind, make), _CHUNK_BYTES)
    for start, kind in _NOT_READ.items():
        if head.startswith(start):
            msg = f"expected a tar, plain or in gzip, bzip2, xz or zstd, got one in {kind}"
            raise ValueError(msg)
    return file


class _Streams(io.RawIOBase):
    """The streams in a file, one after the other; zeros between and after them are skipped."""

    def __init__(self, file: BinaryIO, kind: str, make: Callable[[], _Stream]) -> None:
        self._file = file
        self._kind = kind
        self._make = make
        self._stream = make()
        self._begun = ""
        """What to say of damage at the beginning of another stream."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what io passes
        """Fills ``buffer`` with some of what comes next; 0 after the last stream."""
        if not buffer:
            return 0
        while True:
            if self._stream.eof:
                data = self._next_start()
                if not data:
                    return 0
                self._stream = self._make()
                self._begun = f"what follows {self._kind} data is no more of them"
            else:
                data = self._file.read(_CHUNK_BYTES) if self._stream.needs_input else b""
            wanted = self._stream.needs_input
            found = self._decompress(data, len(buffer))
            if found:
                self._begun = ""
                buffer[: len(found)] = found
                return len(found)
            if wanted and not data and not self._stream.eof:
                msg = f"the {self._kind} data stop before their end"
                raise EOFError(msg)

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            return self._stream.decompress(data, size)
        except Exception as exc:  # each kind has an error of its own
            msg = f"{self._begun or f'damaged {self._kind} data'}: {exc}"
            raise ValueError(msg) from exc

    def _next_start(self) -> bytes:
        """The first bytes of the next stream; empty if there is none."""
        data = self._stream.unused_data.lstrip(b"\0")
        while not data:
            chunk = self._file.read(_CHUNK_BYTES)
            if not chunk:
                return b""
            data = chunk.lstrip(b"\0")
        return data
