"""Files under allowed directories, as ``file:`` URIs. Linux: it relies on O_PATH and /proc."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from embedder.locations.sources import Means, check_size, not_allowed, shown
from shoal.errors import InvalidArgument, LocationUnavailable, NotFound, ShoalError

_LOCAL = ("", "localhost")
_FOR_GOOD = frozenset({errno.ELOOP, errno.ENAMETOOLONG})
"""What trying again does not mend."""


class Files:
    """Reads files under ``roots``, links followed as long as they stay there."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Find out where the roots really lie."""
        self._named = [os.fsencode(os.path.abspath(root)) for root in roots]  # noqa: PTH100 - links stay
        self._real = [os.fsencode(root.resolve()) for root in roots]

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The bytes of the file; raises as ``Source.read`` says."""
        path = _path(uri)
        if not _is_under(path, self._named) and not _is_under(path, self._real):
            raise not_allowed(uri)  # without a look at what is there
        size = await means.run(self._size, uri, path)
        check_size(uri, size, max_bytes)
        await means.reserve(size)
        return await means.run(self._read, uri, path, size)

    def _size(self, uri: str, path: bytes) -> int:
        with self._found(uri, path) as found:
            return os.fstat(found).st_size

    def _read(self, uri: str, path: bytes, size: int) -> bytes:
        with self._found(uri, path) as found, _by_descriptor(found).open("rb") as file:
            data = file.read(size + 1)
        if len(data) != size:
            msg = f"file {shown(uri)}: it changed while it was read"
            raise LocationUnavailable(msg)
        return data

    @contextmanager
    def _found(self, uri: str, path: bytes) -> Iterator[int]:
        """A descriptor of the regular file at ``path``, which is under a root; not yet opened.

        O_PATH names a file without opening it, which a device or a pipe could feel. What is
        checked by the descriptor is what is read by it, whatever is renamed meanwhile.
        """
        try:
            found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise _failure(uri, exc) from exc
        try:
            if not _is_under(os.fsencode(_by_descriptor(found).readlink()), self._real):
                raise not_allowed(uri)
            if not stat.S_ISREG(os.fstat(found).st_mode):
                msg = f"image.uri: expected a regular file, got {shown(uri)}, which is none"
                raise InvalidArgument(msg, field="image.uri")
            yield found
        except OSError as exc:
            raise _failure(uri, exc) from exc
        finally:
            os.close(found)


def _failure(uri: str, error: OSError) -> ShoalError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound(f"no such file: {shown(uri)}")
    if isinstance(error, PermissionError) or error.errno in _FOR_GOOD:
        msg = f"image.uri: expected a file to read, got {shown(uri)}: {error.strerror}"
        return InvalidArgument(msg, field="image.uri")
    return LocationUnavailable(f"file {shown(uri)}: {error.strerror}")


def _path(uri: str) -> bytes:
    """The absolute path, without ``..``, that a ``file:`` URI means (RFC 8089)."""
    parts = urlsplit(uri)
    path = unquote_to_bytes(parts.path)
    if parts.netloc not in _LOCAL or not path.startswith(b"/") or b"\0" in path:
        msg = f"image.uri: expected file:///path, got {shown(uri)}"
        raise InvalidArgument(msg, field="image.uri")
    if parts.query or parts.fragment:
        msg = f"image.uri: expected ? and # in a path as %3F and %23, got {shown(uri)}"
        raise InvalidArgument(msg, field="image.uri")
    return os.path.normpath(path)


def _by_descriptor(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _is_under(path: bytes, roots: Sequence[bytes]) -> bool:
    return any(path.startswith(root.rstrip(b"/") + b"/") for root in roots)
