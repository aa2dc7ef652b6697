"""The rules of assigning new points, on hand-made runs; ``test_run`` has those after real runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from reclustering import DIM, VECTOR, Bench

from clusterer.fits.models import Centroids, Model, Prototypes, pack
from clusterer.runs.newcomers import Newcomers
from shoal.errors import Cancelled
from shoal.store import StoreConfig, open_store
from shoal.store.clusterings import FENCE, Clusterings, ClusterRecord
from shoal.store.model import Filter, IdIn, Payload, Point, point_id
from shoal.values import VectorInfo
from shoal.vectors import NOISE, Vectors

AXES = np.eye(DIM, dtype=np.float32)
ACTIVE = Centroids(AXES[:3])
"""Clusters around the first three axes."""
ACTIVE_IDS = [7, 5, 9]
TURNED = Centroids(AXES[[1, 2, 0]])
"""The same clusters in another order."""


def store_run(  # noqa: PLR0913 - what a run leaves behind
    bench: Bench,
    run: str,
    model: Model,
    ids: list[int],
    *,
    vector: str = VECTOR,
    with_model: bool = True,
) -> None:
    """Stores what a run leaves for newcomers: its model, and its clusters' records."""
    records = [
        ClusterRecord(cluster, 1, 1.0, centroid, {})
        for cluster, centroid in zip(ids, model.centroids, strict=True)
    ]
    bench.clusterings.put_clusters("default", run, records, vector=vector, fence=1)
    if with_model:
        packed = pack(model, np.array(ids, np.int32))
        bench.clusterings.put_model("default", run, packed, fence=1)


def point_at(bench: Bench, **state: object) -> None:
    """Makes the clustering what ``state`` says, whose active slot is b."""
    bench.clusterings.ensure("default")
    changes: Payload = {"active_slot": "b", "active_run": "now", **state}  # type: ignore[dict-item]
    bench.clusterings.compare_and_set("default", changes)


def near(*axes: int, tilt: int = 15) -> Vectors:
    """Unit vectors near the ``axes``, tilted towards another one."""
    return (0.8 * AXES[list(axes)] + 0.6 * AXES[tilt]).astype(np.float32)


def look(bench: Bench, newcomers: Newcomers | None = None) -> int:
    looking = newcomers or Newcomers(bench.store, "toys", "default")
    return looking.assign(block_size=4, check=lambda: None)


def held(bench: Bench, ids: list[str], slot: str) -> list[int | None]:
    labels = bench.labels(slot)
    return [labels[one] for one in ids]


def test_newcomers_before_the_first_run_wait(quick: Bench) -> None:
    """Without an active run nothing is assigned, and nothing read."""
    ids = quick.put(near(0, 1))
    assert look(quick) == 0
    assert held(quick, ids, "a") == held(quick, ids, "b") == [None, None]


def test_newcomers_get_their_cluster_in_both_slots_after_a_first_run(quick: Bench) -> None:
    """The slot of no run gets the same cluster: the next run then has little to write."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    ids = quick.put(near(0, 1, 2, 1, 0, 2))
    assert look(quick) == 6
    assert held(quick, ids, "b") == held(quick, ids, "a") == [7, 5, 9, 5, 7, 9]
    assert look(quick) == 0


def test_newcomers_get_the_cluster_that_each_run_gives(quick: Bench) -> None:
    """The other slot gets the cluster of the run before, so that a rollback finds the point."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    store_run(quick, "before", TURNED, [1, 2, 3])
    point_at(quick, previous_run="before")
    ids = quick.put(near(0, 1, 2))
    assert look(quick) == 3
    assert held(quick, ids, "b") == [7, 5, 9]
    assert held(quick, ids, "a") == [3, 1, 2]


