"""Nearest-centroid assignment, one matrix product per block, and sums over the clusters.

Pure: vectors in, labels and sums out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from shoal.vectors import Labels, Vectors

_CELLS = 4_000_000
"""The cosines of one matrix product: 16 MB, enough for it to run at full speed."""


class Nearest(NamedTuple):
    """``labels`` int32 (B,): the row of the nearest centroid; ``cosines`` float32 (B,)."""

    labels: Labels
    cosines: npt.NDArray[np.float32]


class TwoNearest(NamedTuple):
    """The nearest cluster, its cosine, and the cosine of the next cluster (-inf without one)."""

    labels: Labels
    cosines: npt.NDArray[np.float32]
    others: npt.NDArray[np.float32]


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` rows: a block of ``columns`` columns has at most _CELLS cells."""
    step = max(1, _CELLS // max(1, columns))
    for at in range(0, rows, step):
        yield slice(at, min(at + step, rows))


def nearest(vectors: Vectors, centroids: Vectors) -> Nearest:
    """The nearest of ``centroids`` (K, D) for each of ``vectors`` (N, D), all unit length.

    Memory is bounded by blocks of _CELLS products, whatever N and K.
    """
    labels = np.empty(len(vectors), np.int32)
    best = np.empty(len(vectors), np.float32)
    for rows in blocks(len(vectors), len(centroids)):
        cosines = vectors[rows] @ centroids.T
        found = cosines.argmax(axis=1)
        labels[rows] = found
        best[rows] = cosines[np.arange(len(found)), found]
    return Nearest(labels, best)


def two_nearest(vectors: Vectors, prototypes: Vectors, owners: Labels | None = None) -> TwoNearest:
    """The two clusters nearest to each of ``vectors`` (N, D), by their nearest prototype.

    ``owners`` int32 (M,), ascending without gaps from 0, are the clusters of the ``prototypes``
    (M, D); without owners each prototype is a cluster of its own.
    """
    labels = np.empty(len(vectors), np.int32)
    best = np.empty(len(vectors), np.float32)
    others = np.empty(len(vectors), np.float32)
    starts = None if owners is None else np.unique(owners, return_index=True)[1]
    for rows in blocks(len(vectors), len(prototypes)):
        cosines = vectors[rows] @ prototypes.T
        if starts is not None:
            cosines = np.maximum.reduceat(cosines, starts, axis=1)
        at = np.arange(len(cosines))
        found = cosines.argmax(axis=1)
        labels[rows], best[rows] = found, cosines[at, found]
        cosines[at, found] = -np.inf
        others[rows] = cosines.max(axis=1)
    return TwoNearest(labels, best, others)


def cluster_sums(vectors: Vectors, labels: Labels, clusters: int) -> npt.NDArray[np.float64]:
    """The sum of the ``vectors`` (N, D) of each of ``clusters`` labels, float64 (K, D).

    Noise counts for nothing.
    """
    rows = np.nonzero(labels >= 0)[0]
    ones = np.ones(len(rows), np.float32)
    members = csr_array((ones, (labels[rows], rows)), shape=(clusters, len(labels)))
    return np.asarray(members @ vectors, dtype=np.float64)


def directions(sums: npt.NDArray[np.floating]) -> Vectors:
    """The rows of ``sums`` (K, D) at unit length, float32; rows without a direction are left out.

    An empty cluster has no direction, and vectors that cancel out have none.
    """
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    kept = norms[:, 0] > 0
    return np.ascontiguousarray((sums[kept] / norms[kept]).astype(np.float32))


class Tally:
    """Sums over all blocks of an assignment pass: sizes, inertia and cohesion per cluster.

    Memory is K x D float64, whatever the number of points. Noise counts for nothing.
    """

    def __init__(self, centroids: Vectors) -> None:
        clusters, dim = centroids.shape
        self._centroids = centroids
        self._sums = np.zeros((clusters, dim), np.float64)
        self.sizes = np.zeros(clusters, np.int64)

    def add(self, vectors: Vectors, labels: Labels) -> None:
        """Counts a block (B, D); ``labels`` int32 (B,) are rows of the centroids, or noise."""
        self._sums += cluster_sums(vectors, labels, len(self.sizes))
        self.sizes += np.bincount(labels[labels >= 0], minlength=len(self.sizes))

    def merge(self, other: Tally) -> None:
        """Adds the sums of ``other``, which has the same centroids."""
        self._sums += other._sums
        self.sizes += other.sizes

    @property
    def inertia(self) -> float:
        """Sum of squared distances of the unit vectors to their cluster's mean.

        For unit vectors that is N - sum_k |S_k|^2 / n_k, with S_k the sum of cluster k.
        """
        counts = np.maximum(self.sizes, 1)
        return float(self.sizes.sum() - ((self._sums**2).sum(axis=1) / counts).sum())

    @property
    def cohesion(self) -> npt.NDArray[np.float64]:
        """Mean cosine of each cluster's members to its centroid, (K,): c_k . S_k / n_k."""
        cosines = (self._sums * self._centroids).sum(axis=1)
        return np.asarray(cosines / np.maximum(self.sizes, 1))
