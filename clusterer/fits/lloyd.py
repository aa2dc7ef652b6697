"""Lloyd's algorithm on the sphere: each cluster's centroid is the direction of its members' sum.

Source: Dhillon & Modha, "Concept decompositions for large sparse text data using clustering",
Machine Learning 42 (2001). Blocks of rows go to threads, each with one BLAS thread: the threads of
one BLAS call wait for each other by spinning, which beside a busy process brings all to a halt.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clusterer.nearest import Nearest, cluster_sums, directions, nearest
from shoal.cores import usable_cores
from shoal.errors import FitFailed
from shoal.vectors import Vectors

TOLERANCE: Final = 1e-5
"""A start has settled when one step lowers its inertia by less than this share."""

_LEAST_ROWS: Final = 4_096
"""The least rows of a block: fewer are not worth a thread."""


@dataclass(frozen=True, slots=True)
class LloydFit:
    """The end of one start.

    Attributes:
        centroids: float32 (K, D), unit length.
        inertia: The sum of squared distances of the vectors to their centroids, 2 sum (1 - cosine).
            scikit-learn's k-means minimises the distances to means instead, a few percent apart.
        settled: False if the number of steps ended it before the centroids came to rest.
    """

    centroids: Vectors
    inertia: float
    settled: bool


def lloyd(
    vectors: Vectors, centroids: Vectors, *, most_steps: int, tolerance: float = TOLERANCE
) -> LloydFit:
    """Moves ``centroids`` (K, D) until each is the direction of the ``vectors`` nearest to it.

    Args:
        vectors: float32 (N, D), unit length.
        centroids: where they start; any length.
        most_steps: the most steps to take.
        tolerance: the least relative fall of the inertia that is worth another step; 0 goes on
            until no vector changes its cluster.

    Returns:
        K centroids, or as many as there are different vectors: a cluster that loses all its members
        starts anew at the vector that is farthest from its centroid.

    Raises:
        FitFailed: no starting centroid has a direction.
    """
    k = len(centroids)
    found = directions(centroids)
    labels, before, settled = None, np.inf, False
    with ThreadPoolExecutor(usable_cores(), "shoal-lloyd") as threads:
        for _ in range(most_steps + 1):
            if not len(found):
                msg = "the vectors cancel out: their mean has no direction; use a larger k"
                raise FitFailed(msg)
            now, sums = _step(vectors, found, threads)
            if labels is not None and np.array_equal(now.labels, labels):
                settled = True
                break
            labels = now.labels
            inertia = 2 * (len(vectors) - float(np.linalg.norm(sums, axis=1).sum()))
            found = directions(sums)
            if len(found) < k:
                found = _refilled(vectors, found, now, k)
                k = len(found)  # fewer, if there are no more different vectors
                labels, before = None, np.inf
            elif tolerance and inertia >= before * (1 - tolerance):
                settled = True
                break
            else:
                before = inertia
    return LloydFit(found, inertia, settled)


def _step(
    vectors: Vectors, centroids: Vectors, threads: ThreadPoolExecutor
) -> tuple[Nearest, npt.NDArray[np.float64]]:
    """The nearest of ``centroids`` (K, D) to each vector, and the sums of their vectors, (K, D)."""

    def part(rows: Vectors) -> tuple[Nearest, npt.NDArray[np.float64]]:
        found = nearest(rows, centroids)
        return found, cluster_sums(rows, found.labels, len(centroids))

    parts = max(1, min(4 * usable_cores(), len(vectors) // _LEAST_ROWS))
    found, sums = zip(*threads.map(part, np.array_split(vectors, parts)), strict=True)
    whole = Nearest(*(np.concatenate(each) for each in zip(*found, strict=True)))
    return whole, np.sum(sums, axis=0)


def _refilled(vectors: Vectors, centroids: Vectors, now: Nearest, k: int) -> Vectors:
    """``k`` centroids: the given ones, and the vectors that are farthest from their own.

    Fewer than ``k`` if there are fewer different vectors.
    """
    farthest = np.argsort(now.cosines, kind="stable")[: k - len(centroids)]
    apart = farthest[now.cosines[farthest] < 1 - np.finfo(np.float32).eps * 8]
    return np.concatenate([centroids, vectors[apart]])
