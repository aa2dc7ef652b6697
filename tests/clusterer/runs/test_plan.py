from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from clusterer.runs.matching import Clusters
from clusterer.runs.plan import (
    Changes,
    Plan,
    Quality,
    centroid_drift,
    changes_of,
    objections,
    plan_of,
    rand_index,
    sampled_silhouette,
)
from clusterer.runs.points import UNASSIGNED, PointTable
from shoal.store.model import point_id
from shoal.values import Gates, Lineage
from shoal.vectors import NOISE

QUALITY = Quality(0.0, None, 0.5, None)


def changes(wanted: list[int], active: list[int], inactive: list[int]) -> Changes:
    """What changes when points whose slots hold ``active`` and ``inactive`` get ``wanted``."""
    table = PointTable()
    ids = sorted(point_id(str(i)) for i in range(len(wanted)))
    rows = [-7] * len(wanted)  # of the model, which the plan does not look at
    table.append(ids, *(np.array(c, np.int32) for c in (rows, active, inactive)))
    table.seal()
    return changes_of(table, np.array(wanted, np.int32))


def plan(wanted: list[int], active: list[int], inactive: list[int]) -> Plan:
    return plan_of(changes(wanted, active, inactive), (), QUALITY)


def test_changes_count_what_moves_and_what_must_be_written() -> None:
    """Moved is against what readers see; written is against the other slot."""
    found = changes(
        wanted=[0, 0, 1, 1, NOISE, 2],
        active=[0, 1, 1, NOISE, 1, UNASSIGNED],
        inactive=[0, 0, 1, UNASSIGNED, 1, UNASSIGNED],
    )
    assert (found.points, found.known, found.noise) == (6, 5, 1)
    assert (found.moved, found.to_write) == (3, 3)
    assert found.sizes.tolist() == [2, 2, 1]
    assert found.agreement == pytest.approx(
        adjusted_rand_score([0, 1, 1, NOISE, 1], [0, 0, 1, 1, NOISE])
    )


def test_changes_of_a_first_run_move_nothing() -> None:
    """Points that had no label do not move, and there is nothing to agree with."""
    found = changes([0, 1, NOISE], [UNASSIGNED] * 3, [UNASSIGNED] * 3)
    assert (found.known, found.moved, found.to_write, found.agreement) == (0, 0, 3, None)
    assert plan_of(found, (), QUALITY).moved_share == 0


def test_plan_holds_the_changes_as_shares() -> None:
    """The share that moves is of the points that had a label, the largest cluster's is of all."""
    lineage = (Lineage(3, "born", 2),)
    sizes = np.array([2, 5, 1])
    counted = Changes(points=10, known=4, moved=3, to_write=6, noise=2, agreement=0.25, sizes=sizes)
    assert plan_of(counted, lineage, QUALITY) == Plan(
        points=10,
        clusters=3,
        moved=3,
        moved_share=0.75,
        to_write=6,
        noise=2,
        agreement=0.25,
        quality=QUALITY,
        largest_share=0.5,
        lineage=lineage,
    )


def test_plan_of_no_points_has_no_shares() -> None:
    """Nothing there is nothing to divide by."""
    found = plan([], [], [])
    assert (found.points, found.clusters, found.moved_share, found.largest_share) == (0, 0, 0, 0)
    assert plan([NOISE], [0], [0]).largest_share == 0


def test_objections_name_each_gate_that_is_past() -> None:
    """A gate that is past says what it is, what it got and what it allows."""
    found = plan([0, 1, 1, 1], [1, 1, 0, 0], [0] * 4)
    assert objections(found, Gates()) == ()
    gates = Gates(max_moved_share=0.5, max_noise_share=0, max_cluster_share=0.6, min_agreement=0.9)
    assert objections(found, gates) == (
        "moved share is 0.750, more than 0.500",
        "share of the largest cluster is 0.750, more than 0.600",
        f"agreement with the active run is {found.agreement:.3f}, less than 0.900",
    )


def test_objections_begin_past_the_threshold() -> None:
    """A plan that is exactly at every gate may go live."""
    found = plan([0, 1, 1, NOISE], [1, 1, 0, 0], [0] * 4)
    exact = Gates(
        max_moved_share=0.75,
        max_noise_share=0.25,
        max_cluster_share=0.5,
        min_agreement=found.agreement,
    )
    assert objections(found, exact) == ()
    assert found.agreement is not None
    past = Gates(
        max_moved_share=0.74,
        max_noise_share=0.24,
        max_cluster_share=0.49,
        min_agreement=found.agreement + 0.01,
    )
    assert [each.split(" is ")[0] for each in objections(found, past)] == [
        "moved share",
        "noise share",
        "share of the largest cluster",
        "agreement with the active run",
    ]


