"""Single files, and the image files of a directory tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shoal.client import IngestItem
from shoal.sources.items import UNREADABLE, SourceConfig, SourceItem, failed, unreadable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
"""The suffixes of the files in a directory or tar that count as images.

A file whose own path is given is always read, whatever its suffix is."""


def is_image_name(name: str) -> bool:
    """True when a file called ``name`` inside a directory or tar counts as an image."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a tar's


def absolute(path: Path) -> Path:
    """``path`` from the root, without ``..``; symbolic links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links


def to_path(place: str) -> Path:
    """The path that ``place`` means, which is a path or a ``file:`` URI."""
    scheme, _, _ = place.partition(":")
    return Path(unquote(urlsplit(place).path) if scheme.lower() == "file" else place)


def walk(directory: Path, *, on_error: Callable[[OSError], object]) -> Iterator[Path]:
    """The image files under ``directory``, in a fixed order; hidden ones are left out.

    Symbolic links to files are followed; those to directories are not (they can be loops).
    """
    for parent, directories, files in os.walk(directory, onerror=on_error):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(files):
            if is_image_name(name):
                yield Path(parent, name)


def read_directory(directory: Path, config: SourceConfig) -> Iterator[SourceItem]:
    """The images under ``directory``; a failed outcome for each directory that cannot be read."""
    root = absolute(directory).name
    errors: list[OSError] = []
    for file in walk(directory, on_error=errors.append):
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
    uri = absolute(file).as_uri()
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
    )
