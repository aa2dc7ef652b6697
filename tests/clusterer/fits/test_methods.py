"""Every method against the library underneath, and the rules that its model lives by."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
from hdbscan import HDBSCAN
from reclustering import blobs
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from clusterer.fits import (
    DUPLICATE_COSINE,
    Fit,
    MethodOptions,
    kmeans,
    plan_fit,
    plan_from_json,
    plan_to_json,
    run_fit,
)
from clusterer.fits.count.asked import Auto
from clusterer.fits.evoc import EvocOptions
from clusterer.fits.gmm import GmmOptions
from clusterer.fits.hdbscan import HdbscanOptions, default_cluster_size
from clusterer.fits.kmeans import KMeansOptions
from clusterer.fits.models import Centroids, Head, Mixture, Prototypes, margin, pack, unpack
from clusterer.fits.reduction import principal_components
from shoal.errors import FitFailed, NotEnoughPoints
from shoal.vectors import NOISE, Labels, Vectors

ALL_COUNT = 2.0
"""A duplicate_cosine that no two vectors reach: what the libraries do."""


@pytest.fixture(scope="module")
def digits() -> Vectors:
    """The 1,797 digits of scikit-learn as unit vectors (1797, 64)."""
    vectors = load_digits().data.astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def fit(
    vectors: Vectors, options: MethodOptions, *, duplicate_cosine: float = ALL_COUNT
) -> tuple[Labels, Fit]:
    """The labels that points of the fit get, and the fit."""
    found = run_fit(plan_fit(options, duplicate_cosine=duplicate_cosine), vectors, None)
    labels = found.labels if found.labels is not None else found.model.assign(vectors).labels
    return labels, found


def same(a: Labels, b: Labels) -> float:
    """Agreement of two labellings whatever their numbering; 1 is the same."""
    return float(adjusted_rand_score(a, b))


def test_hdbscan_labels_are_the_packages_own(digits: Vectors) -> None:
    """After the same reduction, every point of the fit has hdbscan's label, noise included."""
    labels, found = fit(digits, HdbscanOptions(min_cluster_size=15, dim=20))
    reduced = PCA(20, random_state=0).fit_transform(digits.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        truth = HDBSCAN(min_cluster_size=15, min_samples=5).fit_predict(reduced)
    assert np.array_equal(labels == NOISE, truth == -1)
    assert 0 < (labels == NOISE).sum() < len(labels) / 2
    assert same(labels, truth) == 1
    assert len(found.model.centroids) == truth.max() + 1


def test_gmm_labels_agree_with_scikit_learns(digits: Vectors) -> None:
    """The model's labels and posteriors are those of scikit-learn's mixture on the same input."""
    labels, found = fit(digits, GmmOptions(10, dim=16, seed=3))
    model = found.model
    assert isinstance(model, Mixture)
    z = (digits - model.mean) @ model.axes.T
    truth = GaussianMixture(
        10, covariance_type="diag", n_init=3, reg_covar=1e-6, random_state=3
    ).fit(z)
    assert same(labels, truth.predict(z)) >= 0.99
    posterior = truth.predict_proba(z).max(axis=1)
    assert np.abs(model.assign(digits).confidence - posterior).mean() < 0.01


def test_gmm_keeps_the_likeliest_of_three_starts() -> None:
    """The fact is its mean log-likelihood; with this seed the first start is a worse one."""
    vectors = blobs(200, spread=0.8)
    z = principal_components(vectors, 4, seed=0).points
    first, best = (
        GaussianMixture(
            8, covariance_type="diag", n_init=starts, reg_covar=1e-6, random_state=0
        ).fit(z)
        for starts in (1, 3)
    )
    found = fit(vectors, GmmOptions(8, dim=4))[1].facts["log_likelihood"]
    assert found == pytest.approx(best.lower_bound_)
    assert found > first.lower_bound_ + 0.01


@pytest.mark.parametrize("mini_batch", [0, 512])
def test_kmeans_labels_agree_with_scikit_learns(digits: Vectors, mini_batch: int) -> None:
    """Full and in batches: the same where there is one answer, and within its noise elsewhere."""

    def library(vectors: Vectors, k: int) -> Labels:
        model = (
            MiniBatchKMeans(k, n_init=10, batch_size=mini_batch, random_state=0)
            if mini_batch
            else KMeans(k, n_init=10, random_state=0)
        )
        found: Labels = model.fit_predict(vectors)
        return found

    clear = blobs(600, spread=0.1)
    labels, _ = fit(clear, KMeansOptions(k=5, n_init=10, mini_batch=mini_batch))
    assert same(labels, library(clear, 5)) == same(labels, np.arange(600) % 5) == 1
    labels, _ = fit(digits, KMeansOptions(k=10, n_init=10, mini_batch=mini_batch))
    assert same(labels, library(digits, 10)) >= (0.7 if mini_batch else 0.9)


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_hdbscan_after_umap_finds_and_assigns(digits: Vectors) -> None:
    """The other reduction: more of the digits' classes than PCA shows, and newcomers go by them."""
    digits, classes = digits[:700], load_digits().target[:700]
    config = HdbscanOptions(min_cluster_size=15, reduction="umap", dim=10)
    labels, found = fit(digits, config)
    kept = labels != NOISE
    assert kept.mean() > 0.7
    assert same(labels[kept], classes[kept]) > 0.75
    given = found.model.assign(digits[:300])
    there = given.labels != NOISE
    assert there.mean() > 0.6
    assert same(given.labels[there], classes[:300][there]) > 0.75


def test_evoc_layers_go_from_fine_to_coarse(digits: Vectors) -> None:
    """Each layer has fewer clusters than the one before; the coarsest is the last."""
    _, first = fit(digits, EvocOptions(layer=0))
    layers = first.facts["layers"]
    assert layers == sorted(layers, reverse=True)
    assert len(layers) >= 2
    assert len(first.model.centroids) == layers[0]
    _, last = fit(digits, EvocOptions(coarsest=True))
    assert last.facts["layers"] == layers, "the same seed gives the same layers"
    assert len(last.model.centroids) == layers[-1]
    with pytest.raises(FitFailed, match=f"layer: expected 0 to {len(layers) - 1}"):
        fit(digits, EvocOptions(layer=len(layers)))


def test_evoc_takes_the_layer_that_the_package_finds_most_persistent(digits: Vectors) -> None:
    """Without a layer the labels are the package's own, noise included."""
    from evoc import EVoC  # noqa: PLC0415 - slow to import

    labels, found = fit(digits, EvocOptions(min_cluster_size=60, seed=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, finer = (
            EVoC(base_min_cluster_size=size, random_state=4).fit(digits) for size in (60, 5)
        )
    assert (
        len(finer.cluster_layers_) != len(theirs.cluster_layers_)
        or (finer.labels_ != theirs.labels_).any()
    )
    np.testing.assert_array_equal(labels, theirs.labels_)
    np.testing.assert_array_equal(labels, theirs.cluster_layers_[found.facts["layer"]])


def test_evoc_needs_four_dimensions() -> None:
    """The package begins with four principal components."""
    with pytest.raises(FitFailed, match="at least 4 dimensions, got 3"):
        fit(blobs(40)[:, :3], EvocOptions())


@pytest.mark.parametrize(
    "options", [{"reduction": "none", "dim": 4}, {"reduction": "pca", "dim": 16}]
)
def test_hdbscan_of_vectors_that_are_not_reduced(options: dict[str, object]) -> None:
    """As the package has it on the vectors themselves, by its own min_samples if asked."""
    vectors = blobs(300, spread=0.3)
    config = HdbscanOptions(min_cluster_size=20, min_samples=12, **options)  # type: ignore[arg-type]
    labels, found = fit(vectors, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        truth = HDBSCAN(min_cluster_size=20, min_samples=12).fit_predict(vectors.astype(float))
        other = HDBSCAN(min_cluster_size=20, min_samples=5).fit_predict(vectors.astype(float))
    np.testing.assert_array_equal(labels, truth)
    assert (truth != other).any()
    assert found.facts == {"min_cluster_size": 20}
    assert fit(vectors, HdbscanOptions())[1].facts == {"min_cluster_size": 9}  # sqrt(300) / 2


def test_mini_batches_are_another_way_to_the_same_clusters(digits: Vectors) -> None:
    """One start in batches ends elsewhere than one start on all vectors."""
    whole, batches = (
        fit(digits, KMeansOptions(k=10, n_init=1, mini_batch=size))[1].facts["inertia"]
        for size in (0, 100)
    )
    assert whole != batches
    assert batches == pytest.approx(whole, rel=0.05)


def test_a_fit_says_whether_it_converged(digits: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means and the mixture: a fact, false where the steps ended before the fit came to rest."""
    assert fit(digits, KMeansOptions(k=10, n_init=1))[1].facts["converged"] is True
    assert fit(blobs(60), GmmOptions(5))[1].facts["converged"] is True
    monkeypatch.setattr(kmeans, "_POLISH_STEPS", 1)
    assert fit(digits, KMeansOptions(k=30, n_init=1, max_iterations=1))[1].facts["converged"] is (
        False
    )


def test_density_methods_assign_what_they_have_not_seen(digits: Vectors) -> None:
    """Held-out points get the cluster that they have when all are fitted, or noise."""
    held = np.arange(len(digits)) % 4 == 0
    config = HdbscanOptions(min_cluster_size=15, dim=20)
    everything, _ = fit(digits, config)
    _, found = fit(np.ascontiguousarray(digits[~held]), config)
    given = found.model.assign(digits[held])
    both = (given.labels != NOISE) & (everything[held] != NOISE)
    assert both.mean() > 0.5
    assert same(given.labels[both], everything[held][both]) >= 0.95
    far = -digits[held]  # no digit has negative pixels
    assert (found.model.assign(far).labels == NOISE).all()
    assert (found.model.assign(far).confidence == 0).all()


def test_noise_threshold_of_the_caller_holds(digits: Vectors) -> None:
    """A cosine given is the border of noise for what comes in later."""
    _, found = fit(digits, HdbscanOptions(min_cluster_size=15, dim=20, noise_threshold=0.8))
    model = found.model
    assert isinstance(model, Prototypes)
    best = (digits @ model.prototypes.T).max(axis=1)
    np.testing.assert_array_equal(model.assign(digits).labels == NOISE, best < np.float32(0.8))


def test_near_duplicates_count_once_and_keep_together() -> None:
    """A picture that came in 300 times is no dense group; all its copies get one label."""
    others = blobs(200, centres=4, spread=0.3)
    rng = np.random.default_rng(5)
    one = rng.normal(size=16)
    copies = one / np.linalg.norm(one) + rng.normal(size=(300, 16)) * 0.001
    copies = (copies / np.linalg.norm(copies, axis=1, keepdims=True)).astype(np.float32)
    vectors = np.concatenate([others, copies])
    config = HdbscanOptions(min_cluster_size=20)
    counted, _ = fit(vectors, config)
    assert len(set(counted[200:].tolist()) - {NOISE}) >= 1
    labels, found = fit(vectors, config, duplicate_cosine=DUPLICATE_COSINE)
    assert set(labels[200:].tolist()) == {NOISE}
    assert found.facts["duplicates"] >= 299


def test_copies_get_the_label_of_the_one_that_counted() -> None:
    """Each of three copies, wherever they lie, of points that form groups."""
    order = np.random.default_rng(2).permutation(600)
    once, truth = blobs(200, centres=4, spread=0.2), np.arange(200) % 4
    vectors, classes = np.repeat(once, 3, axis=0)[order], np.repeat(truth, 3)[order]
    labels, found = fit(
        vectors, HdbscanOptions(min_cluster_size=20), duplicate_cosine=DUPLICATE_COSINE
    )
    assert found.facts["duplicates"] == 400
    member = labels != NOISE
    assert member.mean() > 0.8
    assert same(labels[member], classes[member]) > 0.9
    by_point = np.empty(600, np.int32)
    by_point[order] = labels
    assert (by_point.reshape(200, 3) == by_point[::3, None]).all()


@pytest.mark.parametrize("n", [5, 100])
def test_principal_components_are_scikit_learns(n: int) -> None:
    """As many as are asked for, or as there can be; centred, with orthonormal axes."""
    vectors = blobs(n, spread=0.5) + np.float32(1)
    found = principal_components(vectors, 8, seed=3)
    expected = PCA(min(8, n), random_state=3).fit(vectors.astype(np.float64))
    np.testing.assert_allclose(
        found.points, expected.transform(vectors.astype(np.float64)), atol=1e-9
    )
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(min(8, n)), atol=1e-9)
    np.testing.assert_allclose(found.mean, vectors.astype(np.float64).mean(axis=0))


def test_a_vector_on_the_threshold_is_a_member() -> None:
    """The threshold is the least cosine of a member."""
    axes = np.eye(2, dtype=np.float32)
    owners, thresholds = np.array([0, 1], np.int32), np.ones(2, np.float32)
    model = Prototypes(axes, axes, owners, thresholds)
    assert model.assign(axes).labels.tolist() == [0, 1]


def test_count_is_estimated_and_its_votes_are_kept() -> None:
    """-k auto finds five well-parted groups, within the bounds, and says who voted for what."""
    vectors = blobs(600, spread=0.05)
    labels, found = fit(vectors, KMeansOptions(Auto()))
    assert len(set(labels.tolist())) == 5
    assert len(found.facts["count"]["votes"]) >= 3
    bounded, _ = fit(vectors, GmmOptions(Auto(least=2, most=3)))
    assert len(set(bounded.tolist())) <= 3


@pytest.mark.parametrize("k", [9, Auto(least=3, most=9)])
def test_plan_survives_the_way_to_the_child(k: int | Auto) -> None:
    """A plan is the same after JSON, also one whose number of clusters is to be estimated."""
    for options in (KMeansOptions(k, n_init=2, seed=7), GmmOptions(k), HdbscanOptions()):
        plan = plan_fit(options, duplicate_cosine=0.95)
        assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_more_components_than_points_is_refused() -> None:
    """A mixture cannot have more components than there are points."""
    with pytest.raises(NotEnoughPoints, match="k = 9"):
        fit(blobs(5), GmmOptions(k=9))


def test_only_noise_is_an_error_that_says_what_to_do() -> None:
    """Where nothing is dense, the fit fails in words that name the way on."""
    rng = np.random.default_rng(0)
    scattered = rng.normal(size=(60, 16)).astype(np.float32)
    scattered /= np.linalg.norm(scattered, axis=1, keepdims=True)
    with pytest.raises(FitFailed, match="min_cluster_size, or kmeans"):
        fit(scattered, HdbscanOptions(min_cluster_size=25))


def test_default_cluster_size_is_half_the_root() -> None:
    """5 at least, and growing with the collection."""
    assert [default_cluster_size(n) for n in (4, 100, 10_000, 1_000_000)] == [5, 5, 50, 500]


def test_model_survives_packing(digits: Vectors) -> None:
    """Each kind of model assigns alike after being packed, and keeps its ids."""
    ids = np.arange(10, 20, dtype=np.int32)
    for options in (KMeansOptions(10), GmmOptions(10), HdbscanOptions(min_cluster_size=15)):
        _, found = fit(digits, options)
        model, kept = unpack(pack(found.model, ids))
        assert np.array_equal(kept, ids)
        assert type(model) is type(found.model)
        for ours, theirs in zip(model.assign(digits), found.model.assign(digits), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", pack(Centroids(blobs(2)), np.arange(2))[:-40]]
)
def test_damaged_model_is_an_error(data: bytes) -> None:
    """What cannot be read says so, and never runs code."""
    with pytest.raises(FitFailed, match="model cannot be read"):
        unpack(data)


def test_confidence_is_the_simplified_silhouette() -> None:
    """0 on the border, 1 on the centroid, between by the ratio of distances; 1 if alone."""
    best = np.array([1.0, 0.5, 0.9, 0.2], np.float32)
    other = np.array([0.5, 0.5, 0.6, -np.inf], np.float32)
    np.testing.assert_allclose(margin(best, other), [1, 0, 0.75, 1], atol=1e-6)
    identical = margin(np.ones(1, np.float32), np.ones(1, np.float32))
    assert identical.tolist() == [0]


def test_prototypes_choose_the_cluster_of_the_nearest_one() -> None:
    """A cluster is as near as its nearest prototype, by a loop over all of them."""
    rng = np.random.default_rng(1)
    prototypes, vectors = blobs(7, spread=1.0), blobs(50, seed=4, spread=1.0)
    owners = np.array([0, 0, 1, 1, 1, 2, 2], np.int32)
    thresholds = rng.uniform(0, 0.6, 3).astype(np.float32)
    found = Prototypes(prototypes[:3], prototypes, owners, thresholds).assign(vectors)
    for vector, label in zip(vectors, found.labels, strict=True):
        cosines = [
            max(vector @ p for p, o in zip(prototypes, owners, strict=True) if o == k)
            for k in range(3)
        ]
        best = int(np.argmax(cosines))
        assert label == (best if cosines[best] >= thresholds[best] else NOISE)


def test_components_that_nothing_falls_to_are_dropped() -> None:
    """Fewer different vectors than components: as many clusters as there are groups of them."""
    vectors = np.repeat(blobs(3, centres=3, spread=0.0), 20, axis=0)
    labels, found = fit(vectors, GmmOptions(k=5))
    assert len(found.model.centroids) == len(set(labels.tolist())) <= 3


def test_only_noise_after_duplicates_says_how_many_counted() -> None:
    """A hundred copies of six pictures are six points, and the error says so."""
    vectors = np.repeat(blobs(6, spread=1.0), 20, axis=0)
    with pytest.raises(FitFailed, match="114 near-duplicates of 120 points counted once"):
        fit(vectors, HdbscanOptions(min_cluster_size=5), duplicate_cosine=DUPLICATE_COSINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (KMeansOptions(k=5), "k = 5 needs at least 5, got 4"),
        (GmmOptions(k=6), "k = 6 needs at least 6, got 4"),
        (HdbscanOptions(min_cluster_size=7), "method hdbscan needs at least 7, got 4"),
        (EvocOptions(), "method evoc needs at least 32, got 4"),
    ],
)
def test_too_few_different_vectors_are_told(options: MethodOptions, said: str) -> None:
    """Forty copies of four pictures are four points to every method, and are never split."""
    vectors = np.repeat(blobs(4, spread=0), 10, axis=0)
    with pytest.raises(NotEnoughPoints) as caught:
        fit(vectors, options, duplicate_cosine=DUPLICATE_COSINE)
    assert caught.value.message == (
        f"too few different images: {said} (36 near-duplicates of 40 points counted once; "
        "duplicate_cosine 2 counts all)"
    )


def test_as_many_different_vectors_as_clusters_are_enough() -> None:
    """Each picture is a cluster, with its copies."""
    vectors = np.repeat(blobs(4, spread=0), 10, axis=0)
    _, found = fit(vectors, KMeansOptions(k=4), duplicate_cosine=DUPLICATE_COSINE)
    assert found.facts["duplicates"] == 36
    assert len(found.model.centroids) == 4


def test_a_model_of_a_kind_that_is_not_known_is_an_error() -> None:
    """As a later version may write it: the kinds that there are are named."""
    buffer = io.BytesIO()
    np.savez(buffer, kind=np.array("forest"), ids=np.arange(2))
    with pytest.raises(FitFailed, match="expected one of centroids, prototypes, mixture, head"):
        unpack(buffer.getvalue())


def test_a_methods_kind_is_the_one_that_is_packed() -> None:
    """The name of the rule stands in the file: it must never change."""
    found = fit(blobs(60), GmmOptions(5))[1].model
    with np.load(io.BytesIO(pack(found, np.arange(5, dtype=np.int32)))) as file:
        assert str(file["kind"]) == "mixture"
    assert [each.kind for each in (Centroids, Prototypes, Mixture, Head)] == [
        "centroids",
        "prototypes",
        "mixture",
        "head",
    ]


def test_a_plan_has_the_least_points_of_its_method() -> None:
    """As many as clusters, and what the method itself needs."""
    asked = (
        KMeansOptions(7),
        KMeansOptions(Auto(3, 9)),
        GmmOptions(1),
        GmmOptions(6),
        HdbscanOptions(),
        HdbscanOptions(min_cluster_size=9),
        EvocOptions(),
    )
    assert [plan_fit(each).least_points for each in asked] == [7, 3, 2, 6, 2, 9, 32]
