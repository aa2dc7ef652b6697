"""What the engine makes of its tasks' counts, without Spark: it is what the points would say."""

from __future__ import annotations

import pickle
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from faulty_engine import EachOnce, Faulty, make_hasty
from hypothesis import given, settings
from hypothesis import strategies as st
from reclustering import DIM, VECTOR, Bench, blobs

from clusterer.fits import Fit
from clusterer.fits.models import Centroids
from clusterer.runs.assign import Rule
from clusterer.runs.engine import Scope
from clusterer.runs.in_memory import FoundPoints, InMemoryEngine
from clusterer.runs.matching import Clusters, Matching
from clusterer.runs.points import UNASSIGNED, PointTable
from clusterer.runs.sampling import Sample
from clusterer.spark import passes
from clusterer.spark.engine import CountedPoints, SparkEngine, SparkSettings
from clusterer.spark.passes import Orders, SliceTotals, count_slice, read_vectors, write_slice
from shoal.errors import LeaseLost
from shoal.spark.slices import slices_of
from shoal.store import StoreConfig
from shoal.store.clusterings import Pointer, State
from shoal.store.model import EVERYWHERE, VectorBlock, VectorScan, point_id
from shoal.vectors import NOISE, Labels

IDS = np.array([5, 3, 9], np.int32)
"""Ids of the active clusters, in an order of their own."""
RULE = Rule(Fit(Centroids(np.eye(3, DIM, dtype=np.float32))), Sample(np.zeros(0), np.zeros((0, 0))))


def orders_of(state: State, *, fence: int = 1, write_chunk: int = 7) -> Orders:
    return Orders(
        store=StoreConfig(in_memory=True),
        collection="toys",
        vector=VECTOR,
        state=state,
        run="run",
        fence=fence,
        rule=RULE,
        fields=(),
        block_size=16,
        write_chunk=write_chunk,
    )


def scope_of() -> Scope:
    """A scope of which only what counting asks for is there."""
    context = SimpleNamespace(store=None, config=SimpleNamespace(write_chunk=1))
    return Scope(
        task=SimpleNamespace(collection="toys", clustering="default"),  # type: ignore[arg-type]
        context=context,  # type: ignore[arg-type]
        tracker=SimpleNamespace(check=None),  # type: ignore[arg-type]
        fence=1,
        state=State("default"),
        active=Clusters(IDS, np.eye(3, DIM, dtype=np.float32)),
        began=0.0,
    )


labels = st.sampled_from([UNASSIGNED, NOISE, 3, 5, 9, 77])
points = st.lists(st.tuples(st.integers(-1, 2), labels, labels), min_size=1, max_size=60)


@given(points, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_counts_of_slices_say_what_the_points_say(
    rows: list[tuple[int, int, int]], parts: int
) -> None:
    """Overlap and changes from counted pairs are those of the engine that holds every point."""
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)]
    table = PointTable()
    table.append(sorted(point_id(str(i)) for i in range(len(rows))), *columns)
    table.seal()
    totals = SliceTotals(RULE.model.centroids, 0, ())
    for part in range(parts):  # as tasks of several slices
        one = SliceTotals(RULE.model.centroids, 0, ())
        found, active, inactive = (column[part::parts] for column in columns)
        one.points = len(found)
        one.active = Counter(zip(active.tolist(), found.tolist(), strict=True))
        one.inactive = Counter(zip(inactive.tolist(), found.tolist(), strict=True))
        one.tally.add(np.zeros((len(found), DIM), np.float32), found)
        totals = pickle.loads(pickle.dumps(totals)).join(one)
    matching = Matching(np.array([9, 100, 5], np.int32), (), 101)
    held = FoundPoints(RULE, totals, table)
    counted = CountedPoints(orders_of(State("default")), totals, ())
    memory = InMemoryEngine(scope_of())
    spark = SparkEngine(cast("SparkSettings", None), scope_of())

    ours, theirs = spark.overlap(counted), memory.overlap(held)
    np.testing.assert_array_equal(ours.counts.toarray(), theirs.counts.toarray())
    np.testing.assert_array_equal(ours.old_sizes, theirs.old_sizes)
    np.testing.assert_array_equal(ours.new_sizes, theirs.new_sizes)
    got, wanted = spark.changes(counted, matching), memory.changes(held, matching)
    assert sorted(got.sizes.tolist()) == sorted(wanted.sizes.tolist())
    for name in ("points", "known", "moved", "to_write", "noise"):
        assert getattr(got, name) == getattr(wanted, name), name
    assert got.agreement == (None if wanted.agreement is None else pytest.approx(wanted.agreement))


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Points in memory that tasks open as their store."""
    from shoal.store import VectorInfo, open_store  # noqa: PLC0415 - only here

    store = open_store(StoreConfig(in_memory=True))
    store.create_collection("toys", [VectorInfo(VECTOR, DIM, "f" * 64)])
    monkeypatch.setattr(passes, "open_store", lambda _: nullcontext(store))
    return Bench(store)


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def remote(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Points of a server that fails when it is told to, which tasks open as their store."""
    make_hasty(monkeypatch)
    store = faulty.store()
    monkeypatch.setattr(passes, "open_store", lambda _: nullcontext(store))
    return Bench(store)


