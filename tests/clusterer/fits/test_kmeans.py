from __future__ import annotations

import numpy as np
import pytest
from reclustering import blobs
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from clusterer.fits import kmeans
from clusterer.fits.kmeans import KMeansFit, KMeansOptions, default_starts, fit
from clusterer.fits.lloyd import LloydFit
from clusterer.nearest import Tally, cluster_sums, directions, nearest
from shoal.errors import NotEnoughPoints
from shoal.vectors import Vectors


@pytest.fixture(scope="module")
def digits() -> Vectors:
    """The 1,797 digits of scikit-learn as unit vectors (1797, 64)."""
    vectors = load_digits().data.astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def ten(digits: Vectors) -> KMeansFit:
    """The digits in ten clusters."""
    return fit(digits, KMeansOptions(10, seed=0))


def test_kmeans_inertia_is_within_1_percent_of_scikit_learns_best_of_10(
    digits: Vectors, ten: KMeansFit
) -> None:
    """The sum of squares on real vectors is no worse than scikit-learn's best of ten starts."""
    best = KMeans(10, n_init=10, random_state=1).fit(digits)
    ours = ten
    theirs = nearest(digits, directions(best.cluster_centers_))
    assert ours.inertia <= 2 * (1 - theirs.cosines).sum() * 1.01
    assert ours.inertia == pytest.approx(
        ((digits - ours.centroids[nearest(digits, ours.centroids).labels]) ** 2).sum(), rel=1e-4
    )
    assert adjusted_rand_score(nearest(digits, ours.centroids).labels, best.labels_) > 0.9


def test_kmeans_centroids_are_a_fixed_point_of_cosine_assignment(
    digits: Vectors, ten: KMeansFit
) -> None:
    """Each centroid is the direction of the sum of the vectors nearest to it."""
    centroids = ten.centroids
    sums = cluster_sums(digits, nearest(digits, centroids).labels, 10)
    directions = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(centroids, directions, atol=1e-5)


def test_kmeans_with_the_same_seed_gives_the_same_centroids(digits: Vectors) -> None:
    """Everything random follows from the seed."""
    first, second = (fit(digits, KMeansOptions(10, n_init=1, seed=5)).centroids for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_kmeans_prefers_a_warm_start_of_equal_quality(digits: Vectors, ten: KMeansFit) -> None:
    """From the active centroids, a fit that is as good as a cold one stays where it was."""
    after = fit(digits, KMeansOptions(10, n_init=3, seed=1), warm=ten.centroids)
    assert after.warm
    np.testing.assert_allclose(after.centroids, ten.centroids, atol=0.02)


def test_kmeans_ignores_a_warm_start_of_another_number_of_clusters(digits: Vectors) -> None:
    """Two more clusters would have the lower inertia, and are no start for k."""
    warm = fit(digits, KMeansOptions(12, n_init=1)).centroids
    found = fit(digits, KMeansOptions(10, n_init=1, seed=1), warm=warm)
    assert not found.warm
    assert len(found.centroids) == 10


@pytest.mark.parametrize(("excess", "wins"), [(0.004, True), (0.006, False)])
def test_kmeans_takes_a_warm_start_within_half_a_percent(
    excess: float, *, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inertia may be that much larger than the best cold start's."""
    vectors = blobs(100)

    def ended(_: Vectors, start: Vectors, **__: object) -> LloydFit:
        return LloydFit(start, 1 + excess if start is warm else 1.0, settled=True)

    warm = blobs(5, seed=9)
    monkeypatch.setattr(kmeans, "lloyd", ended)
    assert fit(vectors, KMeansOptions(5, n_init=1), warm=warm).warm is wins


def test_kmeans_keeps_the_best_of_its_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By inertia, of as many starts as are asked for."""
    inertias = iter([3.0, 1.0, 2.0, 1.0])
    starts: list[Vectors] = []

    def ended(_: Vectors, start: Vectors, **__: object) -> LloydFit:
        starts.append(start)
        return LloydFit(start, next(inertias), settled=True)

    monkeypatch.setattr(kmeans, "lloyd", ended)
    found = fit(blobs(100), KMeansOptions(5, n_init=3))
    assert len(starts) == 4  # three starts, and the best of them to its end
    assert found.centroids is starts[3] is starts[1]


def test_kmeans_leaves_a_warm_start_that_is_worse() -> None:
    """A start with all its centroids in one cluster loses to a cold one."""
    vectors = blobs(300)
    bad = blobs(5, centres=1, spread=0.01)
    found = fit(vectors, KMeansOptions(5), warm=bad)
    sizes = np.bincount(nearest(vectors, found.centroids).labels)
    assert sizes.tolist() == [60] * 5


def test_kmeans_needs_as_many_vectors_as_clusters() -> None:
    """More clusters than vectors is an error that names both numbers."""
    with pytest.raises(NotEnoughPoints, match=r"k = 4 .* 3"):
        fit(blobs(3), KMeansOptions(4))


def test_kmeans_starts_fall_with_size_but_never_to_one() -> None:
    """One start alone is unsafe; one beside a warm one is not alone."""
    assert default_starts(1_797, 10) == default_starts(1_797, 10, warm=True) == 10
    assert default_starts(400_000, 10) == 10
    assert default_starts(400_001, 10) == 3
    assert default_starts(50_000, 1000) > 1
    assert default_starts(50_000, 1000, warm=True) == 1


def test_tally_over_blocks_equals_the_whole_at_once() -> None:
    """Sizes, inertia and cohesion of blocks add up to NumPy's on all vectors."""
    vectors, centroids = blobs(200, spread=0.5), blobs(5)
    found = nearest(vectors, centroids)
    tally = Tally(centroids)
    for at in range(0, 200, 64):
        tally.add(vectors[at : at + 64], nearest(vectors[at : at + 64], centroids).labels)

    groups = [vectors[found.labels == k] for k in range(5)]
    inertia = sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups)
    cohesion = [(g @ c).mean() for g, c in zip(groups, centroids, strict=True)]
    assert tally.sizes.tolist() == [len(g) for g in groups]
    assert tally.inertia == pytest.approx(inertia, rel=1e-4)
    np.testing.assert_allclose(tally.cohesion, cohesion, rtol=1e-4)
