"""Spherical k-means: k-means++ and Lloyd by scikit-learn, then cosine Lloyd to a fixed point.

Source: Dhillon & Modha, "Concept decompositions for large sparse text data using clustering",
Machine Learning 42 (2001). On unit vectors Euclidean k-means minimises nearly the same sum, so
scikit-learn does the work; the few cosine steps after it make the centroids directions, so that
nearest-centroid assignment, which is all that serving does, is a fixed point of the fit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from clusterer.assignment import Tally, cluster_sums, nearest
from shoal.errors import FitFailed, NotEnoughPoints
from shoal.vectors import Vectors

WARM_TOLERANCE = 0.005
"""A warm start wins while its inertia is within 0.5% of the best cold one: ids that stay are
worth more than a difference that another seed would make."""

_POLISH_STEPS = 50
"""Cosine Lloyd settles in under 10 steps from a Euclidean optimum; this only bounds it."""

_FULL_RESTART_WORK = 4_000_000
"""N x K up to which ten starts take seconds; beyond, fewer, and never under 3: one start alone
is unsafe, and with many clusters each start is less of a gamble."""


@dataclass(frozen=True, slots=True)
class KMeansOptions:
    """``n_init`` 0 chooses the number of starts by size."""

    k: int
    n_init: int = 0
    max_iterations: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True)
class KMeansFit:
    """``centroids`` float32 (K, D), unit length; ``inertia`` over the sample, by its means."""

    centroids: Vectors
    inertia: float
    warm: bool


def fit(vectors: Vectors, options: KMeansOptions, *, warm: Vectors | None = None) -> KMeansFit:
    """Clusters ``vectors`` into at most ``options.k`` clusters.

    Args:
        vectors: float32 (N, D), unit length.
        options: k, starts, iterations and seed.
        warm: centroids (K', D) to try as one more start; ignored unless K' is ``options.k``.

    Returns:
        Fewer than k centroids only if there are fewer than k different vectors.

    Raises:
        NotEnoughPoints: k > N.
    """
    if options.k > len(vectors):
        raise NotEnoughPoints(
            f"k = {options.k} is larger than the number of points, {len(vectors)}"
        )
    starts = options.n_init or default_starts(len(vectors), options.k)
    with warnings.catch_warnings():
        # Fewer different vectors than clusters: the empty ones are dropped below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = _lloyd(vectors, options, init="k-means++", starts=starts)
        used_warm = False
        if warm is not None and len(warm) == options.k:
            warmed = _lloyd(vectors, options, init=warm, starts=1)
            if warmed.inertia_ <= best.inertia_ * (1 + WARM_TOLERANCE):
                best, used_warm = warmed, True
    centroids = _polish(vectors, best.cluster_centers_.astype(np.float32))
    return KMeansFit(centroids, _inertia(vectors, centroids), used_warm)


def default_starts(n: int, k: int) -> int:
    """The number of k-means++ starts for ``n`` points and ``k`` clusters: 10, less when large."""
    return 10 if n * k <= _FULL_RESTART_WORK else 3


def _lloyd(vectors: Vectors, options: KMeansOptions, *, init: str | Vectors, starts: int) -> KMeans:
    model = KMeans(
        options.k,
        init=init,
        n_init=starts,
        max_iter=options.max_iterations,
        random_state=options.seed % 2**32,  # NumPy's seeds are 32 bits
    )
    return model.fit(vectors)


def _polish(vectors: Vectors, centroids: Vectors) -> Vectors:
    """Cosine Lloyd from ``centroids`` until no label changes; empty clusters are dropped."""
    directions = _directions(centroids)
    if not len(directions):
        raise FitFailed("the vectors cancel out: their mean has no direction; use a larger k")
    labels = nearest(vectors, directions).labels
    for _ in range(_POLISH_STEPS):
        directions = _directions(cluster_sums(vectors, labels, len(directions)))
        moved = nearest(vectors, directions).labels
        if np.array_equal(moved, labels):
            break
        labels = moved
    return directions


def _directions(sums: np.ndarray) -> Vectors:
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    kept = norms[:, 0] > 0  # an empty cluster has no direction, nor have vectors that cancel
    return np.ascontiguousarray((sums[kept] / norms[kept]).astype(np.float32))


def _inertia(vectors: Vectors, centroids: Vectors) -> float:
    """Sum of squared distances of ``vectors`` to the means of their clusters."""
    tally = Tally(len(centroids), vectors.shape[1])
    tally.add(vectors, nearest(vectors, centroids))
    return tally.inertia