def test_objections_of_a_first_run_are_not_about_agreement() -> None:
    """Where there is no active run, no agreement is asked for."""
    found = plan([0, 0], [UNASSIGNED] * 2, [UNASSIGNED] * 2)
    assert objections(found, Gates(min_agreement=1, max_moved_share=0)) == ()


def test_noise_past_its_gate_is_told() -> None:
    """Its share is of all points; without points it is none."""
    found = plan([0, NOISE, 1, 1], [1, 1, 0, 0], [0] * 4)
    (told,) = objections(found, Gates(max_noise_share=0.2))
    assert told == "noise share is 0.250, more than 0.200"
    assert objections(plan([], [], []), Gates(max_noise_share=0)) == ()


labels = st.lists(st.integers(-2, 4), min_size=2, max_size=40)


@given(labels, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rand_index_of_counts_is_that_of_the_points(old: list[int], random: object) -> None:
    """Counted pairs give the same adjusted Rand index as scikit-learn's on every point."""
    new = [random.choice([c, 0, 1, NOISE]) for c in old]  # type: ignore[attr-defined]
    pairs = Counter(zip(old, new, strict=True))
    columns = np.array([(a, b, n) for (a, b), n in pairs.items()])
    got = rand_index(columns[:, 2], columns[:, 0].astype(np.int32), columns[:, 1].astype(np.int32))
    assert got == pytest.approx(adjusted_rand_score(old, new))


def test_rand_index_of_a_billion_points_does_not_overflow() -> None:
    """Two halves of two billion that agree but for one in ten, by the formula in whole numbers."""
    n = 10**9
    counts = np.array([9 * n, n, n, 9 * n]) // 10
    rows, columns = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32)
    assert rand_index(counts, rows, columns) == pytest.approx(0.64, abs=1e-6)


def test_rand_index_of_one_cluster_on_both_sides_is_1() -> None:
    """Where chance leaves nothing to disagree on, the labellings agree; so do no points at all."""
    one = np.zeros(1, np.int32)
    assert rand_index(np.array([5]), one, one) == 1
    assert rand_index(np.array([1]), one, one) == 1


def test_drift_of_centroids_is_that_of_the_clusters_that_stay() -> None:
    """Their mean cosine distance, by size; with none, or none known, there is no number."""
    east, north = np.eye(2, dtype=np.float32)
    tilted = np.array([0.8, 0.6], np.float32)
    old = Clusters(np.array([3, 7, 9], np.int32), np.stack([east, north, east]))
    new = Clusters(np.array([7, 3, 11], np.int32), np.stack([north, tilted, north]))
    drift = centroid_drift(old, new, np.array([10, 30, 99]))
    assert drift == pytest.approx((10 * 0 + 30 * (1 - 0.8)) / 40)
    others = Clusters(np.array([4], np.int32), tilted[None])
    assert centroid_drift(old, others, np.array([5])) is None
    unknown = Clusters(old.ids, np.zeros_like(old.centroids))
    assert centroid_drift(unknown, new, np.array([10, 30, 99])) is None
    assert centroid_drift(old, new, np.array([0, 0, 99])) is None


def test_drift_of_centroids_is_never_negative() -> None:
    """A cosine that rounding brings past 1 is no drift."""
    long = Clusters(np.array([3], np.int32), np.array([[1.0001, 0]], np.float32))
    assert centroid_drift(long, long, np.array([5])) == 0


def test_silhouette_is_the_one_by_definition() -> None:
    """(b - a) / max(a, b) of cosine distances, averaged, noise left out."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = rng.integers(-1, 3, 30).astype(np.int32)
    far = 1 - vectors.astype(np.float64) @ vectors.T
    each = []
    for i in np.nonzero(found >= 0)[0]:
        own = (found == found[i]) & (np.arange(30) != i)
        a = far[i, own].mean()
        b = min(far[i, found == k].mean() for k in {0, 1, 2} - {int(found[i])})
        each.append((b - a) / max(a, b))
    assert sampled_silhouette(vectors, found) == pytest.approx(np.mean(each), abs=1e-5)


def test_silhouette_needs_two_clusters() -> None:
    """With one cluster, or a cluster per point, there is no silhouette."""
    vectors = np.eye(4, dtype=np.float32)
    assert sampled_silhouette(vectors, np.zeros(4, np.int32)) is None
    assert sampled_silhouette(vectors, np.arange(4, dtype=np.int32)) is None
    assert sampled_silhouette(vectors, np.array([0, NOISE, 1, NOISE], np.int32)) is None
    assert sampled_silhouette(vectors, np.array([0, 0, 1, NOISE], np.int32)) is not None
