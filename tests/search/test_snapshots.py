"""Snapshots: one run at a time, read once while it lasts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from clustered import AXES, CLUSTERS, Spy, fill, make_live

from search.snapshots import Snapshots
from shoal.errors import NotFound
from shoal.store import StoreConfig, open_store
from shoal.store.clusterings import Clusterings


@pytest.fixture(scope="module")
def filled() -> Iterator[Spy]:
    with open_store(StoreConfig(in_memory=True)) as opened:
        store = Spy(opened)
        fill(store)
        Clusterings(store, "toys").ensure("other")
        yield store


@pytest.fixture
def store(filled: Spy) -> Spy:
    make_live(filled, "r1", "a")
    filled.scanned.clear()
    return filled


def test_snapshot_holds_the_active_run(store: Spy) -> None:
    """Ids and centroids are in one order; the slot says which field of a payload counts."""
    found = Snapshots(store, 4).read("toys", "default")
    assert (found.state.pointer.active_run, found.vector, found.ids) == ("r1", "toy", [*CLUSTERS])
    np.testing.assert_array_equal(found.centroids, np.stack(AXES))
    assert [found.clusters[c].cluster for c in CLUSTERS] == [*CLUSTERS]
    assert found.cluster_of({"clusters": {"default": {"a": 2, "b": 7}}}) == 2
    assert found.cluster_of({"clusters": {"other": {"a": 2}}}) is None


def test_run_is_read_once_and_its_pointer_every_time(store: Spy) -> None:
    """The records of a run never change, but it may move to the other slot."""
    snapshots = Snapshots(store, 4)
    first = snapshots.read("toys", "default")
    scans = len(store.scanned)
    assert scans
    make_live(store, "r1", "b")
    again = snapshots.read("toys", "default")
    assert len(store.scanned) == scans
    assert again.clusters == first.clusters
    assert (first.state.pointer.active_slot, again.state.pointer.active_slot) == ("a", "b")
    assert again.cluster_of({"clusters": {"default": {"a": 2, "b": 7}}}) == 7


def test_runs_that_were_asked_for_last_are_kept(store: Spy) -> None:
    """With room for two, a third run drops the one that was not asked for the longest time."""
    snapshots = Snapshots(store, 2)

    def reads(run: str) -> bool:
        """Whether asking for ``run`` reads its records."""
        make_live(store, run, "a")
        store.scanned.clear()
        assert snapshots.read("toys", "default").state.pointer.active_run == run
        return bool(store.scanned)

    assert [reads(run) for run in ("r1", "r2", "r1", "r2")] == [True, True, False, False]
    assert [reads(run) for run in ("r1", "r3", "r1", "r2")] == [False, True, False, True]


def test_clusterings_and_collections_are_kept_apart(store: Spy) -> None:
    """A run of one clustering is not shown as another's."""
    snapshots = Snapshots(store, 4)
    assert snapshots.read("toys", "default").ids == [*CLUSTERS]
    other = snapshots.read("toys", "other")
    assert (other.ids, other.state.clustering, other.vector) == ([], "other", "toy")
    assert other.centroids.shape == (0, 8)
    assert other.cluster_of({"clusters": {"other": {"a": 2}}}) is None


def test_no_such_clustering_names_those_there_are(store: Spy) -> None:
    """The default one may be yet to come; any other is a mistake."""
    with pytest.raises(NotFound, match="'nope': expected one of default, other") as caught:
        Snapshots(store, 4).read("toys", "nope")
    assert caught.value.metadata == {"clustering": "nope"}
    with pytest.raises(NotFound, match="'none'"):
        Snapshots(store, 4).read("none", "default")


def test_nearest_cluster_and_require_agree_with_the_records(store: Spy) -> None:
    """The nearest centroid's id, not its row; a cluster that is not there is named."""
    found = Snapshots(store, 4).read("toys", "default")
    assert [found.nearest_cluster(axis) for axis in AXES] == [*CLUSTERS]
    assert found.require(7).cluster == 7
    with pytest.raises(NotFound, match="no cluster 4 in run r1: expected one of the 3 that"):
        found.require(4)
