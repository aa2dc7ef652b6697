"""Spherical k-means: scikit-learn's k-means++, then Lloyd on the sphere to a fixed point.

The seeds come from a sample: k-means++ looks at every vector for each of the k seeds. On all
vectors it takes as long as the whole of Lloyd; on twenty per cluster its seeds are as good. The
result is a fixed point of nearest-centroid assignment, which is all that serving does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from clusterer.fits.count.asked import AskedCount, check_count, count_clusters, fewest
from clusterer.fits.lloyd import LloydFit, lloyd
from clusterer.fits.models import Centroids
from clusterer.fits.values import Fit, FitPlan, Surroundings
from shoal.errors import NotEnoughPoints
from shoal.vectors import Vectors

MAX_ITERATIONS = 100
"""The most iterations of one start, unless the caller says otherwise."""

WARM_TOLERANCE = 0.005
"""A warm start wins if its inertia is within 0.5% of the best cold one: ids that stay are worth
more than a difference that another seed would make."""

_POLISH_STEPS = 50
"""The most steps from the best start to a fixed point; normally fewer than 10 are taken."""

_SEEDS_PER_CLUSTER, _SEEDS_LEAST = 20, 5_000
"""The size of the sample that k-means++ chooses its seeds from: per cluster, and at least."""

_FULL_RESTART_WORK = 4_000_000
"""The largest N x K with ten starts, which take seconds. Beyond it there are three starts, or one
beside a warm one: a single start is unsafe, but with many clusters each start is less of a gamble.
"""


@dataclass(frozen=True, slots=True)
class KMeansOptions:
    """The options of k-means.

    Attributes:
        k: The number of clusters.
        n_init: Starts, of which the best is kept; 0 chooses the number by size.
        max_iterations: The most iterations of one start.
        mini_batch: Vectors of a batch; 0 takes all at once.
        seed: Seed of everything random.

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
    """The result of k-means.

    Attributes:
        centroids: float32 (K, D), unit length.
        inertia: As in ``lloyd``.
        warm: True if the warm start won.
        converged: True if the centroids are a fixed point.
        count: How the number of clusters was estimated, as facts; empty if it was given.
    """

    centroids: Vectors
    inertia: float
    warm: bool
    converged: bool
    count: Mapping[str, Any] = field(default_factory=dict)


def plan(options: KMeansOptions, _: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``."""
    return FitPlan(options, least_points=fewest(options.k))


def run(vectors: Vectors, options: KMeansOptions, warm: Vectors | None) -> Fit:
    """The fit of planned ``options`` on ``vectors`` (N, D)."""
    found = fit(vectors, options, warm=warm)
    facts = {
        **found.count,
        "inertia": found.inertia,
        "warm": float(found.warm),
        "converged": found.converged,
    }
    return Fit(Centroids(found.centroids), facts=facts)


def fit(vectors: Vectors, options: KMeansOptions, *, warm: Vectors | None = None) -> KMeansFit:
    """Clusters ``vectors`` into ``options.k`` clusters, or into an estimated number of them.

    Args:
        vectors: float32 (N, D), unit length.
        options: k, starts, iterations and seed.
        warm: centroids (K', D) to try as one more start; ignored unless K' is the number k.

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
    return KMeansFit(best.centroids, best.inertia, used_warm, best.settled, count)


def default_starts(n: int, k: int, *, warm: bool = False) -> int:
    """The number of k-means++ starts for ``n`` points and ``k`` clusters: 10, fewer if many.

    ``warm``: there is a warm start beside them, which is the best of earlier starts.
    """
    if n * k <= _FULL_RESTART_WORK:
        return 10
    return 1 if warm else 3


def _start(vectors: Vectors, k: int, options: KMeansOptions, rng: np.random.Generator) -> LloydFit:
    """One start: k-means++ on a sample of the vectors, then Lloyd on all of them."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus  # noqa: PLC0415 - takes a second
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - as above

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
        # It warns if there are fewer different vectors than clusters; empty clusters are dropped.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit(vectors).cluster_centers_.astype(np.float32)
    return lloyd(vectors, found, most_steps=1)
