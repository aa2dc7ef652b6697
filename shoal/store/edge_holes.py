"""The holes of sparse files: found, and filled so that writing there cannot fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from shoal.store.failures import NO_ROOM

_BLOCK = 4096
"""Fewer missing bytes are the rest of a block, or a small file that lies in its directory entry."""

Chosen = Callable[[Path, int], bool]
"""Whether a file counts, by its path and size."""


def every(path: Path, size: int) -> bool:
    """Every file counts."""
    del path, size
    return True


def missing(directory: Path, chosen: Chosen = every) -> int:
    """The bytes of the files under ``directory`` that take no room yet."""
    return sum(hole for _, _, hole in _sparse(directory, chosen))


def fill(directory: Path, chosen: Chosen = every) -> OSError | None:
    """Gives every byte of the files under ``directory`` its room, without a change of any.

    Returns:
        The system's error if there is no room; None if there is, or if the file system cannot.
    """
    for path, size, _ in _sparse(directory, chosen):
        failed = allocate(path, size, make=False)
        if failed is not None:
            return failed
    return None


def allocate(path: Path, size: int, *, make: bool) -> OSError | None:
    """Gives the first ``size`` bytes of a file their room; makes it if it is not there.

    Without ``make``, a file that is not there is left out.

    Returns:
        As ``fill``.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o644)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)
    except OSError as exc:
        return exc if exc.errno in NO_ROOM else None
    return None


def _sparse(directory: Path, chosen: Chosen) -> Iterator[tuple[Path, int, int]]:
    """The files with holes: path, size and missing bytes."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # the engine may rename it meanwhile
                status = path.stat()
                hole = status.st_size - status.st_blocks * 512
                if hole >= _BLOCK and chosen(path, status.st_size):
                    yield path, status.st_size, hole
