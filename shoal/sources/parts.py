"""Sources cut into parts for other processes to read. A part holds places, never images.

A directory is listed here. A manifest is cut into ranges of bytes without being read. A tar is
one part, because it can only be read from its beginning. The process that reads a part must see
the same files at the same places (on a shared file system), or be given URIs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias, cast

from shoal.errors import InvalidArgument
from shoal.sources.files import absolute, read_file, to_path, walk
from shoal.sources.items import SourceConfig, SourceItem, remote_item, unreadable
from shoal.sources.left_out import LeftOut
from shoal.sources.manifests import read_manifest
from shoal.sources.reading import STDIN, is_remote, kind_of
from shoal.sources.tars import read_tar

MANIFEST_BYTES: Final = 4 * 2**20
"""The most bytes of a manifest in one part: some ten thousand lines, half an hour of a core."""
_LEAST_MANIFEST_BYTES: Final = 2**14
_FILES_IN_PART: Final = 256

PartKind: TypeAlias = Literal["files", "manifest", "tar", "uris", "unreadable"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one task reads.

    Attributes:
        kind: What the places are. ``unreadable`` is a place that could not be listed.
        places: Files or URIs; one place for the other kinds.
        names: For ``files``, the name of each under the argument; for ``unreadable``, the reason.
        start: The part of a manifest has the lines that begin at this byte or after it...
        end: ...and before this one.
    """

    kind: PartKind
    places: tuple[str, ...]
    names: tuple[str, ...] = ()
    start: int = 0
    end: int = 0


def split(paths: Sequence[str], *, least: int, left_out: LeftOut) -> Iterator[Part]:
    """The parts of ``paths``. A manifest that is long enough gives at least ``least`` parts.

    ``left_out`` counts the files of directories that are in none.

    Raises:
        InvalidArgument: one of the paths is standard input, which only one process can read, or a
            ``file:`` URI that is malformed.
    """
    for path in paths:
        if path == STDIN:
            raise InvalidArgument("- : --engine spark reads manifests from files, not from stdin")
        if is_remote(path):
            yield Part("uris", (path,))
            continue
        location = to_path(path)
        match kind_of(location):
            case "directory":
                yield from _split_directory(absolute(location), left_out)
            case "tar" | "compressed tar":
                yield Part("tar", (str(absolute(location)),))
            case "manifest":
                yield from _split_manifest(absolute(location), least)
            case _:
                yield Part("files", (str(absolute(location)),), ("",))


def _split_directory(directory: Path, left_out: LeftOut) -> Iterator[Part]:
    """The images of ``directory``, named as by ``read_directory``, and what cannot be listed."""
    errors: list[OSError] = []
    places: list[str] = []
    names: list[str] = []
    for file in walk(directory, on_error=errors.append, left_out=left_out):
        places.append(str(file))
        names.append(f"{directory.name}/{file.relative_to(directory).as_posix()}")
        if len(places) == _FILES_IN_PART:
            yield Part("files", tuple(places), tuple(names))
            places, names = [], []
    if places:
        yield Part("files", tuple(places), tuple(names))
    for error in errors:
        yield Part(
            "unreadable", (str(error.filename or directory),), (str(error.strerror or error),)
        )


def _split_manifest(manifest: Path, least: int) -> Iterator[Part]:
    size = manifest.stat().st_size
    step = max(_LEAST_MANIFEST_BYTES, min(MANIFEST_BYTES, -(-size // max(1, least))))
    for start in range(0, size, step):
        yield Part("manifest", (str(manifest),), start=start, end=min(size, start + step))


def read_part(part: Part, config: SourceConfig) -> Iterator[SourceItem]:
    """The images of ``part``, each read when it is asked for."""
    match part.kind:
        case "files":
            for place, name in zip(part.places, part.names, strict=True):
                yield read_file(Path(place), config, name=name)
        case "uris":
            for place in part.places:
                yield remote_item(place, config)
        case "unreadable":
            yield unreadable(part.places[0], OSError(part.names[0]))
        case "tar":
            yield from read_tar(Path(part.places[0]), config)
        case _:
            yield from _read_manifest_part(Path(part.places[0]), part, config)


def _read_manifest_part(manifest: Path, part: Part, config: SourceConfig) -> Iterator[SourceItem]:
    """The items of the lines that begin in the part.

    Lines are numbered from the first of the part; the manifest's name says at which byte that is.
    """
    name = str(manifest) if not part.start else f"{manifest}@{part.start}"
    try:
        with manifest.open("rb") as file:
            if part.start:
                file.seek(part.start - 1)
                while (rest := file.readline(MANIFEST_BYTES)) and not rest.endswith(b"\n"):
                    pass
            lines = cast("IO[bytes]", _LinesBefore(file, part.end))
            yield from read_manifest(lines, config, base=manifest.parent, name=name)  # type: ignore[arg-type]
    except OSError as exc:
        yield unreadable(name, exc)


class _LinesBefore:
    """The lines of a file that begin before the byte ``end``, with the face of a file."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._end = end
        self._in_line = False

    def readline(self, size: int = -1) -> bytes:
        """The next line, or at most ``size`` bytes of it; empty after the last."""
        if not self._in_line and self._file.tell() >= self._end:
            return b""
        line = self._file.readline(size)
        self._in_line = bool(line) and not line.endswith(b"\n")
        return line
