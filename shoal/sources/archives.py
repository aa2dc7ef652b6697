"""Tar archives, read front to back and to their very end, or not at all in silence.

Python's tarfile takes for the end whatever is no header. Here an archive ends with its end mark;
what comes after one may be another archive, as GNU tar reads it with --ignore-zeros.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

from shoal.sources.compression import decompressed

DAMAGE: Final = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    RecursionError,  # tarfile's, of headers that describe each other without end
)
"""The errors of a damaged archive, or of damaged compression around it."""

_MOST_HEADER_BYTES: Final = 2**20
"""The largest header that only describes the next one: tarfile holds it in memory."""
_MOST_MEMBER_BYTES: Final = 2**42
"""A file that claims more is damage; much larger ones no file system has, and none can skip."""
_DESCRIPTIONS: Final = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
_READ_BYTES: Final = 2**16


def _check(header: tarfile.TarInfo, tar: tarfile.TarFile, *, most: int) -> None:
    """Raises ReadError if ``header`` claims a size that cannot be."""
    if not 0 <= header.size <= most:
        msg = f"damaged after {tar.offset:,} bytes: a header that claims {header.size:,} bytes"
        raise tarfile.ReadError(msg)


class _Header(tarfile.TarInfo):
    """A header that must be whole."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """The next header; ReadError, saying after how many bytes, if it is damaged."""
        assert isinstance(tar, Archive)  # noqa: S101 - only an Archive makes these
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined,unused-ignore]  # the end mark
            tar.ended = True
            tar.skip_zeros()
            raise
        except tarfile.HeaderError as exc:
            empty = isinstance(exc, tarfile.EmptyHeaderError)  # type: ignore[attr-defined,unused-ignore]
            if empty and (tar.ended or tar.offset == 0):
                raise
            what = "no tar" if tar.offset == 0 else f"damaged after {tar.offset:,} bytes"
            msg = f"{what}: {exc}"
            raise tarfile.ReadError(msg) from exc
        except IndexError as exc:  # of a sparse file's list that is cut
            raise tarfile.ReadError(f"damaged after {tar.offset:,} bytes") from exc
        tar.ended = False
        return found

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        """What a header of this type describes; ReadError if it claims a size that cannot be."""
        described = self.type in _DESCRIPTIONS
        _check(self, tar, most=_MOST_HEADER_BYTES if described else _MOST_MEMBER_BYTES)
        return super()._proc_member(tar)  # type: ignore[misc]


class _Content(Protocol):
    """What is read of a tar besides what tarfile reads."""

    def peek(self, size: int, /) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


class Archive(tarfile.TarFile):
    """A tar, or several in one file."""

    tarinfo = _Header
    ended = False
    """Whether the last block was an end mark."""

    def skip_zeros(self) -> None:
        """Goes over blocks of zeros, many at a time: gigabytes of them are a megabyte of gzip."""
        content = cast("_Content", self.fileobj)
        while head := content.peek(tarfile.BLOCKSIZE):
            whole = len(head) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            if not whole or head[:whole].strip(b"\0"):
                return  # at the latest block by block, as tarfile reads
            self.offset += len(content.read(whole))

    def members_in_order(self) -> Iterator[tarfile.TarInfo]:
        """Each member when it is asked for; raises one of ``DAMAGE`` where the archive is broken.

        A tar without an end mark is broken too, though some programs write such tars: nothing else
        tells it from a tar that was cut between two members.
        """
        while (member := self.next()) is not None:
            _check(member, self, most=_MOST_MEMBER_BYTES)  # it may come from a pax header
            self.members.clear()  # type: ignore[attr-defined,unused-ignore]  # it keeps all in memory
            yield member


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The tar at ``path``, compressed or not, to be read once from its beginning to its end.

    Raises:
        One of ``DAMAGE``: it cannot be opened, or does not begin as a tar does.
    """
    with io.BufferedReader(io.FileIO(path), _READ_BYTES) as file:
        content = decompressed(file)
        if content is not file or not file.seekable():
            content = cast("io.BufferedReader[Any]", _Forward(content))
        with Archive(fileobj=content, mode="r", ignore_zeros=True) as tar:
            yield tar


class _Forward:
    """A stream as a file that is read forwards only; tarfile's own never notices the end."""

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        self._stream = stream
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        """Goes forwards to ``position``, or to the end of the stream if that comes before."""
        if position < self._at:
            msg = "a member that lies before its header"
            raise tarfile.ReadError(msg)
        while self._at < position and self.read(min(position - self._at, _READ_BYTES)):
            pass
        return self._at

    def peek(self, size: int) -> bytes:
        """Some of the next bytes; empty only at the end."""
        return self._stream.peek(size)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        data = self._stream.read(size)
        self._at += len(data)
        return data