def test_newcomers_leave_the_other_slot_where_it_has_a_label(quick: Bench) -> None:
    """What a run has written there stays; the slot that readers follow is filled beside it."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    ids = quick.put(near(0, 0, 1, 1))
    where = Filter((IdIn([ids[0], ids[2]]),))
    quick.store.set_payload("toys", {"a": 44}, where=where, key="clusters.default")
    assert look(quick) == 4
    assert held(quick, ids, "b") == [7, 7, 5, 5]
    assert held(quick, ids, "a") == [44, 7, 44, 5]


def test_newcomers_leave_points_that_have_a_cluster(quick: Bench) -> None:
    """Only an empty slot is filled; a label, noise too, is the run's."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    ids = quick.put(near(0, 1, 2))
    for one, label in zip(ids[:2], (44, NOISE), strict=True):
        where = Filter((IdIn([one]),))
        quick.store.set_payload("toys", {"b": label}, where=where, key="clusters.default")
    assert look(quick) == 1
    assert held(quick, ids, "b") == [44, NOISE, 9]


@pytest.mark.parametrize(("expires_in_s", "other"), [(60.0, None), (-1.0, 7)])
def test_newcomers_leave_the_other_slot_to_a_run_under_way(
    quick: Bench, expires_in_s: float, other: int | None
) -> None:
    """While a lease is held, the slot that readers do not follow is the run's to write."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick, lease_run="r", lease_expires=time.time() + expires_in_s)
    ids = quick.put(near(0))
    assert look(quick) == 1
    assert held(quick, ids, "b") == [7]
    assert held(quick, ids, "a") == [other]


def test_newcomers_that_lie_nowhere_are_noise(quick: Bench) -> None:
    """A model that leaves noise leaves it here too; noise does not count as clustered."""
    model = Prototypes(
        AXES[:2], AXES[:2], np.array([0, 1], np.int32), np.array([0.7, 0.7], np.float32)
    )
    store_run(quick, "now", model, [7, 5])
    point_at(quick, newcomers_clustered=10, newcomers_confidence=4.0)
    vectors = near(0, 2, 1)
    ids = quick.put(vectors)
    assert look(quick) == 3
    assert held(quick, ids, "b") == [7, NOISE, 5]
    found = model.assign(vectors)
    assert quick.state.drift.newcomers_clustered == 12
    assert quick.state.drift.newcomers_confidence == pytest.approx(4 + found.confidence.sum())


def test_newcomers_count_for_the_run_that_assigned_them(
    quick: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went live during the look does not get their counts."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    quick.put(near(0))
    scan = quick.store.scan

    def scan_then_flip(name: str, options: object) -> Iterator[object]:
        yield from scan(name, options)  # type: ignore[call-overload]
        if name == "toys":
            quick.clusterings.compare_and_set("default", {"active_run": "next"})

    monkeypatch.setattr(quick.store, "scan", scan_then_flip)
    assert look(quick) == 1
    assert quick.state.pointer.active_run == "next"
    assert quick.state.drift.newcomers_clustered == 0


def test_newcomers_that_were_assigned_count_even_if_the_look_is_stopped(quick: Bench) -> None:
    """Told to stop between two blocks, the look leaves right counts of what it has written."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    quick.put(near(*[0] * 12))
    left = [2]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        Newcomers(quick.store, "toys", "default").assign(block_size=4, check=check)
    assert list(quick.labels("b").values()).count(7) == 8
    assert quick.state.drift.newcomers_clustered == 8


def test_newcomers_of_a_run_without_a_model_go_to_the_nearest_centroid(quick: Bench) -> None:
    """A run of a version that stored no model was of k-means, whose centroids are its clusters'."""
    store_run(quick, "now", ACTIVE, [5, 7, 9], with_model=False)
    point_at(quick)
    ids = quick.put(near(2, 0, 1))
    assert look(quick) == 3
    assert held(quick, ids, "b") == [9, 5, 7]


