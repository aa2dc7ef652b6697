"""Single files, and the image files of a directory tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal import file_uris
from shoal.client import IngestItem
from shoal.errors import InvalidArgument
from shoal.sources.items import UNREADABLE, SourceConfig, SourceItem, failed, unreadable
from shoal.sources.kinds import HEAD_BYTES, has_image_suffix, is_hidden, reason_to_leave_out
from shoal.sources.left_out import LeftOut


def absolute(path: Path) -> Path:
    """``path`` from the root, without ``..``; symbolic links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links


def to_path(place: str) -> Path:
    """The path that ``place`` means, which is a path or a ``file:`` URI.

    Raises:
        InvalidArgument: the URI is malformed, of another machine, or of a member of a tar.
    """
    if not file_uris.is_file_uri(place):
        return Path(place)
    try:
        found = file_uris.from_uri(place)
    except ValueError as exc:
        raise InvalidArgument(f"{exc}, got {place}") from exc
    if found.member:
        raise InvalidArgument(f"expected a file (# in a path as %23), got {place}")
    return found.path


def walk(
    directory: Path, *, on_error: Callable[[OSError], object], left_out: LeftOut
) -> Iterator[Path]:
    """The images under ``directory``, in a fixed order; what is left out is counted.

    A file is an image by its suffix or by its first bytes. Symbolic links to files are followed;
    those to directories are not (they can be loops).
    """
    for parent, directories, files in os.walk(directory, onerror=on_error):
        entered = []
        for name in sorted(directories):
            reason = _reason_not_to_enter(parent, name)
            if reason:
                left_out.add(reason, os.path.join(parent, name))  # noqa: PTH118 - as os.walk's
            else:
                entered.append(name)
        directories[:] = entered
        for name in sorted(files):
            file = Path(parent, name)
            if reason := _reason_to_leave_out(file):
                left_out.add(reason, str(file))
            else:
                yield file


def _reason_not_to_enter(parent: str, name: str) -> str:
    if name.startswith("."):
        return "hidden_directory"
    return "link_to_directory" if Path(parent, name).is_symlink() else ""


def _reason_to_leave_out(file: Path) -> str:
    """Why ``file`` of a directory is left out; empty if it is sent."""
    if is_hidden(file.name) or has_image_suffix(file.name):
        return reason_to_leave_out(file.name, b"")
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return "not_a_file"
        with file.open("rb") as stream:
            return reason_to_leave_out(file.name, stream.read(HEAD_BYTES))
    except FileNotFoundError:
        return "broken_link"
    except OSError:
        return "unreadable"


def read_directory(directory: Path, config: SourceConfig) -> Iterator[SourceItem]:
    """The images under ``directory``; a failed outcome for each directory that cannot be read."""
    root = absolute(directory).name
    errors: list[OSError] = []
    for file in walk(directory, on_error=errors.append, left_out=config.left_out):
        while errors:
            yield _unreadable_directory(errors.pop())
        name = f"{root}/{file.relative_to(directory).as_posix()}"
        yield read_file(file, config, name=name)
    while errors:
        yield _unreadable_directory(errors.pop())


def _unreadable_directory(error: OSError) -> SourceItem:
    return unreadable(str(error.filename), error)


def read_file(file: Path, config: SourceConfig, *, name: str = "") -> SourceItem:
    """The image in ``file``, or the failed outcome that says why it cannot be read.

    ``name`` is its path under the argument, for ``keys="name"``; by default the file's own name.
    Only regular files are opened: a pipe would wait for ever, and a device may have no end.
    """
    shown = str(file)
    uri = file_uris.to_uri(file)
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return failed(shown, UNREADABLE, "cannot be read: not a regular file")
        if refused := config.too_large(shown, found.st_size):
            return refused
        with file.open("rb") as stream:
            data = stream.read(-1 if config.max_bytes is None else config.max_bytes + 1)
        if refused := config.too_large(shown, len(data)):  # it has grown since
            return refused
    except (OSError, ValueError) as exc:  # ValueError: a manifest's path with a null byte
        return unreadable(shown, exc)
    return IngestItem(
        data=data,
        key=config.key(uri=uri, name=name or file.name),
        uri=uri,
        source=config.source,
        payload=config.payload,
        name=shown,
        merge_fields=config.merge_fields,
    )
