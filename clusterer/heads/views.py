"""The vectors of augmented views, made once, and kept in a file for later trainings.

The caller says how a picture is read, and how views become vectors; for ``shoal train`` both are
calls to a server. This module knows neither gRPC nor an encoder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from clusterer.heads.augment import open_picture, random_view, to_file
from shoal.errors import InvalidArgument
from shoal.files import FRESH, replacing
from shoal.ownership import remove_directory
from shoal.vectors import Vectors

_LOG = logging.getLogger(__name__)

MOST_BYTES: Final = 8 * 1024**3
"""The most bytes of a cache, and of all caches in one directory: 2 million views, 1024-d."""

_CHUNK: Final = 32
"""Pictures whose views are made, and noted as done, together."""

_VIEWS, _DONE = "views.npy", "done.npy"
_FILES: Final = {_VIEWS, _DONE, _VIEWS + FRESH, _DONE + FRESH}
"""The names of the files of a cache."""

Read = Callable[[int], bytes]
"""Gives the file of a picture, by its row; raises ShoalError or OSError if it cannot be read."""

Embed = Callable[[Sequence[bytes]], Sequence[npt.NDArray[np.float32] | None]]
"""Gives the vector (D,) of each file, None for one that failed."""

ViewProgress = Callable[[int, int], None]
"""A listener that gets the number of pictures that are done, and of all pictures."""


@dataclass(frozen=True, slots=True)
class Views:
    """``vectors`` float32 (V, N, D); ``there`` bool (N,): True if a picture has all its views."""

    vectors: npt.NDArray[np.float32]
    there: npt.NDArray[np.bool_]


class ViewCache:
    """V views of each of N pictures, in ``views.npy`` and ``done.npy`` of a directory."""

    def __init__(self, directory: Path, *, views: int, pictures: int, dim: int) -> None:
        """Opens the cache, or makes it.

        Raises:
            InvalidArgument: it would be larger than MOST_BYTES, or has another shape.
        """
        size = 4 * views * pictures * dim
        if size > MOST_BYTES:
            msg = (
                f"views: expected a cache of at most {MOST_BYTES >> 30} GiB, got {size >> 30} GiB: "
                f"{views} views of {pictures} pictures, {dim}-d"
            )
            raise InvalidArgument(msg, field="views")
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        shape = (views, pictures, dim)
        self._vectors = _mapped(directory / _VIEWS, np.dtype(np.float32), shape)
        # The state of each picture: 0 not tried yet, 1 done, 2 cannot be read.
        self._done = _mapped(directory / _DONE, np.dtype(np.uint8), (pictures,))

    def fill(self, read: Read, embed: Embed, *, seed: int, progress: ViewProgress) -> Views:
        """Makes the missing views. A picture's views depend on ``seed`` and its row only."""
        # A picture that could not be read last time is tried again: it may be there now.
        missing = np.flatnonzero(self._done != 1)
        progress(len(self._done) - len(missing), len(self._done))
        for at in range(0, len(missing), _CHUNK):
            self._fill(missing[at : at + _CHUNK], read, embed, seed)
            progress(len(self._done) - len(missing) + at + _CHUNK, len(self._done))
        return Views(self._vectors, self._done == 1)

    def _fill(self, rows: npt.NDArray[np.int64], read: Read, embed: Embed, seed: int) -> None:
        count = len(self._vectors)
        files: list[bytes] = []
        state = np.full(len(rows), 2, np.uint8)
        readable: list[int] = []
        for place, row in enumerate(rows.tolist()):
            try:
                picture = open_picture(read(row))
            except Exception as exc:  # noqa: BLE001 - decoders raise anything for a damaged file
                _LOG.debug("picture %d: %s", row, exc)
                continue  # it is left out of the training, and counted
            rng = np.random.default_rng((seed, row))
            files += [to_file(random_view(picture, rng)) for _ in range(count)]
            readable.append(place)
        found = embed(files) if files else ()
        for number, place in enumerate(readable):
            vectors = found[number * count : (number + 1) * count]
            if all(each is not None for each in vectors):
                self._vectors[:, rows[place]] = np.stack([v for v in vectors if v is not None])
                state[place] = 1
        self._vectors.flush()  # before it is noted as done
        self._done[rows] = state
        self._done.flush()


def _mapped(file: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """The array in ``file``; one of zeros is made if there is no file."""
    if not file.exists():
        with replacing(file) as fresh:
            np.lib.format.open_memmap(fresh, "w+", dtype, shape).flush()
    found = np.lib.format.open_memmap(file, "r+")
    if found.shape != shape or found.dtype != dtype:
        msg = f"{file}: expected views of shape {shape}, got {found.shape}"
        raise InvalidArgument(msg, field="views")
    return found


def drop_oldest(directories: Sequence[Path], *, most: int = MOST_BYTES) -> None:
    """Removes the caches that were used longest ago, until the other ones fit into ``most`` bytes.

    Whenever a head is trained, a collection that grows has another sample, and another cache. A
    directory that holds anything but a cache's files is none, and stays.
    """
    found = [(path.stat().st_mtime, path) for path in directories if _is_cache(path)]
    total = 0
    for _, path in sorted(found, reverse=True):
        total += sum(file.stat().st_size for file in path.iterdir())
        if total > most:
            remove_directory(path, parts=_FILES)


def _is_cache(path: Path) -> bool:
    """Whether ``path`` is a directory with files of a cache, and nothing else."""
    return path.is_dir() and {_VIEWS} <= {each.name for each in path.iterdir()} <= _FILES


def with_views(vectors: Vectors, views: Views) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """The M pictures that have all views: float32 ((V + 1) * M, D), and their rows (M,).

    The order is that of ``Pairs``: view 0 is the unchanged picture.
    """
    rows = np.flatnonzero(views.there)
    first = vectors[rows][None]
    every = np.concatenate([first, views.vectors[:, rows]])
    return np.ascontiguousarray(every.reshape(-1, vectors.shape[1])), rows
