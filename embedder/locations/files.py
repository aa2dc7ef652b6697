"""Reads ``file:`` URIs under allowed directories. For Linux only: it needs O_PATH and /proc."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from embedder.locations.sources import Means, check_size, not_allowed, shown
from shoal import file_uris
from shoal.errors import InvalidArgument, LocationUnavailable, NotFound, ShoalError

_PERMANENT_ERRORS = frozenset({errno.ELOOP, errno.ENAMETOOLONG})
"""Errors that come again however often one tries."""


class Files:
    """Reads files under ``roots``. Links are followed if they stay under a root."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Resolves the links in the roots' own paths."""
        self._named = [os.fsencode(os.path.abspath(root)) for root in roots]  # noqa: PTH100 - links stay
        self._real = [os.fsencode(root.resolve()) for root in roots]

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The bytes of the file; raises as ``Source.read`` says."""
        path = _path(uri)
        if not _is_under(path, self._named) and not _is_under(path, self._real):
            raise not_allowed(uri)  # before looking whether the file exists
        size = await means.run(self._size, uri, path)
        check_size(uri, size, max_bytes)
        await means.reserve(size)
        return await means.run(self._read, uri, path, size)

    def _size(self, uri: str, path: bytes) -> int:
        with self._checked(uri, path) as descriptor:
            return os.fstat(descriptor).st_size

    def _read(self, uri: str, path: bytes, size: int) -> bytes:
        with (
            self._checked(uri, path) as descriptor,
            _by_descriptor(descriptor).open("rb") as file,
        ):
            data = file.read(size + 1)
        if len(data) != size:
            raise LocationUnavailable(f"file {shown(uri)}: it changed while it was read")
        return data

    @contextmanager
    def _checked(self, uri: str, path: bytes) -> Iterator[int]:
        """A descriptor of the file at ``path``, after checking that it is regular and under a root.

        O_PATH gives a descriptor without opening the file, which a device or a pipe would notice.
        The file is read through the same descriptor, so renaming it after the check changes
        nothing.
        """
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise _failure(uri, exc) from exc
        try:
            if not _is_under(os.fsencode(_by_descriptor(descriptor).readlink()), self._real):
                raise not_allowed(uri)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                msg = f"image.uri: expected a regular file, got {shown(uri)}, which is none"
                raise InvalidArgument(msg, field="image.uri")
            yield descriptor
        except OSError as exc:
            raise _failure(uri, exc) from exc
        finally:
            os.close(descriptor)


def _failure(uri: str, error: OSError) -> ShoalError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound(f"no such file: {shown(uri)}")
    if isinstance(error, PermissionError) or error.errno in _PERMANENT_ERRORS:
        msg = f"image.uri: expected a file to read, got {shown(uri)}: {error.strerror}"
        return InvalidArgument(msg, field="image.uri")
    return LocationUnavailable(f"file {shown(uri)}: {error.strerror}")


def _path(uri: str) -> bytes:
    """The absolute path, without ``..``, of a ``file:`` URI."""
    try:
        place = file_uris.from_uri(uri)
    except ValueError as exc:
        msg = f"image.uri: {exc}, got {shown(uri)}"
        raise InvalidArgument(msg, field="image.uri") from exc
    if place.member:
        msg = f"image.uri: expected # in a path as %23, got {shown(uri)}"
        raise InvalidArgument(msg, field="image.uri")
    return os.path.normpath(os.fsencode(place.path))


def _by_descriptor(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _is_under(path: bytes, roots: Sequence[bytes]) -> bool:
    return any(path.startswith(root.rstrip(b"/") + b"/") for root in roots)
