"""The items at given paths, and how many there will be."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from shoal.errors import InvalidArgument, NotFound
from shoal.sources.files import read_directory, read_file, to_path, walk
from shoal.sources.items import (
    UNREADABLE,
    SourceConfig,
    SourceItem,
    failed,
    remote_item,
    unreadable,
)
from shoal.sources.kinds import HEAD_BYTES, is_compressed, is_image, is_tar
from shoal.sources.left_out import LeftOut
from shoal.sources.manifests import MANIFEST_SUFFIXES, read_lines, read_manifest
from shoal.sources.tars import TAR_SUFFIXES, count_tar, read_tar

STDIN = "-"
Place: TypeAlias = str | os.PathLike[str]
Kind: TypeAlias = Literal["directory", "tar", "compressed tar", "manifest", "file"]
_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""The beginning of a URI that the server reads."""


def _texts(paths: Iterable[Place]) -> Iterator[str]:
    return (os.fspath(path) for path in paths)


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URI, which is read by the server that stores the image."""
    return _REMOTE.match(path) is not None


def check_paths(paths: Iterable[Place]) -> None:
    """Checks that all ``paths`` exist; ``-`` and remote URIs always pass.

    Raises:
        NotFound: a path does not exist; the message names it.
        InvalidArgument: a ``file:`` URI is malformed, or of another machine.
    """
    for path in _texts(paths):
        if path != STDIN and not _REMOTE.match(path) and not to_path(path).exists():
            raise NotFound(f"no such file or directory: {path}", path=path)


def open_stdin() -> BinaryIO:
    """Standard input with a buffer of its own; an empty file if there is no standard input.

    A thread of gRPC may still wait for input when the program ends. If that thread held the lock of
    ``sys.stdin``'s own buffer, Python would abort.
    """
    if sys.stdin is None:
        return io.BytesIO()
    try:
        number = sys.stdin.fileno()
    except OSError:  # replaced by an object without a descriptor
        return sys.stdin.buffer
    return open(number, "rb", closefd=False)


def read_items(
    paths: Iterable[Place],
    config: SourceConfig | None = None,
    *,
    stdin: BinaryIO | None = None,
) -> Iterator[SourceItem]:
    """The images at ``paths``, one after the other, each read when it is asked for.

    A path is an image, a directory (its image files), a tar (also compressed), a manifest
    (.jsonl, .ndjson) or a ``file:`` URI of one of these. ``-`` is a manifest on ``stdin``, by
    default the program's, with paths relative to the working directory. The server reads images at
    other URIs. A path that does not exist is a failed outcome; ``check_paths`` finds it earlier.
    ``config.left_out`` counts the files of directories and tars that are no images, or hidden.
    """
    config = SourceConfig() if config is None else config
    for path in _texts(paths):
        if path == STDIN:
            lines = open_stdin() if stdin is None else stdin
            yield from read_manifest(lines, config, base=Path.cwd(), name="stdin", piped=True)
        elif _REMOTE.match(path):
            yield remote_item(path, config)
        else:
            try:
                location = to_path(path)
            except InvalidArgument as exc:
                yield failed(path, UNREADABLE, exc.message)
            else:
                yield from _read_local(location, config)


def _read_local(location: Path, config: SourceConfig) -> Iterator[SourceItem]:
    match kind_of(location):
        case "directory":
            yield from read_directory(location, config)
        case "tar" | "compressed tar":
            yield from read_tar(location, config)
        case "manifest":
            yield from _open_manifest(location, config)
        case _:
            yield read_file(location, config)


def kind_of(location: Path) -> Kind:
    """What to read ``location`` as: by its content, and by its suffix where that says nothing."""
    if location.is_dir():
        return "directory"
    head = b""
    # A pipe can be read only once. What cannot be read is told when it is read.
    if location.is_file():
        with contextlib.suppress(OSError), location.open("rb") as file:
            head = file.read(HEAD_BYTES)
    name = location.name.lower()
    if is_compressed(head):
        return "compressed tar"
    if is_tar(head) or (name.endswith(TAR_SUFFIXES) and not is_image(head)):
        return "tar"
    return "manifest" if name.endswith(MANIFEST_SUFFIXES) else "file"


def _open_manifest(location: Path, config: SourceConfig) -> Iterator[SourceItem]:
    try:
        with location.open("rb") as lines:
            yield from read_manifest(lines, config, base=location.parent, name=str(location))
    except OSError as exc:
        yield unreadable(str(location), exc)


def count_items(paths: Iterable[Place], *, limit_s: float = 2.0) -> int | None:
    """The number of items at ``paths``; None if it is not known within ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    total = 0
    for path in _texts(paths):
        try:
            counted = iter((1,)) if _REMOTE.match(path) else _count(path)
        except InvalidArgument:  # of a file: URI, which is one failure
            counted = iter((1,))
        if counted is None:
            return None
        for each in counted:
            total += each
            if time.monotonic() > deadline:
                return None
    return total


def _count(path: str) -> Iterator[int] | None:
    """Ones and zeros whose sum is the count; None if counting costs as much as reading."""
    location = to_path(path)
    if path == STDIN or not (location.is_dir() or location.is_file()):
        return None  # a pipe can be read only once
    match kind_of(location):
        case "directory":
            return (1 for _ in walk(location, on_error=lambda _: None, left_out=LeftOut()))
        case "tar":
            return count_tar(location)
        case "compressed tar":
            return None
        case "manifest":
            return _count_lines(location)
        case _:
            return iter((1,))


def _count_lines(location: Path) -> Iterator[int]:
    try:
        with location.open("rb") as manifest:
            yield from (int(line is None or bool(line.strip())) for line in read_lines(manifest))
    except OSError:
        return
