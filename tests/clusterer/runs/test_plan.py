from __future__ import annotations

import numpy as np
import pytest

from clusterer.runs.matching import Clusters
from clusterer.runs.plan import (
    Plan,
    Quality,
    centroid_drift,
    changes_of,
    objections,
    plan_of,
    sampled_silhouette,
)
from clusterer.runs.points import UNASSIGNED, PointTable
from shoal.store.model import point_id
from shoal.values import Gates
from shoal.vectors import NOISE

QUALITY = Quality(0.0, None, 0.5, None)


def plan(wanted: list[int], active: list[int], inactive: list[int]) -> Plan:
    """The plan to give points the labels ``wanted``, of what their slots hold."""
    table = PointTable()
    ids = sorted(point_id(str(i)) for i in range(len(wanted)))
    table.append(ids, *(np.array(c, np.int32) for c in (wanted, active, inactive)))
    table.seal()
    return plan_of(changes_of(table, np.array(wanted, np.int32)), (), QUALITY)


def test_plan_counts_what_moves_and_what_must_be_written() -> None:
    """Moved is against what readers see; written is against the other slot."""
    found = plan(
        wanted=[0, 0, 1, 1, NOISE, 2],
        active=[0, 1, 1, NOISE, 1, UNASSIGNED],
        inactive=[0, 0, 1, UNASSIGNED, 1, UNASSIGNED],
    )
    assert (found.points, found.clusters, found.noise) == (6, 3, 1)
    assert (found.moved, found.to_write) == (3, 3)
    assert found.moved_share == pytest.approx(3 / 5)
    assert found.largest_share == pytest.approx(2 / 6)


def test_objections_name_each_gate_that_is_past() -> None:
    """Each that is past says what it is and what it got; one that is not says nothing."""
    found = plan([0, 1, 1, 1], [1, 1, 0, 0], [0] * 4)
    assert objections(found, Gates()) == ()
    told = objections(
        found,
        Gates(max_moved_share=0.5, min_agreement=0.9, max_cluster_share=0.6, max_noise_share=0),
    )
    assert [line.split(" is ")[0] for line in told] == [
        "moved share",
        "share of the largest cluster",
        "agreement with the active run",
    ]


def test_noise_past_its_gate_is_told() -> None:
    """Its share is of all points."""
    found = plan([0, NOISE, 1, 1], [1, 1, 0, 0], [0] * 4)
    assert objections(found, Gates(max_noise_share=0.25)) == ()
    (told,) = objections(found, Gates(max_noise_share=0.2))
    assert told == "noise share is 0.250, more than 0.200"


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


def test_silhouette_is_the_one_by_definition() -> None:
    """(b - a) / max(a, b) of cosine distances, averaged, noise left out."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(-1, 3, 30).astype(np.int32)
    far = 1 - vectors.astype(np.float64) @ vectors.T
    each = []
    for i in np.nonzero(labels >= 0)[0]:
        own = (labels == labels[i]) & (np.arange(30) != i)
        a = far[i, own].mean()
        b = min(far[i, labels == k].mean() for k in {0, 1, 2} - {int(labels[i])})
        each.append((b - a) / max(a, b))
    assert sampled_silhouette(vectors, labels) == pytest.approx(np.mean(each), abs=1e-5)


def test_silhouette_needs_two_clusters() -> None:
    """With one cluster, or a cluster per point, there is no silhouette."""
    vectors = np.eye(4, dtype=np.float32)
    assert sampled_silhouette(vectors, np.zeros(4, np.int32)) is None
    assert sampled_silhouette(vectors, np.arange(4, dtype=np.int32)) is None
    assert sampled_silhouette(vectors, np.array([0, 0, 1, NOISE], np.int32)) is not None
