"""From the labels of a density method to a model: each cluster's prototypes and their reach.

Density methods label the points that they saw, and no others (hdbscan's approximate_predict is
slow, and contradicts its own labels). So each cluster is covered by a few prototypes, the
directions of a small k-means inside it. A new point belongs to the cluster of the nearest
prototype. It is noise if it lies farther out than nearly all of the cluster's own points.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from clusterer.fits.kmeans import KMeansOptions, fit
from clusterer.fits.models import Prototypes
from clusterer.nearest import cluster_sums, directions, two_nearest
from shoal.errors import FitFailed
from shoal.vectors import NOISE, Labels, Vectors

MOST_PROTOTYPES: Final = 8
"""The most prototypes of a cluster."""

_POINTS_PER_PROTOTYPE: Final = 20
_OUTSIDE: Final = 0.05
"""The share of a cluster's own points that lie beyond its threshold: outliers must not set it."""


def cover(
    vectors: Vectors, labels: Labels, *, threshold: float | None = None, seed: int = 0
) -> Prototypes:
    """The model of ``labels`` int32 (N,), rows 0..K-1 or noise, on ``vectors`` (N, D).

    ``threshold`` is the least cosine of a member, for all clusters. None chooses it for each
    cluster, so that 95% of its own points are members.

    Raises:
        FitFailed: there is no cluster, or one without a direction.
    """
    clusters = int(labels.max(initial=NOISE)) + 1
    if not clusters:
        raise FitFailed(
            "every point is noise: expected at least one dense group; use a smaller "
            "min_cluster_size, or kmeans"
        )
    centroids = directions(cluster_sums(vectors, labels, clusters))
    if len(centroids) < clusters:
        raise FitFailed("the vectors of a cluster cancel out: it has no direction")
    parts = [_prototypes(vectors[labels == cluster], seed) for cluster in range(clusters)]
    prototypes = np.concatenate(parts)
    owners = np.repeat(np.arange(clusters, dtype=np.int32), [len(part) for part in parts])
    thresholds = np.full(clusters, threshold or 0, np.float32)
    if threshold is None:
        thresholds = _thresholds(vectors, labels, prototypes, owners)
    return Prototypes(centroids, prototypes, owners, thresholds)


def _prototypes(members: Vectors, seed: int) -> Vectors:
    wanted = min(MOST_PROTOTYPES, 1 + len(members) // _POINTS_PER_PROTOTYPE)
    return fit(members, KMeansOptions(wanted, n_init=1, seed=seed)).centroids


def _thresholds(
    vectors: Vectors, labels: Labels, prototypes: Vectors, owners: Labels
) -> np.ndarray:
    clusters = int(owners[-1]) + 1
    found = np.empty(clusters, np.float32)
    for cluster in range(clusters):
        own = two_nearest(vectors[labels == cluster], prototypes[owners == cluster])
        found[cluster] = np.quantile(own.cosines, _OUTSIDE)
    return found