def leased(bench: Bench, **state: object) -> State:
    """The clustering of a run that holds the lease."""
    bench.clusterings.ensure("default")
    bench.clusterings.compare_and_set(
        "default",
        {"fence": 1, "lease_run": "run", **state},  # type: ignore[dict-item]
    )
    return bench.state


def expected(vectors: np.ndarray, ids: Labels) -> list[int]:
    return ids[(vectors @ RULE.model.centroids.T).argmax(axis=1)].tolist()


NEW_IDS = np.array([40, 41, 42], np.int32)


def test_writing_a_slice_labels_its_points_once(slices: Bench) -> None:
    """Before the first run in both slots; written again, nothing differs any more."""
    vectors = blobs(40)
    ids = slices.put(vectors)
    orders = orders_of(leased(slices))
    first, second = slices_of(2)
    done = write_slice(orders, NEW_IDS, EVERYWHERE, first)
    inside = [one for one in ids if one < second.first]
    assert done.points == len(inside) == done.labels.total() == done.gained.total()
    done.join(write_slice(orders, NEW_IDS, EVERYWHERE, second))
    wanted = dict(zip(ids, expected(vectors, NEW_IDS), strict=True))
    assert slices.labels("a") == slices.labels("b") == wanted
    assert (done.points, done.labels, done.lost) == (40, Counter(wanted.values()), Counter())
    again = write_slice(orders, NEW_IDS, EVERYWHERE, first)
    assert (again.points, again.gained) == (0, Counter())


class EachOfItsOwn(EachOnce):
    """A fault of the task's own calls, and of none that looks whether the lease is the run's."""

    def __call__(self, moment: str) -> None:
        if not moment.endswith(" retrieve"):
            super().__call__(moment)


@pytest.mark.parametrize("when", ["before", "after"])
def test_task_outlives_a_store_that_fails_each_call_once(
    remote: Bench, faulty: Faulty, when: str
) -> None:
    """What it counts, reads and writes is what it would have been."""
    vectors = blobs(40)
    ids = remote.put(vectors)
    orders = orders_of(leased(remote))
    faulty.fault = fault = EachOfItsOwn(when)
    counted = [count_slice(orders, 1, part).points for part in slices_of(2)]
    for part in slices_of(2):
        write_slice(orders, NEW_IDS, EVERYWHERE, part)
    read = read_vectors(orders.store, "toys", slices_of(1)[0], VectorScan(vector=VECTOR))
    faulty.fault = lambda _: None
    assert {"get_collection", "scroll", "set_payload"} <= set(fault.failed)
    assert (sum(counted), len(read)) == (40, 40)
    wanted = dict(zip(ids, expected(vectors, NEW_IDS), strict=True))
    assert remote.labels("a") == remote.labels("b") == wanted


