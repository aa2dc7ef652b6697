"""Spherical k-means: scikit-learn's k-means++, then Lloyd on the sphere to a fixed point.

The seeds come from a sample: k-means++ looks at every vector for each of the k seeds, which on all
of them takes as long as the whole of Lloyd, and from twenty vectors per cluster they are as good
(README). Nearest-centroid assignment, which is all that serving does, is a fixed point of the fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from clusterer.fits.count.asked import AskedCount, check_count, count_clusters, fewest
from clusterer.fits.lloyd import Converged, lloyd
from clusterer.fits.models import Centroids
from clusterer.fits.values import Fit, FitPlan, Surroundings
from shoal.errors import NotEnoughPoints
from shoal.vectors import Vectors

MAX_ITERATIONS = 100
"""Iterations of one start, unless the caller says otherwise."""

WARM_TOLERANCE = 0.005
"""A warm start wins while its inertia is within 0.5% of the best cold one: ids that stay are
worth more than a difference that another seed would make."""

_POLISH_STEPS = 50
"""Cosine Lloyd settles in under 10 steps from a Euclidean optimum; this only bounds it."""

_SEEDS_PER_CLUSTER, _SEEDS_LEAST = 20, 5_000
"""Vectors that k-means++ chooses its seeds from."""

_FULL_RESTART_WORK = 4_000_000
"""N x K up to which ten starts take seconds; beyond, fewer, and never under 3, of which a warm one
saves two: one start alone is unsafe, and with many clusters each start is less of a gamble."""


@dataclass(frozen=True, slots=True)
class KMeansOptions:
    """``n_init`` 0 chooses the number of starts by size; ``mini_batch`` 0 is full batches.

    Raises:
        InvalidArgument: ``k`` is out of range.
    """

    method: ClassVar[str] = "kmeans"

    k: AskedCount
    n_init: int = 0
    max_iterations: int = MAX_ITERATIONS
    mini_batch: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.k, method=self.method)


@dataclass(frozen=True, slots=True)
class KMeansFit:
    """``centroids`` float32 (K, D), unit length; ``inertia`` as ``lloyd`` has it.

    ``warm``: the warm start won. ``count``: how the number of clusters was estimated, if it was.
    """

    centroids: Vectors
    inertia: float
    warm: bool
    count: Mapping[str, Any] = field(default_factory=dict)


def plan(options: KMeansOptions, _: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``."""
    return FitPlan(options, least_points=fewest(options.k))


def run(vectors: Vectors, options: KMeansOptions, warm: Vectors | None) -> Fit:
    """The fit of planned ``options`` on ``vectors`` (N, D)."""
    found = fit(vectors, options, warm=warm)
    facts = {**found.count, "inertia": found.inertia, "warm": float(found.warm)}
    return Fit(Centroids(found.centroids), facts=facts)


def fit(vectors: Vectors, options: KMeansOptions, *, warm: Vectors | None = None) -> KMeansFit:
    """Clusters ``vectors`` into at most k clusters: ``options.k``, or as many as are estimated.

    Args:
        vectors: float32 (N, D), unit length.
        options: k, starts, iterations and seed.
        warm: centroids (K', D) to try as one more start; ignored unless K' is k.

    Returns:
        Fewer than k centroids only if there are fewer than k different vectors.

    Raises:
        NotEnoughPoints: k > N.
    """
    k, count = count_clusters(vectors, options.k, seed=options.seed)
    if k > len(vectors):
        raise NotEnoughPoints(f"k = {k} is larger than the number of points, {len(vectors)}")
    usable = warm is not None and len(warm) == k
    starts = options.n_init or default_starts(len(vectors), k, warm=usable)
    rng = np.random.default_rng(options.seed)
    best = min(
        (_start(vectors, k, options, rng) for _ in range(starts)), key=lambda found: found.inertia
    )
    used_warm = False
    if warm is not None and usable:
        warmed = lloyd(vectors, warm, most_steps=options.max_iterations)
        if warmed.inertia <= best.inertia * (1 + WARM_TOLERANCE):
            best, used_warm = warmed, True
    best = lloyd(vectors, best.centroids, most_steps=_POLISH_STEPS, tolerance=0)
    return KMeansFit(best.centroids, best.inertia, used_warm, count)


def default_starts(n: int, k: int, *, warm: bool = False) -> int:
    """The number of k-means++ starts for ``n`` points and ``k`` clusters: 10, less when large.

    A ``warm`` one, which is the best of earlier ones, is beside them.
    """
    if n * k <= _FULL_RESTART_WORK:
        return 10
    return 1 if warm else 3


def _start(vectors: Vectors, k: int, options: KMeansOptions, rng: np.random.Generator) -> Converged:
    """One start: k-means++ on a sample of the vectors, then Lloyd on all of them."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus  # noqa: PLC0415 - takes a second
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    state = int(rng.integers(2**32))  # NumPy's old seeds are 32 bits
    seeds = max(_SEEDS_LEAST, _SEEDS_PER_CLUSTER * k)
    rows = rng.permutation(len(vectors))[:seeds]
    first, _ = kmeans_plusplus(vectors[rows], k, random_state=state)
    if not options.mini_batch:
        return lloyd(vectors, first, most_steps=options.max_iterations)
    model = MiniBatchKMeans(
        k,
        init=first,
        n_init=1,
        max_iter=options.max_iterations,
        batch_size=options.mini_batch,
        random_state=state,
    )
    with warnings.catch_warnings():
        # Fewer different vectors than clusters: the empty ones are dropped later.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit(vectors).cluster_centers_.astype(np.float32)
    return lloyd(vectors, found, most_steps=1)
