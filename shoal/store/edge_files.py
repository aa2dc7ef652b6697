"""The embedded store's directory: one owner, and collections that are whole or absent.

    PATH/LOCK                               flock held by the owner; contains its process id
    PATH/shoal.json                         the id that names of directories for a time contain
    PATH/collections/NAME/collection.json   the metadata
    PATH/collections/NAME/shard/            the engine's own files
    PATH/collections/NAME/unwritten         there while the log has writes that the rest has not
    PATH/collections/.new-ID-...            a collection that is being made
    PATH/collections/.dropped-ID-...        a collection that is being deleted

A collection is made and deleted by renaming its directory. The next start deletes what a killed
process left of the last two kinds, and nothing else. Knows no engine.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from shoal.errors import ConfigError, Conflict, InvalidArgument, OperatorError, StoreLocked
from shoal.files import FRESH, put_in_place, replacing, sync
from shoal.ownership import leave_alone, remove_directory, remove_temporary, temporary
from shoal.store.model import check_collection_name, records_name

FORMAT = 1
"""The version of ``collection.json`` that this module writes and reads."""

_METADATA = "collection.json"
_UNWRITTEN = "unwritten"
_PARTS = (_METADATA, _METADATA + FRESH, "shard", _UNWRITTEN)
"""The entries of a collection's directory that Shoal makes."""


def take_lock(root: Path) -> BinaryIO:
    """The lock file of the store at ``root``, held until it is closed. Makes the directory.

    Raises:
        StoreLocked: a process, perhaps this one, owns the directory.
        ConfigError: the directory cannot be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / "collections").mkdir(exist_ok=True)
        handle = os.open(root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        lock = os.fdopen(handle, "r+b", buffering=0)
    except OSError as exc:
        raise ConfigError(f"store {root}: cannot use the directory: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        owner = (lock.read(20) or b"").decode("ascii", "replace").strip() or "unknown"
        lock.close()
        raise StoreLocked(
            f"store {root} is in use by process {owner}: expected one owner; stop that process "
            "or talk to it over gRPC",
            path=str(root),
            pid=owner,
        ) from exc
    except OSError as exc:
        lock.close()
        raise ConfigError(f"store {root}: cannot lock the directory: {exc.strerror}") from exc
    number = f"{os.getpid()}\n".encode("ascii")
    with suppress(OSError):  # on a full disk the old number stays: the lock holds all the same
        os.pwrite(handle, number, 0)
        os.ftruncate(handle, len(number))
    return lock


def collection_dir(root: Path, name: str) -> Path:
    """The directory of the collection ``name`` in the store at ``root``."""
    return root / "collections" / name


def collection_dirs(root: Path, *, owner: str) -> Iterator[Path]:
    """The collections of the store at ``root``, whose id is ``owner``, by name.

    Deletes what a killed process left half made or half deleted. Warns of everything else that is
    no collection, and leaves it as it is.
    """
    for each in remove_temporary(root / "collections", owner=owner, parts=_PARTS):
        if not _is_name(each.name):
            leave_alone(each, "its name is not that of a collection")
        elif (each / _METADATA).is_file():
            yield each
        else:
            leave_alone(each, "it has no collection.json, so it is no collection, or a damaged one")


def _is_name(name: str) -> bool:
    """Whether a collection or a companion can have this name."""
    try:
        check_collection_name(name.removesuffix(records_name("")))
    except InvalidArgument:
        return False
    return True


def is_unwritten(directory: Path) -> bool:
    """Whether a collection has writes that are not written out, or had as its process ended."""
    return (directory / _UNWRITTEN).exists()


def note_unwritten(directory: Path) -> None:
    """Notes that a collection is about to have writes that are not written out."""
    if not is_unwritten(directory):
        (directory / _UNWRITTEN).touch()
        sync(directory)  # else a power cut takes the note with it


def note_written(directory: Path) -> None:
    """Notes that a collection is written out."""
    (directory / _UNWRITTEN).unlink(missing_ok=True)


@contextmanager
def new_collection(directory: Path, *, owner: str) -> Iterator[Path]:
    """A directory to make a collection in, which becomes ``directory`` at the end of the block.

    Raises:
        Conflict: there is something at ``directory``.
    """
    if directory.exists() or directory.is_symlink():
        msg = (
            f"collection {directory.name!r} cannot be made: {directory} is there, and is no "
            "collection that was found at the start; move it away, or restore its files and start "
            "again"
        )
        raise Conflict(msg, collection=directory.name, path=str(directory))
    fresh = temporary(directory.parent, owner=owner, purpose="new")
    fresh.mkdir()
    try:
        yield fresh
        put_in_place(fresh, directory)
    except BaseException:
        remove_directory(fresh, parts=_PARTS)
        raise


def read_metadata(directory: Path) -> dict[str, Any]:
    """What ``directory``'s collection notes about itself; OperatorError if it is damaged."""
    path = directory / _METADATA
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise OperatorError(f"{path}: expected JSON, got {exc}; restore the file") from exc
    if not isinstance(noted, dict) or noted.get("format") != FORMAT:
        raise OperatorError(f"{path}: expected format {FORMAT}; another version wrote it")
    metadata = noted.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def write_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    """Replaces what ``directory``'s collection notes about itself, in one durable step."""
    body = json.dumps({"format": FORMAT, "metadata": metadata}, indent=1, sort_keys=True)
    with replacing(directory / _METADATA) as fresh:
        fresh.write_text(body, encoding="utf-8")


def remove_collection(directory: Path, *, owner: str) -> None:
    """Deletes ``directory``. Cut short at any point, it leaves all of it or no collection."""
    dropped = temporary(directory.parent, owner=owner, purpose="dropped")
    directory.rename(dropped)
    sync(directory.parent)
    remove_directory(dropped, parts=_PARTS)
