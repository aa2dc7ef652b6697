from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from scipy.sparse import block_diag, csr_array
from sklearn.metrics import silhouette_score

from clusterer.fits.count.asked import AskedCount, Auto, check_count, count_clusters, fewest
from clusterer.fits.count.estimators import (
    coding_length,
    density_clusters,
    eigengap,
    elbow,
    laplacian_spectrum,
    modularity,
    neighbour_graph,
    silhouette,
)
from clusterer.fits.count.vote import COUNTED, CountEstimate, Vote, estimate_count, verdict
from shoal.errors import InvalidArgument
from shoal.vectors import Labels, Vectors, unit


def sphere_blobs(k: int, each: int, *, spread: float = 0.08, dim: int = 64) -> Vectors:
    """``each`` vectors around each of ``k`` random directions, nearly orthogonal, (k each, dim)."""
    random = np.random.default_rng(k)
    centres = unit(random.normal(size=(k, dim)))
    return unit(np.repeat(centres, each, 0) + spread * random.normal(size=(k * each, dim)))


def votes_of(count: CountEstimate) -> dict[str, int]:
    return {vote.estimator: vote.k for vote in count.votes}


@pytest.fixture(scope="module")
def eight() -> Vectors:
    return sphere_blobs(8, 40)


@pytest.fixture(scope="module")
def eight_counted(eight: Vectors) -> CountEstimate:
    return estimate_count(eight, least=2, most=50, seed=0)


@pytest.mark.parametrize(("k", "each"), [(3, 60), (8, 40)])
def test_count_of_few_separate_blobs_is_exact(k: int, each: int) -> None:
    """Every estimator that counts finds 3 and 8 separate blobs, and they agree."""
    found = estimate_count(sphere_blobs(k, each), least=2, most=50, seed=0)
    assert found.k == k
    assert not found.disagree
    assert {v.k for v in found.votes if v.estimator in COUNTED} == {k}


def test_count_of_25_separate_blobs_is_within_one_step() -> None:
    """Of 25 blobs, those that look at the points find 25; partitions are a factor 1.14 apart."""
    found = estimate_count(sphere_blobs(25, 40), least=2, most=60, seed=0)
    votes = votes_of(found)
    assert votes["eigengap"] == 25
    assert 25 / 1.14 <= votes["modularity"] <= 25 * 1.14
    assert 25 / 1.14 <= votes["elbow"] <= 25 * 1.14
    assert 24 <= found.k <= 26
    assert not found.disagree


@pytest.mark.parametrize(("least", "most"), [(2, 5), (12, 30), (7, 9)])
def test_count_and_votes_are_within_least_and_most(eight: Vectors, least: int, most: int) -> None:
    """Whatever the vectors say, no vote and no decision leaves the range."""
    found = estimate_count(eight, least=least, most=most, seed=0)
    assert all(least <= k <= most for k in [found.k, *votes_of(found).values()])
    assert found.k == min(max(8, least), most)


def test_count_does_not_depend_on_a_generous_most(
    eight: Vectors, eight_counted: CountEstimate
) -> None:
    """Blobs that were found below 50 are found below 10,000."""
    assert estimate_count(eight, least=2, most=10_000, seed=0).k == eight_counted.k == 8


def test_count_with_least_equal_to_most_asks_nobody() -> None:
    """A range of one number is the answer, even for vectors that are no vectors."""
    nothing = np.full((5, 3), np.nan, np.float32)
    assert estimate_count(nothing, least=7, most=7, seed=0) == CountEstimate(7, (), False, ())


@pytest.mark.parametrize(("least", "most"), [(0, 5), (6, 5)])
def test_count_refuses_an_empty_range(eight: Vectors, least: int, most: int) -> None:
    """The range starts at 1 and is not empty."""
    with pytest.raises(InvalidArgument, match=f"got {least}, {most}"):
        estimate_count(eight, least=least, most=most, seed=0)


def test_count_with_the_same_seed_is_the_same(eight: Vectors, eight_counted: CountEstimate) -> None:
    """Votes and curve follow from vectors, range and seed."""
    assert estimate_count(eight, least=2, most=50, seed=0) == eight_counted


