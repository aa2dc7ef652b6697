"""The embedded store's directory: one owner, and files that are whole or absent.

    PATH/LOCK                               flock held by the owner; contains its process id
    PATH/collections/NAME/collection.json   written last: without it the rest is debris
    PATH/collections/NAME/shard/            the engine's own files

Knows no engine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from shoal.errors import ConfigError, OperatorError, StoreLocked
from shoal.files import replacing, sync

FORMAT = 1
"""The version of ``collection.json`` that this module writes and reads."""


def take_lock(root: Path) -> BinaryIO:
    """The lock file of the store at ``root``, held until it is closed. Makes the directory.

    Raises:
        StoreLocked: a process, perhaps this one, owns the directory.
        ConfigError: the directory cannot be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / "collections").mkdir(exist_ok=True)
        lock = (root / "LOCK").open("a+b")
    except OSError as exc:
        raise ConfigError(f"store {root}: cannot use the directory: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.seek(0)
        owner = lock.read(20).decode("ascii", "replace").strip() or "unknown"
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
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n".encode("ascii"))
    lock.flush()
    return lock


def collection_dirs(root: Path) -> Iterator[Path]:
    """The whole collections under ``root``, by name; debris of a crash is removed."""
    for each in sorted((root / "collections").iterdir()):
        if (each / "collection.json").is_file():
            shutil.rmtree(each / "shard" / "temp_segments", ignore_errors=True)
            yield each
        elif each.is_dir():
            shutil.rmtree(each)


def read_metadata(directory: Path) -> dict[str, Any]:
    """What ``directory``'s collection notes about itself; OperatorError if it is damaged."""
    path = directory / "collection.json"
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
    with replacing(directory / "collection.json") as fresh:
        fresh.write_text(body, encoding="utf-8")


def remove_collection(directory: Path) -> None:
    """Deletes ``directory``. Cut short at any point, it leaves debris or nothing."""
    (directory / "collection.json").unlink(missing_ok=True)
    sync(directory)
    # Files that cannot be removed now are debris: the next start removes them.
    shutil.rmtree(directory, ignore_errors=True)
