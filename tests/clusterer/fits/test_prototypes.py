"""From labels to prototypes and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from reclustering import blobs

from clusterer.fits.kmeans import KMeansOptions
from clusterer.fits.kmeans import fit as kmeans_fit
from clusterer.fits.models import Prototypes, beside
from clusterer.fits.prototypes import cover
from clusterer.nearest import cluster_sums, directions
from shoal.errors import FitFailed
from shoal.vectors import NOISE, Labels


def labels(n: int, clusters: int) -> Labels:
    return (np.arange(n) % clusters).astype(np.int32)


@pytest.mark.parametrize(
    ("members", "prototypes"), [(19, 1), (20, 2), (139, 7), (140, 8), (400, 8)]
)
def test_a_cluster_has_a_prototype_for_every_20_points_and_at_most_8(
    members: int, prototypes: int
) -> None:
    """One at least; each is a direction of a small k-means among the members."""
    vectors = blobs(members, centres=1, spread=0.5)
    model = cover(vectors, labels(members, 1), seed=3)
    assert model.owners.tolist() == [0] * prototypes
    options = KMeansOptions(prototypes, n_init=1, seed=3)
    np.testing.assert_array_equal(model.prototypes, kmeans_fit(vectors, options).centroids)


def test_centroids_are_the_directions_of_the_members_without_noise() -> None:
    """Noise belongs to no cluster: it moves neither centroids nor prototypes."""
    vectors, of = blobs(120), labels(120, 5)
    noisy = np.concatenate([vectors, -vectors[:30]])
    every = np.concatenate([of, np.full(30, NOISE, np.int32)])
    model, clean = cover(noisy, every), cover(vectors, of)
    np.testing.assert_array_equal(model.centroids, directions(cluster_sums(vectors, of, 5)))
    np.testing.assert_array_equal(model.prototypes, clean.prototypes)
    np.testing.assert_array_equal(model.thresholds, clean.thresholds)
    assert model.owners.tolist() == np.repeat(np.arange(5), 2).tolist()


def test_a_threshold_leaves_5_percent_of_the_members_outside() -> None:
    """By the nearest prototype of its own cluster, each cluster for itself."""
    narrow, wide = blobs(200, centres=1, spread=0.1), -blobs(200, centres=1, spread=0.4)
    vectors = np.concatenate([narrow, wide])
    of = np.repeat(np.arange(2, dtype=np.int32), 200)
    model = cover(vectors, of)
    for cluster in range(2):
        own = model.prototypes[model.owners == cluster]
        cosines = (vectors[of == cluster] @ own.T).max(axis=1)
        assert (cosines < model.thresholds[cluster]).sum() == 10
    assert model.thresholds[0] > model.thresholds[1] + 0.05
    mixed = labels(200, 2)  # a point may be nearer to the other cluster's prototypes
    model = cover(wide, mixed)
    own = model.prototypes[model.owners == 0]
    assert ((wide[mixed == 0] @ own.T).max(axis=1) < model.thresholds[0]).sum() == 5


@pytest.mark.parametrize("threshold", [0.8, 0.0, -0.5])
def test_a_given_threshold_is_every_clusters(threshold: float) -> None:
    """Also one of 0, at which half of the sphere is a member."""
    model = cover(blobs(60), labels(60, 5), threshold=threshold)
    assert model.thresholds.tolist() == [np.float32(threshold)] * 5


def test_nothing_but_noise_and_no_direction_are_errors() -> None:
    """Neither has a model."""
    vectors = blobs(10)
    with pytest.raises(FitFailed, match="every point is noise"):
        cover(vectors, np.full(10, NOISE, np.int32))
    with pytest.raises(FitFailed, match="every point is noise"):
        cover(vectors[:0], np.zeros(0, np.int32))
    opposite = np.concatenate([vectors[:1], -vectors[:1]])
    with pytest.raises(FitFailed, match="cancel out"):
        cover(opposite, np.zeros(2, np.int32))


def test_the_clusters_of_two_models_lie_beside_each_other() -> None:
    """The second model's clusters come after the first's; each keeps its reach."""
    first, second = (
        cover(blobs(60, seed=1), labels(60, 5), threshold=0.5),
        cover(-blobs(40, centres=4, seed=2), labels(40, 4), threshold=0.7),
    )
    both = beside(first, second)
    assert isinstance(both, Prototypes)
    vectors = np.concatenate([blobs(30, seed=3), -blobs(30, centres=4, seed=4)])
    found = both.assign(vectors).labels
    ours, theirs = (model.assign(vectors).labels for model in (first, second))
    expected = np.where(ours != NOISE, ours, np.where(theirs != NOISE, theirs + 5, NOISE))
    np.testing.assert_array_equal(found, expected)
    assert set(found) >= {0, 4, 5, 8}
    np.testing.assert_array_equal(both.centroids[5:], second.centroids)