def test_count_looks_at_a_seeded_sample(monkeypatch: pytest.MonkeyPatch, eight: Vectors) -> None:
    """Of more vectors than the limit, that many are used, and the seed says which."""
    monkeypatch.setattr("clusterer.fits.count.vote._SAMPLE", 160)
    first, again, other = (estimate_count(eight, least=2, most=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.elbow != other.elbow
    assert first.elbow[0][1] < 160
    assert first.k == other.k == 8


@pytest.mark.parametrize("n", [*range(10), 15, 16, 17])
def test_count_of_fewer_vectors_than_neighbours_is_in_range(n: int) -> None:
    """However few the vectors, there is an answer, of at most a quarter of them."""
    vectors = sphere_blobs(max(n, 1), 1)[:n]
    assert 1 <= estimate_count(vectors, least=1, most=50, seed=0).k <= max(1, n // 4)


def test_count_of_equal_vectors_is_least() -> None:
    """One vector, however often, is one cluster; nobody is asked."""
    equal = np.full((300, 4), 0.5, np.float32)
    assert estimate_count(equal, least=1, most=50, seed=0) == CountEstimate(1, (), False, ())
    assert estimate_count(equal, least=3, most=50, seed=0).k == 3


def test_count_of_few_different_vectors_is_a_quarter_of_them_at_most() -> None:
    """Copies are no evidence: 12 different vectors, 30 times each, support 3 clusters."""
    copies = np.repeat(np.eye(12, dtype=np.float32), 30, axis=0)
    assert estimate_count(copies, least=1, most=50, seed=0).k <= 3


def test_count_tells_the_reader_what_the_others_say(eight_counted: CountEstimate) -> None:
    """All estimators vote, by name; the silhouette finds separate blobs too."""
    votes = votes_of(eight_counted)
    others = ["coding_length", "eigengap", "elbow", "hdbscan", "modularity", "silhouette"]
    assert list(votes) == others
    assert votes["silhouette"] == 8


def test_count_shows_a_curve_that_falls_from_least_to_most(eight_counted: CountEstimate) -> None:
    """About 12 points, both ends among them, inertia falling and within 0 to N."""
    ks, inertia = zip(*eight_counted.elbow, strict=True)
    assert (ks[0], ks[-1]) == (2, 50)
    assert 8 <= len(ks) <= 12
    assert list(ks) == sorted(set(ks))
    assert list(inertia) == sorted(inertia, reverse=True)
    assert 0 <= inertia[-1] < inertia[0] <= 320


def test_count_curve_at_one_cluster_is_the_spread_about_the_mean(eight: Vectors) -> None:
    """In as many dimensions as components, nothing of the vectors' inertia is lost."""
    found = estimate_count(eight, least=1, most=3, seed=0)
    about_mean = ((eight - eight.mean(axis=0)) ** 2).sum()
    assert found.elbow[0] == (1, pytest.approx(about_mean, rel=1e-4))


def test_count_without_hdbscan_goes_by_the_others(
    monkeypatch: pytest.MonkeyPatch, eight: Vectors
) -> None:
    """Without hdbscan, an optional dependency, its vote is absent, and no more."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "hdbscan" else find(name)
    )
    found = estimate_count(eight, least=2, most=50, seed=0)
    assert "hdbscan" not in votes_of(found)
    assert found.k == 8


def test_count_beyond_the_spectrum_goes_by_the_others(
    monkeypatch: pytest.MonkeyPatch, eight: Vectors
) -> None:
    """Where all wanted counts are above the eigenvalues that are computed, eigengap is silent."""
    monkeypatch.setattr("clusterer.fits.count.vote._SPECTRUM", 6)
    found = estimate_count(eight, least=6, most=50, seed=0)
    assert "eigengap" not in votes_of(found)
    assert found.k == 8


def test_count_says_that_estimators_disagree_on_blobs_made_of_blobs() -> None:
    """Four groups of five blobs are 4 to some and 20 to others, and the flag is up."""
    random = np.random.default_rng(0)
    groups = np.repeat(unit(random.normal(size=(4, 64))), 5, axis=0)
    centres = unit(groups + 0.06 * random.normal(size=(20, 64)))
    vectors = unit(np.repeat(centres, 40, axis=0) + 0.02 * random.normal(size=(800, 64)))
    found = estimate_count(vectors, least=2, most=60, seed=0)
    votes = votes_of(found)
    assert found.disagree
    assert votes["elbow"] == 4
    assert votes["coding_length"] == 4
    assert votes["hdbscan"] == 20  # the leaves of its tree, not the most persistent clusters
    assert votes["silhouette"] == 20
    assert votes["eigengap"] == found.k == 20


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "k: expected 1 to 100000, got 0"),
        (100_001, "k: expected 1 to 100000, got 100001"),
        (Auto(1, 5), "2 <= min <= max <= 1000, got min 1 and max 5"),
        (Auto(6, 5), "got min 6 and max 5"),
        (Auto(2, 1001), "got min 2 and max 1001"),
    ],
)
def test_a_count_out_of_range_is_refused(count: AskedCount, words: str) -> None:
    """A number, or the range of one that is estimated; the field of the method is named."""
    with pytest.raises(InvalidArgument, match=words) as refused:
        check_count(count, method="gmm")
    assert refused.value.metadata["field"].startswith("config.gmm.")


@pytest.mark.parametrize("count", [1, 100_000, Auto(2, 2), Auto(1000, 1000), Auto()])
def test_a_count_on_the_border_is_allowed(count: AskedCount) -> None:
    """The ends of the ranges belong to them."""
    check_count(count, method="gmm")
    assert fewest(count) == (count.least if isinstance(count, Auto) else count)


def test_a_given_count_is_not_estimated() -> None:
    """It is what it is, of vectors that are none, and has no facts."""
    assert count_clusters(np.zeros((0, 3), np.float32), 7, seed=0) == (7, {})


def test_an_estimated_count_has_facts_and_at_least_the_least(eight: Vectors) -> None:
    """The facts are the estimate as JSON; few vectors support the least and no more."""
    k, facts = count_clusters(eight, Auto(2, 20), seed=0)
    assert k == facts["count"]["k"] == 8
    assert facts["count"].keys() == {"k", "votes", "disagree", "elbow"}
    assert count_clusters(eight[::40], Auto(7, 20), seed=0)[0] == 7
    assert count_clusters(eight[::40], Auto(9, 20), seed=0)[0] == 9


def test_verdict_takes_the_median_of_those_that_count() -> None:
    """The middle of three; of two, the middle of their ratio; other votes change nothing."""
    votes = [Vote(name, k) for name, k in zip(COUNTED, [4, 40, 9], strict=True)]
    assert verdict(votes) == (9, True)
    assert verdict([*votes, Vote("silhouette", 1), Vote("elbow", 1)]) == (9, True)
    assert verdict([votes[0], votes[2]]) == (6, True)
    assert verdict(votes[:1]) == (4, False)


@pytest.mark.parametrize(("elbow_k", "disagree"), [(8, False), (15, False), (7, True), (16, True)])
def test_verdict_flags_more_than_a_factor_of_one_and_a_half(
    elbow_k: int, *, disagree: bool
) -> None:
    """Votes of 10 to 12 agree with an elbow at 8 or 15, and not at 7 or 16; it stays 11."""
    votes = [Vote(name, k) for name, k in zip(COUNTED, [10, 12, 11], strict=True)]
    assert verdict([*votes, Vote("elbow", elbow_k)]) == (11, disagree)


def test_verdict_does_not_hear_the_others_disagree() -> None:
    """Silhouette and coding length raise no flag: they are nearly always too low."""
    votes = [*(Vote(name, 10) for name in COUNTED), Vote("silhouette", 2)]
    assert verdict([*votes, Vote("coding_length", 2)]) == (10, False)


def test_coding_length_is_that_of_the_formula() -> None:
    """It equals the sum over clusters with X_k X_k^T built point by point."""
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 5)).astype(np.float32)
    labels = random.integers(0, 4, 60).astype(np.int32)
    total = 0.0
    for cluster in range(4):
        members = [features[i].astype(np.float64) for i in range(60) if labels[i] == cluster]
        m, matrix = len(members), np.eye(5)
        for x in members:
            matrix += 5 / (0.1 * m) * np.outer(x, x)
        total += (m + 5) / 2 * np.log(np.linalg.det(matrix)) - m * np.log(m / 60)
    assert coding_length(features, labels, eps=0.1) == pytest.approx(total, rel=1e-9)


def test_modularity_of_two_separate_pairs() -> None:
    """Two edges: apart 1/2, all in one cluster 0, cut through -1/2."""
    pair = np.array([[0.0, 1.0], [1.0, 0.0]])
    graph = csr_array(block_diag([pair, pair]))
    for labels, expected in (([0, 0, 1, 1], 0.5), ([0, 0, 0, 0], 0.0), ([0, 1, 0, 1], -0.5)):
        assert modularity(graph, np.array(labels, np.int32)) == pytest.approx(expected)


def test_neighbour_graph_is_the_symmetric_union_with_cosine_weights(eight: Vectors) -> None:
    """An edge where either is among the other's 15 nearest, weighing their cosine to the 4th."""
    graph = neighbour_graph(eight).toarray()
    cosines = (eight @ eight.T).astype(np.float64)
    np.fill_diagonal(cosines, -2)
    near = np.zeros(graph.shape, bool)
    np.put_along_axis(near, np.argsort(-cosines, axis=1)[:, :15], values=True, axis=1)
    np.testing.assert_allclose(graph, np.where(near | near.T, cosines**4, 0), atol=1e-5)


def test_neighbour_graph_keeps_edges_to_neighbours_however_far() -> None:
    """Orthogonal vectors are neighbours of the least weight, 0.1 to the 4th."""
    graph = neighbour_graph(np.eye(20, dtype=np.float32)).toarray()
    assert set(np.round(graph[graph > 0], 9)) == {0.0001}
    assert ((graph > 0).sum(axis=1) >= 15).all()


@pytest.mark.parametrize(("k", "each"), [(3, 150), (25, 20), (40, 17), (2, 420)])
def test_laplacian_spectrum_is_that_of_the_dense_matrix(k: int, each: int) -> None:
    """Few eigenvalues by Lanczos are the least of all, multiple ones as often as they are."""
    graph = neighbour_graph(sphere_blobs(k, each))
    dense = graph.toarray()
    scale = 1 / np.sqrt(dense.sum(axis=0))
    expected = np.sort(1 - np.linalg.eigvalsh(scale[:, None] * dense * scale))[:71]
    np.testing.assert_allclose(laplacian_spectrum(graph, 71, seed=0), expected, atol=1e-8)
    assert eigengap(graph, 2, 70, seed=0) == k


def test_laplacian_spectrum_of_a_connected_graph_is_that_of_the_dense_matrix() -> None:
    """One component that is too large for the dense solver: Lanczos finds the same, in order."""
    graph = neighbour_graph(sphere_blobs(1, 430, spread=0.5))
    dense = graph.toarray()
    scale = 1 / np.sqrt(dense.sum(axis=0))
    expected = np.sort(1 - np.linalg.eigvalsh(scale[:, None] * dense * scale))
    np.testing.assert_allclose(laplacian_spectrum(graph, 20, seed=0), expected[:20], atol=1e-8)


def test_eigengap_looks_no_lower_than_least() -> None:
    """Of three blobs the gap after 3 is not asked for when 5 are wanted at least."""
    assert eigengap(neighbour_graph(sphere_blobs(3, 40)), 5, 9, seed=0) >= 5


def test_elbow_is_the_corner_of_a_bent_line() -> None:
    """Of a curve that falls in log k down to 8 and is flat from there, it is 8."""
    curve = {k: max(3 - np.log2(k), 0.0) + 1 for k in (1, 2, 4, 8, 16, 32, 64)}
    assert elbow(curve) == 8
    assert elbow({2: 5.0, 4: 5.0, 8: 5.0}) == 2


def test_silhouette_of_a_sample_in_one_cluster_is_the_worst() -> None:
    """Where there is nothing to compare it is -1; separate clusters are near 1."""
    vectors = sphere_blobs(2, 20, spread=0.01)
    one: Labels = np.zeros(40, np.int32)
    two: Labels = np.repeat(np.arange(2, dtype=np.int32), 20)
    assert silhouette(vectors, one) == -1
    assert silhouette(vectors, two) > 0.8


def test_silhouette_is_that_of_the_first_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is quadratic: the others are not looked at."""
    vectors = sphere_blobs(2, 20, spread=0.3)
    labels: Labels = np.arange(40, dtype=np.int32) % 3
    monkeypatch.setattr("clusterer.fits.count.estimators._SILHOUETTE_SAMPLE", 25)
    expected = silhouette_score(vectors[:25], labels[:25])
    assert silhouette(vectors, labels) == pytest.approx(expected)


def test_density_clusters_of_separate_blobs(eight: Vectors) -> None:
    """HDBSCAN finds the blobs."""
    pytest.importorskip("hdbscan")
    assert density_clusters(eight) == 8
