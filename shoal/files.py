"""Files that are whole or absent, also after a power cut. Knows nothing of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FRESH = ".shoal-new"
"""The end of the name of a file that is being written, before it takes the place of another."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file at; at the end it takes the place of ``path``.

    Whoever reads ``path`` finds the old file or the new one, whole. If the block raises, the old
    one stays. One writer at a time: the path to write at is always the same, and has a name that
    nobody else gives to a file.
    """
    fresh = path.with_name(path.name + FRESH)
    try:
        yield fresh
        put_in_place(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def put_in_place(fresh: Path, path: Path) -> None:
    """Renames ``fresh``, a file or a directory, to ``path`` once all of it is safe on disk."""
    if fresh.is_dir():
        sync_tree(fresh)
    else:
        sync(fresh)
    fresh.replace(path)
    sync(path.parent)


def sync_tree(directory: Path) -> None:
    """Makes every file under ``directory``, and the names that lead to it, safe on disk."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # its owner may rename it meanwhile
                sync(Path(parent, name))
        sync(Path(parent))
    sync(directory.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a directory, safe on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
