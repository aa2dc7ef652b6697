"""From the arguments of a command to items, and how many there will be."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from shoal.errors import NotFound
from shoal.sources.files import read_directory, read_file, to_path, walk
from shoal.sources.items import Found, SourceConfig, remote_item, unreadable
from shoal.sources.manifests import MANIFEST_SUFFIXES, read_lines, read_manifest
from shoal.sources.tars import TAR_SUFFIXES, count_tar, read_tar

STDIN = "-"
_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""How a URI that the server is to read begins."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URI that is left to whoever stores the images."""
    return _REMOTE.match(path) is not None


def check_paths(paths: Sequence[str]) -> None:
    """Raise NotFound, naming the path, unless all ``paths`` exist, but ``-`` and remote URIs."""
    for path in paths:
        if path != STDIN and not _REMOTE.match(path) and not to_path(path).exists():
            msg = f"no such file or directory: {path}"
            raise NotFound(msg, path=path)


def open_stdin() -> BinaryIO:
    """Standard input with a buffer of its own; empty where there is none.

    gRPC's thread may still wait in it when the program ends, and Python aborts where that holds
    the lock of ``sys.stdin``'s buffer.
    """
    if sys.stdin is None:
        return io.BytesIO()
    try:
        number = sys.stdin.fileno()
    except OSError:  # replaced by an object without a descriptor
        return sys.stdin.buffer
    return open(number, "rb", closefd=False)


def read_items(paths: Sequence[str], config: SourceConfig, *, stdin: BinaryIO) -> Iterator[Found]:
    """The images at ``paths``, one after the other, each read when it is asked for.

    ``-`` is a manifest on ``stdin``, with paths relative to the working directory. A URI that is
    not a file's is left to the server.
    """
    for path in paths:
        location = to_path(path)
        if path == STDIN:
            yield from read_manifest(stdin, config, base=Path.cwd(), name="stdin", piped=True)
        elif _REMOTE.match(path):
            yield remote_item(path, config)
        elif location.is_dir():
            yield from read_directory(location, config)
        elif path.lower().endswith(TAR_SUFFIXES):
            yield from read_tar(location, config)
        elif path.lower().endswith(MANIFEST_SUFFIXES):
            yield from _open_manifest(location, config)
        else:
            yield read_file(location, config)


def _open_manifest(location: Path, config: SourceConfig) -> Iterator[Found]:
    try:
        with location.open("rb") as lines:
            yield from read_manifest(lines, config, base=location.parent, name=str(location))
    except OSError as exc:
        yield unreadable(str(location), exc)


def count_items(paths: Sequence[str], *, limit_s: float = 2.0) -> int | None:
    """How many items ``paths`` hold; None when that is not known within ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    total = 0
    for path in paths:
        counted = iter((1,)) if _REMOTE.match(path) else _count(path)
        if counted is None:
            return None
        for one in counted:
            total += one
            if time.monotonic() > deadline:
                return None
    return total


def _count(path: str) -> Iterator[int] | None:
    """Ones and zeros to add up, or None where counting costs as much as reading."""
    location = to_path(path)
    lowered = path.lower()
    if path == STDIN or not (location.is_dir() or location.is_file()):
        return None  # a pipe can be read only once
    if location.is_dir():
        return (1 for _ in walk(location, on_error=lambda _: None))
    if lowered.endswith(".tar"):
        return count_tar(location)
    if lowered.endswith(TAR_SUFFIXES):
        return None
    if lowered.endswith(MANIFEST_SUFFIXES):
        return _count_lines(location)
    return iter((1,))


def _count_lines(location: Path) -> Iterator[int]:
    try:
        with location.open("rb") as manifest:
            yield from (int(line is None or bool(line.strip())) for line in read_lines(manifest))
    except OSError:
        return
