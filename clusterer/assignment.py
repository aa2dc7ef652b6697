"""Nearest-centroid assignment, one matrix product per block, and what it says of the clusters.

Pure: vectors in, labels and sums out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from shoal.vectors import Labels, Vectors

_CELLS = 4_000_000
"""Products at a time: 16 MB, enough for the matrix product to run at full speed."""


class Nearest(NamedTuple):
    """``labels`` int32 (B,): the row of the nearest centroid; ``cosines`` float32 (B,)."""

    labels: Labels
    cosines: npt.NDArray[np.float32]


def nearest(vectors: Vectors, centroids: Vectors) -> Nearest:
    """The nearest of ``centroids`` (K, D) for each of ``vectors`` (N, D), all unit length.

    Memory is bounded by blocks of _CELLS products, whatever N and K.
    """
    rows = max(1, _CELLS // max(1, len(centroids)))
    labels = np.empty(len(vectors), np.int32)
    best = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), rows):
        cosines = vectors[at : at + rows] @ centroids.T
        found = cosines.argmax(axis=1)
        labels[at : at + rows] = found
        best[at : at + rows] = cosines[np.arange(len(found)), found]
    return Nearest(labels, best)


def cluster_sums(vectors: Vectors, labels: Labels, clusters: int) -> npt.NDArray[np.float64]:
    """The sum of the ``vectors`` (N, D) of each of ``clusters`` labels, float64 (K, D)."""
    ones = np.ones(len(labels), np.float32)
    members = csr_array((ones, (labels, np.arange(len(labels)))), shape=(clusters, len(labels)))
    return np.asarray(members @ vectors, dtype=np.float64)


class Tally:
    """Sums over all blocks of an assignment pass: sizes, inertia and cohesion per cluster.

    Memory is K x D float64, whatever the number of points.
    """

    def __init__(self, clusters: int, dim: int) -> None:
        self._sums = np.zeros((clusters, dim), np.float64)
        self._cosines = np.zeros(clusters, np.float64)
        self.sizes = np.zeros(clusters, np.int64)

    def add(self, vectors: Vectors, found: Nearest) -> None:
        """Counts a block; ``found.labels`` are rows of the centroids."""
        self._sums += cluster_sums(vectors, found.labels, len(self.sizes))
        self._cosines += np.bincount(found.labels, found.cosines, len(self.sizes))
        self.sizes += np.bincount(found.labels, minlength=len(self.sizes))

    @property
    def inertia(self) -> float:
        """Sum of squared distances of the unit vectors to their cluster's mean.

        For unit vectors that is N - sum_k |S_k|^2 / n_k, with S_k the sum of cluster k.
        """
        counts = np.maximum(self.sizes, 1)
        return float(self.sizes.sum() - ((self._sums**2).sum(axis=1) / counts).sum())

    @property
    def cohesion(self) -> npt.NDArray[np.float64]:
        """Mean cosine of each cluster's members to its centroid, (K,)."""
        return self._cosines / np.maximum(self.sizes, 1)