def test_newcomers_read_the_model_of_each_run_once(
    quick: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look after look goes by what was read; a run that goes live is read, one out of sight not."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    store_run(quick, "before", TURNED, [1, 2, 3])
    point_at(quick, previous_run="before")
    read: list[str] = []
    model = Clusterings.model

    def watched(self: Clusterings, clustering: str, run: str) -> bytes:
        read.append(run)
        return model(self, clustering, run)

    monkeypatch.setattr(Clusterings, "model", watched)
    newcomers = Newcomers(quick.store, "toys", "default")
    for first in (0, 10):
        quick.put(near(0, 1), first=first)
        assert look(quick, newcomers) == 2
    assert read == ["now", "before"]
    store_run(quick, "next", TURNED, [4, 5, 6])
    point_at(quick, active_run="next", previous_run="now")
    ids = quick.put(near(0, 1), first=20)
    look(quick, newcomers)
    assert read == ["now", "before", "next"]
    assert held(quick, ids, "b") == [6, 4]
    assert held(quick, ids, "a") == [7, 5]


def test_newcomers_after_a_run_of_another_vector_get_one_slot() -> None:
    """What the run before makes of a vector of another space means nothing."""
    with open_store(StoreConfig(in_memory=True)) as store:
        specs = [VectorInfo(VECTOR, DIM, "f" * 64), VectorInfo("other", DIM, "e" * 64)]
        store.create_collection("toys", specs)
        bench = Bench(store)
        store_run(bench, "now", ACTIVE, ACTIVE_IDS)
        store_run(bench, "before", TURNED, [1, 2, 3], vector="other")
        point_at(bench, previous_run="before")
        ids = sorted(point_id(str(i)) for i in range(3))
        vectors = {VECTOR: near(0)[0], "other": near(0)[0]}
        store.upsert("toys", [Point(ids[0], vectors, {}), Point(ids[1], vectors, {})])
        store.upsert("toys", [Point(ids[2], {"other": near(0)[0]}, {})])
        assert look(bench) == 2
        assert held(bench, ids, "b") == [7, 7, None]
        assert held(bench, ids, "a") == [None] * 3


@pytest.mark.parametrize("slot", ["a", "b"])
def test_newcomers_that_got_a_label_under_the_look_keep_it(
    quick: Bench, monkeypatch: pytest.MonkeyPatch, slot: str
) -> None:
    """A run that began since the look sealed the point: the whole write passes it by."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    ids = quick.put(near(0, 0))
    changed_during_scan(quick, monkeypatch, slot, ids[:1])
    look(quick)
    assert held(quick, ids, slot) == [44, 7]
    assert held(quick, ids, "b" if slot == "a" else "a") == [None, 7]


def changed_during_scan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, slot: str, ids: list[str]
) -> None:
    """Lets a run that begins after ``ids`` were read write 44 into their ``slot``."""
    scan, labels = bench.store.scan, {slot: 44, FENCE: bench.state.lease.fence + 1}

    def scan_then_write(name: str, options: object) -> Iterator[object]:
        for block in scan(name, options):  # type: ignore[call-overload]
            if name == "toys":
                where = Filter((IdIn(ids),))
                bench.store.set_payload(name, dict(labels), where=where, key="clusters.default")
            yield block

    monkeypatch.setattr(bench.store, "scan", scan_then_write)


def test_newcomers_that_were_replaced_under_the_look_wait(
    quick: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point with another vector by now is left to the next look."""
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    ids = quick.put(near(0, 0))
    scan, done = quick.store.scan, [False]

    def scan_then_replace(name: str, options: object) -> Iterator[object]:
        for block in scan(name, options):  # type: ignore[call-overload]
            if name == "toys" and not done[0]:
                done[0] = True
                quick.put(near(1), age_s=0)  # the first of them, anew
            yield block

    monkeypatch.setattr(quick.store, "scan", scan_then_replace)
    look(quick)
    assert held(quick, ids, "b") == [None, 7]
    assert look(quick) == 1
    assert held(quick, ids, "b") == [5, 7]


def test_newcomers_of_one_store_are_told_apart_by_collection(quick: Bench) -> None:
    """A look at one collection leaves another alone."""
    quick.store.create_collection("others", [VectorInfo(VECTOR, DIM, "f" * 64)])
    store_run(quick, "now", ACTIVE, ACTIVE_IDS)
    point_at(quick)
    quick.store.upsert("others", [Point(point_id("x"), {VECTOR: near(0)[0]}, {})])
    assert look(quick) == 0