def test_task_that_waits_for_the_store_ends_when_another_has_the_lease(
    remote: Bench, faulty: Faulty
) -> None:
    """It writes nothing under a lease that is not the run's any more."""
    remote.put(blobs(40))
    orders = orders_of(leased(remote))
    refused: list[str] = []

    def fault(moment: str) -> None:
        if moment == "before set_payload":
            refused.append(moment)
            faulty.fault = lambda _: None
            remote.clusterings.compare_and_set("default", {"fence": 2, "lease_run": "other"})
            raise OSError("connection refused")

    faulty.fault = fault
    with pytest.raises(LeaseLost):
        write_slice(orders, NEW_IDS, EVERYWHERE, slices_of(1)[0])
    assert refused
    assert set(remote.labels("a").values()) == {None}


def test_writing_after_a_first_run_leaves_the_slot_that_readers_follow(slices: Bench) -> None:
    """Only labels that differ are written; what was there before is counted as lost."""
    vectors = blobs(10)
    ids = slices.put(vectors)
    write_slice(orders_of(leased(slices)), NEW_IDS, EVERYWHERE, slices_of(1)[0])
    before = slices.labels("a")
    state = leased(slices, active_run="before")
    assert state.pointer == Pointer("a", "before")
    renamed = np.array([40, 51, 52], np.int32)
    done = write_slice(orders_of(state), renamed, EVERYWHERE, slices_of(1)[0])
    assert slices.labels("a") == before
    now = expected(vectors, renamed)
    assert [slices.labels("b")[one] for one in ids] == now
    moved = [one for one in now if one != 40]
    assert done.gained == Counter(moved)
    assert done.lost == Counter(one for one in before.values() if one != 40)
    assert done.points == len(moved)


def test_writing_of_an_unsettled_clustering_seals_every_point(slices: Bench) -> None:
    """Also points whose label is right already, unless this run has sealed them."""
    slices.put(blobs(10))
    write_slice(orders_of(leased(slices)), NEW_IDS, EVERYWHERE, slices_of(1)[0])
    later = orders_of(leased(slices, unsettled=True, active_run="before", fence=2), fence=2)
    assert write_slice(later, NEW_IDS, EVERYWHERE, slices_of(1)[0]).points == 10
    assert write_slice(later, NEW_IDS, EVERYWHERE, slices_of(1)[0]).points == 0


@pytest.mark.parametrize("taken", [{"fence": 2}, {"lease_run": "other"}])
def test_tasks_of_an_overtaken_run_write_nothing(slices: Bench, taken: dict[str, object]) -> None:
    """Another fence or another run in the store ends the task at its next write."""
    slices.put(blobs(10))
    orders = orders_of(leased(slices))
    leased(slices, **taken)
    with pytest.raises(LeaseLost, match="the lease of run run is over"):
        write_slice(orders, NEW_IDS, EVERYWHERE, slices_of(1)[0])
    assert set(slices.labels("a").values()) == {None}


def test_counting_a_slice_is_the_sum_over_its_points(slices: Bench) -> None:
    """Labels of both slots with the rows of the model; as many points as the slice has."""
    vectors = blobs(30)
    ids = slices.put(vectors)
    state = leased(slices)
    write_slice(orders_of(state), NEW_IDS, EVERYWHERE, slices_of(2)[0])
    counted = [passes.count_slice(orders_of(state), 5, part) for part in slices_of(3)]
    totals = counted[0].join(counted[1]).join(counted[2])
    assert totals.points == 30
    assert len(totals.sampled()) == 5
    labelled = slices.labels("a")
    pairs = Counter(
        (UNASSIGNED if labelled[one] is None else labelled[one], row)
        for one, row in zip(ids, expected(vectors, np.arange(3, dtype=np.int32)), strict=True)
    )
    assert totals.active == totals.inactive == pairs


def test_totals_count_blocks_as_they_come() -> None:
    """A block of a scan, whatever its payloads hold."""
    state = State("default")
    totals = SliceTotals(RULE.model.centroids, 10, ())
    ids = sorted(point_id(str(i)) for i in range(2))
    payloads: list[dict[str, object]] = [{"clusters": {"default": {"a": 5, "b": 3}}}, {}]
    block = VectorBlock(ids, payloads, np.eye(2, DIM, dtype=np.float32))  # type: ignore[arg-type]
    totals.add(orders_of(state), block)
    assert totals.active == {(5, 0): 1, (UNASSIGNED, 1): 1}
    assert totals.inactive == {(3, 0): 1, (UNASSIGNED, 1): 1}
