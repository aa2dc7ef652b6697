"""The data directory of ``shoal up``: how it is recognised, marked and given a place for fits.

    DIR/shoal.json   the marker: Shoal fills this directory
    DIR/store/       the embedded store
    DIR/heads/       trained heads; DIR/train/ has the views and checkpoints of their training
    DIR/scratch/     a directory for the fits of each process, deleted as the process ends

A directory that holds other things and none of this is somebody else's, and is refused. Files of
other people in a directory that is Shoal's are never touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import ConfigError
from shoal.files import FRESH
from shoal.ownership import (
    MARKER,
    leave_alone,
    mark,
    read_mark,
    remove_directory,
    remove_temporary,
    temporary,
)
from shoal.store.failures import NO_ROOM

_LOG = logging.getLogger(__name__)

_OURS = {"heads", "train", "contact-sheet.png"}
"""Names that other commands make in a data directory, perhaps before ``shoal up`` ran there."""

_FILE_SYSTEM = {"lost+found", ".snapshot"}
"""Names that a file system makes in a directory of its own."""

_STORE_PARTS = {"LOCK", "collections", MARKER, MARKER + FRESH}
_SHOWN = 3
"""The most strange entries that a message names."""


def check_data_directory(path: Path) -> None:
    """Makes ``path`` if it is not there; refuses it if it is neither empty nor Shoal's.

    Raises:
        ConfigError: it cannot be made or read, or holds somebody else's files.
        OperatorError: its marker is damaged.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if read_mark(path) is not None:
            return
        names = sorted(each.name for each in path.iterdir())
        strange = [name for name in names if not _may_be_ours(path / name)]
    except OSError as exc:
        msg = f"data directory {path}: cannot be used: {exc.strerror}"
        raise ConfigError(msg, path=str(path)) from exc
    if strange and not _has_store(path):
        shown = ", ".join(map(repr, strange[:_SHOWN]))
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        msg = (
            f"data directory {path}: expected an empty directory, a new one, or one that Shoal "
            f"made, got one with {shown}{more}; choose another directory"
        )
        raise ConfigError(msg, path=str(path))


@contextlib.contextmanager
def scratch_in(data: Path, scratch: Path) -> Iterator[Path | None]:
    """A new directory in ``scratch`` for this process's fits; None if the disk is full.

    Marks ``data``, which this process must own. Deletes what a killed process left in ``scratch``,
    and warns of everything else there. The new directory is deleted on leaving.
    """
    try:
        owner = mark(data)
        scratch.mkdir(exist_ok=True)
        for each in remove_temporary(scratch, owner=owner):
            leave_alone(each, "Shoal did not make it, or an earlier version did")
        own = temporary(scratch, owner=owner, purpose="fits")
        own.mkdir()
    except OSError as exc:
        if exc.errno in NO_ROOM:  # it starts all the same: it can be read
            _LOG.warning("no place for fits: %s", exc.strerror, extra={"path": str(scratch)})
            yield None
            return
        msg = f"data directory {data}: {scratch} cannot be used: {exc.strerror}"
        raise ConfigError(msg, path=str(scratch)) from exc
    try:
        yield own
    finally:
        remove_directory(own)


def _may_be_ours(entry: Path) -> bool:
    """Whether an entry of a directory without a marker takes nothing of somebody else's over."""
    if entry.name in _OURS | _FILE_SYSTEM:
        return True
    if entry.name == "store":
        return entry.is_dir() and {each.name for each in entry.iterdir()} <= _STORE_PARTS
    if entry.name == "scratch":
        return entry.is_dir() and not any(entry.iterdir())
    return entry.name == MARKER + FRESH or _is_written_by_us(entry)


def _has_store(data: Path) -> bool:
    """Whether an earlier version, which made no marker, kept a store here."""
    return (data / "store" / "LOCK").is_file() and (data / "store" / "collections").is_dir()


def _is_written_by_us(entry: Path) -> bool:
    """Whether ``entry`` is where this process's output goes: ``shoal up --data d > d/log``."""
    for stream in (sys.__stdout__, sys.__stderr__):
        # A program may have closed its streams, or replaced them by objects without a file.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.path.samestat(entry.stat(), os.fstat(stream.fileno())):  # type: ignore[union-attr]
                return True
    return False
