"""Positive pairs: which two vectors a head must put into one cluster. Pure; NumPy only.

There are three kinds: two augmented views of one picture, a picture and one of its nearest
neighbours, and both at once: views of two neighbours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.errors import InvalidArgument
from shoal.vectors import Vectors

Rows: TypeAlias = npt.NDArray[np.int64]
PairKind: TypeAlias = Literal["neighbours", "augment", "both"]

_PAIR: Final = 2
_CELLS: Final = 16_000_000
"""Cosines that are computed at a time: 64 MB."""


class Epoch(NamedTuple):
    """The pairs of one pass over N pictures, in the order of training.

    ``first`` and ``second`` int64 (N,) are rows of ``Pairs.vectors``.
    """

    first: Rows
    second: Rows


@dataclass(frozen=True, slots=True)
class Pairs:
    """N pictures, V views of each, and perhaps their neighbours.

    Attributes:
        vectors: float32 (V * N, D), unit length: view 0 of all pictures, then view 1, ...
            View 0 is the unchanged picture.
        pictures: N.
        neighbours: int32 (N, M), the nearest pictures of each, nearest first; None if neighbours
            make no pairs.
    """

    vectors: Vectors
    pictures: int
    neighbours: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Checks.

        Raises:
            InvalidArgument: nothing would make a pair.
        """
        if self.views < _PAIR and self.neighbours is None:
            msg = f"pairs: expected at least 2 views of a picture, or neighbours, got {self.views}"
            raise InvalidArgument(msg, field="pairs")

    @property
    def views(self) -> int:
        """V."""
        return len(self.vectors) // self.pictures

    @property
    def kind(self) -> PairKind:
        """The kind of the pairs."""
        if self.neighbours is None:
            return "augment"
        return "both" if self.views >= _PAIR else "neighbours"

    def digest(self) -> str:
        """A hash of the vectors and the neighbours: other pairs have another."""
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors).data)
        if self.neighbours is not None:
            digest.update(np.ascontiguousarray(self.neighbours).data)
        return digest.hexdigest()

    def nearest(self, count: int) -> npt.NDArray[np.int32]:
        """The ``count`` nearest others of each picture, int32 (N, count); found if not known."""
        if self.neighbours is not None and self.neighbours.shape[1] >= count:
            return self.neighbours[:, :count]
        return nearest_neighbours(self.vectors[: self.pictures], count)

    def epoch(self, seed: int, number: int) -> Epoch:
        """The pairs of pass ``number``: they depend on ``seed`` and ``number`` alone."""
        rng = np.random.default_rng((seed, number))
        first = rng.permutation(self.pictures)
        second = first
        if self.neighbours is not None:
            picks = rng.integers(self.neighbours.shape[1], size=self.pictures)
            second = self.neighbours[first, picks].astype(np.int64)
        views = rng.integers(self.views, size=self.pictures)
        # The second view differs from the first if there are two: equal vectors teach nothing.
        others = (views + 1 + rng.integers(max(1, self.views - 1), size=self.pictures)) % self.views
        return Epoch(views * self.pictures + first, others * self.pictures + second)


def nearest_neighbours(vectors: Vectors, count: int) -> npt.NDArray[np.int32]:
    """The ``count`` nearest others of each of ``vectors`` (N, D), unit length: int32 (N, count).

    Exact, by blocks of matrix products: 2 N^2 D operations, N x 4 MB / N of memory at a time.
    """
    n = len(vectors)
    if not 1 <= count < n:
        msg = f"neighbours: expected 1 to {n - 1}, the other points, got {count}"
        raise InvalidArgument(msg, field="neighbours")
    found = np.empty((n, count), np.int32)
    step = max(1, _CELLS // n)
    for at in range(0, n, step):
        cosines = vectors[at : at + step] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, at + rows] = -np.inf
        near = np.argpartition(cosines, -count, axis=1)[:, -count:]
        order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1, kind="stable")
        found[at : at + step] = np.take_along_axis(near, order, axis=1)
    return found
