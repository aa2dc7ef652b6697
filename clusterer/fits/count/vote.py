"""The number of clusters: several estimators vote, and the median of three decides. Pure.

Measured on 54 sets of real vectors with 2 to 80 classes (photos by two encoders, digits), and again
with another seed and another range: the median was within a factor of 1.5 of the classes on 87-89%
of them, more often below than above. Each estimator alone: eigengap 76-78%, hdbscan 78-80%,
modularity 50-61%, elbow 81-87%, silhouette 52%, coding length 26%. The elbow does not count because
it depends on the end of its curve.

It is taken for granted that there are several clusters: with ``least`` 1, a single blob may still
be cut in a few.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from clusterer.fits.count.estimators import (
    coding_length,
    density_clusters,
    eigengap,
    elbow,
    modularity,
    neighbour_graph,
    silhouette,
)
from shoal.errors import InvalidArgument
from shoal.vectors import Labels, Vectors

COUNTED = ("eigengap", "hdbscan", "modularity")
"""The estimators whose median decides; the reader sees the others too."""

WITNESSES = (*COUNTED, "elbow")
"""The estimators whose votes are compared. The three alone err together; the elbow errs elsewhere.
"""

_TOLERANCE = 1.5
"""The largest ratio of two witnesses that still agree. The decision was off by more on 1 of 28 sets
where they agreed, and on 5 of 26 where they did not."""

_SAMPLE = 10_000
"""The most points that are looked at: HDBSCAN takes nearly 4 times as long for twice as many, 20 s
for 20,000."""

_MEMBERS = 4
"""The fewest different vectors per cluster: fewer support no estimate."""

_FEATURES = 64
"""Principal components that stand for the vectors: the eigengap is as good as from all 192 or 1280
components, and the search for neighbours takes a fifth of the time."""

_DENSITY_FEATURES = 50
"""The first components, which HDBSCAN gets: with 15 it lost clusters, with all it takes minutes."""

_JUDGED_KS, _SHOWN_KS = 30, 12
"""The number of partitions, a factor of 1.14 apart between 2 and 100; and of points in the curve
that is shown."""

_HORIZON = 100
"""Partitions go on to this k even if fewer clusters are wanted: the knee shows only on a curve that
goes on to its flat end."""

_SPECTRUM = 256
"""The largest k of the eigengap, which gives no vote above: 22 s here, growing with k^2."""

_STARTS, _ITERATIONS = 2, 50
"""Starts and iterations of k-means for each k: a bad start is a dent in a curve of 30 points, and
decides nothing."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One estimator's opinion."""

    estimator: str
    k: int


@dataclass(frozen=True, slots=True)
class CountEstimate:
    """The decision, and the votes behind it.

    Attributes:
        k: The decision.
        votes: All votes, by name, also those that do not count; empty if nothing was to decide.
        disagree: True if the largest vote of the witnesses is more than 1.5 times the smallest.
        elbow: The curve (k, inertia) of k-means over the sample's 64 principal components, at
            about 12 geometric steps from least to most, for plotting.
    """

    k: int
    votes: tuple[Vote, ...]
    disagree: bool
    elbow: tuple[tuple[int, float], ...]


def estimate_count(vectors: Vectors, *, least: int, most: int, seed: int) -> CountEstimate:
    """The number of clusters in ``vectors``, between ``least`` and ``most``.

    HDBSCAN and the k-means of all k take the most time; with ``most`` in the hundreds the
    eigenvalues do. On one core: 1 s for 1000 x 192, 10 to 15 s for 20,000 x 512 and ``most`` 100,
    40 s for ``most`` 300.

    Args:
        vectors: float32 (N, D), unit length; a random 10,000 of them are used if there are more.
        least: the fewest clusters, 1 or more.
        most: the most clusters. The estimate is also at most a quarter of the different vectors,
            except that ``least`` always holds.
        seed: the seed of everything random.

    Raises:
        InvalidArgument: not 1 <= least <= most.
    """
    if not 1 <= least <= most:
        raise InvalidArgument(f"least, most: expected 1 <= least <= most, got {least}, {most}")
    if least == most:
        return CountEstimate(least, (), disagree=False, elbow=())
    sample = _sample(vectors, seed)
    supported = len(np.unique(sample, axis=0)) // _MEMBERS
    if supported <= least:
        return CountEstimate(least, (), disagree=False, elbow=())
    return _poll(sample, _Range(least, min(most, supported), supported), seed)


def verdict(votes: Iterable[Vote]) -> tuple[int, bool]:
    """The geometric median of the votes that count, and whether the witnesses disagree.

    At least one of ``votes`` must count.
    """
    found = {vote.estimator: vote.k for vote in votes}
    counted = [found[name] for name in COUNTED if name in found]
    seen = [found[name] for name in WITNESSES if name in found]
    k = round(float(np.exp(np.median(np.log(counted)))))
    return k, max(seen) > _TOLERANCE * min(seen)


def _sample(vectors: Vectors, seed: int) -> Vectors:
    """At most _SAMPLE of ``vectors``, in random order: some estimators use only the first few."""
    order = np.random.default_rng(seed).permutation(len(vectors))
    return vectors[order[:_SAMPLE]]


class _Range(NamedTuple):
    """Numbers of clusters: the fewest and the most wanted, and the most that are supported."""

    least: int
    most: int
    supported: int

    @property
    def shown(self) -> list[int]:
        """The numbers k of the curve that is shown."""
        return _steps(self.least, self.most, _SHOWN_KS)

    @property
    def judged(self) -> list[int]:
        """The numbers k of the partitions, as far as the elbow needs them."""
        return _steps(2, min(self.supported, max(self.most, _HORIZON)), _JUDGED_KS)


class _Partition(NamedTuple):
    """K-means' labels, and the inertia of the features.

    The inertia of the vectors would hide the knee: their many other dimensions fall with k as noise
    does.
    """

    labels: Labels
    inertia: float


def _steps(first: int, last: int, count: int) -> list[int]:
    """At most ``count`` different whole numbers at geometric steps, with both ends."""
    return sorted({round(float(k)) for k in np.geomspace(first, last, count)})


def _poll(sample: Vectors, wanted: _Range, seed: int) -> CountEstimate:
    """Asks all estimators."""
    features = _principal(sample, seed)
    graph = neighbour_graph(features)
    tried = sorted({*wanted.judged, *wanted.shown})
    partitions = {k: _partition(features, k, seed) for k in tried}
    within = [k for k in tried if max(wanted.least, 2) <= k <= wanted.most]

    def best(criterion: Callable[[Labels], float]) -> int:
        return max(within, key=lambda k: criterion(partitions[k].labels))

    spectrum = min(wanted.most, _SPECTRUM)
    found = {
        "coding_length": best(lambda of: -coding_length(features, of)),
        "eigengap": (
            eigengap(graph, wanted.least, spectrum, seed) if wanted.least < spectrum else None
        ),
        "elbow": elbow({k: partitions[k].inertia for k in wanted.judged}),
        "hdbscan": density_clusters(features[:, :_DENSITY_FEATURES]),
        "modularity": best(lambda of: modularity(graph, of)),
        "silhouette": best(lambda of: silhouette(features, of)),
    }
    votes = tuple(
        Vote(name, min(max(k, wanted.least), wanted.most))
        for name, k in found.items()
        if k is not None
    )
    k, disagree = verdict(votes)
    return CountEstimate(
        k, votes, disagree, _decreasing({k: partitions[k].inertia for k in wanted.shown})
    )


def _principal(sample: Vectors, seed: int) -> Vectors:
    """The first principal components of ``sample``, float32 (N, 64 or fewer)."""
    model = PCA(min(_FEATURES, *sample.shape), svd_solver="auto", random_state=seed % 2**32)
    return np.ascontiguousarray(model.fit_transform(sample), dtype=np.float32)


def _partition(features: Vectors, k: int, seed: int) -> _Partition:
    """K-means with ``k`` clusters."""
    model = KMeans(k, n_init=_STARTS, max_iter=_ITERATIONS, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # It warns if there are fewer different features than clusters: some are empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(features)
    return _Partition(np.asarray(labels, dtype=np.int32), float(model.inertia_))


def _decreasing(inertia: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """The curve without its dents: a larger inertia of more clusters is only an unlucky start."""
    least = np.minimum.accumulate(list(inertia.values()))
    return tuple(zip(inertia, least.tolist(), strict=True))
