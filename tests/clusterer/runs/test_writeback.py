from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from reclustering import DIM, VECTOR, Bench, blobs

from clusterer.runs import writeback
from clusterer.runs.points import UNASSIGNED, PointTable, pack_ids
from clusterer.runs.writeback import Seal, SlotWriter, Written
from shoal.errors import Cancelled, Conflict
from shoal.store import Store, StoreConfig, open_store
from shoal.store.clusterings import FENCE, Pointer, State
from shoal.store.model import (
    ARRIVED,
    Empty,
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    Range,
    arrival,
    point_id,
)
from shoal.values import VectorInfo
from shoal.vectors import NOISE

FIRST = State("default")
"""A clustering before its first run: the inactive slot is b."""
LATER = State("default", Pointer(active_slot="b", active_run="before"))
"""A clustering with an active run: the inactive slot is a."""
BEGAN = 1000.0
OURS = Seal(3, sealing=False)
"""The seal of a run that writes only points whose label changes."""


def nothing() -> None:
    """A check that never objects."""


@pytest.fixture
def ids(quick: Bench) -> list[str]:
    """The ids of ten points, ascending; they came in at BEGAN - 1."""
    found = sorted(point_id(str(i)) for i in range(10))
    put(quick.store, found, at=BEGAN - 1)
    return found


def put(store: Store, ids: list[str], *, at: float, **payload: object) -> None:
    """Stores or replaces points, which came in at that time."""
    points = [
        Point(one, {VECTOR: vector}, {**arrival(at), **payload})  # type: ignore[dict-item]
        for one, vector in zip(ids, blobs(len(ids)), strict=True)
    ]
    store.upsert("toys", points)


def writer(
    store: Store, *, chunk: int = 4, check: Callable[[], None] = nothing, seal: Seal = OURS
) -> SlotWriter:
    return SlotWriter(store, "toys", "default", chunk, check, seal)


def slots(store: Store, ids: list[str]) -> list[Payload]:
    """The labels that each point has in the clustering's slots."""
    return [{k: v for k, v in each.items() if k != FENCE} for each in stored(store, ids)]


def fences(store: Store, ids: list[str]) -> list[object]:
    """The fence that seals each point; None where there is none."""
    return [each.get(FENCE) for each in stored(store, ids)]


def stored(store: Store, ids: list[str]) -> list[Payload]:
    """What is stored of each point for the clustering."""
    found = store.retrieve("toys", ids)
    assert all(record is not None for record in found)
    return [
        dict(record.payload.get("clusters", {}).get("default", {}))  # type: ignore[union-attr, arg-type]
        for record in found
        if record
    ]


def held(store: Store, ids: list[str], slot: str) -> list[object]:
    return [each.get(slot) for each in slots(store, ids)]


def table_of(ids: list[str], inactive: list[int]) -> PointTable:
    """A table of points whose inactive slot held these labels when they were read."""
    table = PointTable()
    columns = [np.full(len(ids), -7), np.full(len(ids), -7), np.array(inactive)]
    table.append(ids, *(column.astype(np.int32) for column in columns))
    table.seal()
    return table


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# The writer.


@pytest.mark.parametrize("packed", [False, True])
def test_write_sets_the_slots_of_the_points_in_operations(
    quick: Bench, ids: list[str], *, packed: bool
) -> None:
    """Ids, as strings or packed, are cut into operations: a check before, a word after each."""
    told: list[object] = []
    writing = writer(quick.store, check=lambda: told.append("check"))
    some = ids[:9]
    writing.write(pack_ids(some) if packed else some, {"a": 5, "b": NOISE}, done=told.append)
    assert slots(quick.store, ids) == [{"a": 5, "b": NOISE}] * 9 + [{}]
    assert told == ["check", 4, "check", 4, "check", 1]


def test_write_leaves_points_that_meet_a_condition_of_unless(quick: Bench, ids: list[str]) -> None:
    """Only the points named are written, and none that meets one of the conditions."""
    put(quick.store, ids[:2], at=50.0, color="red")
    put(quick.store, ids[2:4], at=50.0)
    put(quick.store, ids[4:6], at=70.0, color="red")
    unless = (Equals("color", "red"), Range(ARRIVED, gt=500))
    writer(quick.store).write(ids[1:], {"a": 2}, unless=unless)
    assert held(quick.store, ids, "a") == [None, None, 2, 2, *[None] * 6]
    writer(quick.store).write(ids[:1], {"a": 1})
    assert held(quick.store, ids, "a") == [1, None, 2, 2, *[None] * 6]


def test_write_that_is_told_to_stop_sends_no_more(quick: Bench, ids: list[str]) -> None:
    """What the check raises passes on, and the operations before it are done."""
    left = [2]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        writer(quick.store, check=check).write(ids, {"a": 1})
    assert held(quick.store, ids, "a") == [1] * 8 + [None] * 2
    left[0] = 1
    with pytest.raises(Cancelled):
        writer(quick.store, check=check).clear(ids, "a")
    assert held(quick.store, ids, "a") == [None] * 4 + [1] * 4 + [None] * 2


def test_write_leaves_its_fence_on_each_point(quick: Bench, ids: list[str]) -> None:
    """The fence of the last writer seals a point, whether its run writes all points or few."""
    writer(quick.store, seal=Seal(3, sealing=False)).write(ids[:2], {"a": 1})
    writer(quick.store, seal=Seal(4, sealing=True)).write(ids[1:3], {"b": 2})
    assert stored(quick.store, ids[:4]) == [
        {"a": 1, "fence": 3},
        {"a": 1, "b": 2, "fence": 4},
        {"b": 2, "fence": 4},
        {},
    ]


@pytest.mark.parametrize(("fence", "reaches"), [(2, False), (3, True), (4, True)])
@pytest.mark.parametrize("sealing", [False, True])
def test_no_write_reaches_a_point_that_a_later_run_sealed(
    quick: Bench, ids: list[str], fence: int, *, sealing: bool, reaches: bool
) -> None:
    """A lower fence than the seal's changes nothing; an equal or higher one does."""
    writer(quick.store, seal=Seal(3, sealing=sealing)).write(ids[:5], {"a": 1, "b": 1})
    late = writer(quick.store, seal=Seal(fence, sealing=False))
    late.write(ids, {"a": 9})
    assert held(quick.store, ids, "a") == [9 if reaches else 1] * 5 + [9] * 5
    late.clear(ids, "b")
    assert held(quick.store, ids, "b") == [None if reaches else 1] * 5 + [None] * 5


def test_clear_empties_one_slot_of_the_points(quick: Bench, ids: list[str]) -> None:
    """The other slot and other points keep theirs."""
    writing = writer(quick.store)
    writing.write(ids, {"a": 1, "b": 2})
    writing.clear(ids[:6], "a")
    assert slots(quick.store, ids) == [{"b": 2}] * 6 + [{"a": 1, "b": 2}] * 4


# Differences.


def test_differences_are_written_to_the_inactive_slot(quick: Bench, ids: list[str]) -> None:
    """Only points whose slot holds another label, or none, are written, label by label."""
    writing = writer(quick.store)
    writing.write(ids[:3], {"a": 0, "b": 8})
    table = table_of(ids, [0, 0, 0, *[UNASSIGNED] * 7])
    told: list[int] = []
    wanted = labels(0, 1, 0, 1, 1, 1, 1, 1, NOISE, 0)
    found = writeback.write_differences(
        writing, table, wanted, LATER, began=BEGAN, progress=told.append
    )
    assert held(quick.store, ids, "a") == wanted.tolist()
    assert held(quick.store, ids, "b") == [8] * 3 + [None] * 7
    assert found == Written(points=8, labels=Counter({0: 3, 1: 6, NOISE: 1}))
    assert told == [1, 2, 6, 8], "noise, then 0, then 1 in two operations"


def test_differences_of_a_first_run_go_into_both_slots(quick: Bench, ids: list[str]) -> None:
    """Nobody reads either slot yet, and the next run finds its labels in place."""
    table = table_of(ids, [UNASSIGNED] * 10)
    found = writeback.write_differences(
        writer(quick.store), table, labels(*range(10)), FIRST, began=BEGAN, progress=lambda _: None
    )
    assert slots(quick.store, ids) == [{"a": i, "b": i} for i in range(10)]
    assert found.points == 10


def test_differences_leave_what_came_in_since(quick: Bench, ids: list[str]) -> None:
    """A point that was replaced after the run began keeps what it has: it is another picture."""
    put(quick.store, ids[:3], at=BEGAN + 0.5)
    put(quick.store, ids[3:5], at=BEGAN)
    writeback.write_differences(
        writer(quick.store),
        table_of(ids, [UNASSIGNED] * 10),
        labels(*[4] * 10),
        LATER,
        began=BEGAN,
        progress=lambda _: None,
    )
    assert held(quick.store, ids, "a") == [None] * 3 + [4] * 7


@pytest.mark.parametrize(("sealing", "sealed"), [(False, [5, *[3] * 9]), (True, [5] * 10)])
def test_differences_are_all_points_for_a_run_that_seals(
    quick: Bench, ids: list[str], sealed: list[int], *, sealing: bool
) -> None:
    """A run that seals writes every point, whether its label differs or not."""
    writer(quick.store).write(ids, {"a": 4})
    writing = writer(quick.store, seal=Seal(5, sealing=sealing))
    found = writeback.write_differences(
        writing,
        table_of(ids, [4] * 10),
        labels(5, *[4] * 9),
        LATER,
        began=BEGAN,
        progress=lambda _: None,
    )
    assert found.points == sealed.count(5)
    assert fences(quick.store, ids) == sealed


# Verification.


def verified(bench: Bench, ids: list[str], wanted: np.ndarray, **expected: int) -> int:
    """Verifies that slot a holds ``wanted``, and points of ``expected`` besides."""
    counts = writeback.count_labels(wanted)
    counts.update({int(label[1:]): n for label, n in expected.items()})
    table = table_of(ids, [UNASSIGNED] * len(ids))
    return writeback.verify(writer(bench.store), table, wanted, LATER, expected=counts)


def test_verify_reads_no_point_where_the_counts_agree(
    quick: Bench, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts that are as expected, of points in the table and beyond, are enough."""
    writer(quick.store).write(ids, {"a": 4})
    monkeypatch.setattr(quick.store, "scan", lambda *_: pytest.fail("read the points"))
    assert verified(quick, ids, labels(*[4] * 10)) == 0
    assert verified(quick, ids[:7], labels(*[4] * 7), _4=3) == 0


def test_verify_mends_labels_that_differ(quick: Bench, ids: list[str]) -> None:
    """Wrong labels of points in the table become right; empty slots and strangers stay."""
    writing = writer(quick.store)
    writing.write(ids[:8], {"a": 4, "b": 4})
    writing.write(ids[2:5], {"a": 77})
    writing.write(ids[9:], {"a": 77})
    wanted = labels(4, 4, 4, 4, NOISE, 4, 4, 4, 4)
    assert verified(quick, ids[:9], wanted) == 3
    assert held(quick.store, ids, "a") == [4, 4, 4, 4, NOISE, 4, 4, 4, None, 77]
    assert held(quick.store, ids, "b") == [4] * 8 + [None] * 2


def test_verify_of_an_empty_table_mends_nothing(quick: Bench, ids: list[str]) -> None:
    """Without points of its own a run has nothing to mend, whatever the slot holds."""
    writer(quick.store).write(ids, {"a": 4})
    assert verified(quick, [], labels()) == 0


def test_verify_leaves_a_point_that_was_replaced_after_it_was_read(
    quick: Bench, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label of an old picture does not end up on the new one."""
    writer(quick.store).write(ids, {"a": 77})
    scan, rounds = quick.store.scan, [0]

    def scan_then_replace(name: str, options: object) -> object:
        rounds[0] += 1
        blocks = list(scan(name, options))  # type: ignore[arg-type]
        if rounds[0] == 1:
            put(quick.store, ids[:2], at=BEGAN + 5)
            quick.store.set_payload(
                name, {"a": 66}, where=Filter((IdIn(ids[:1]),)), key="clusters.default"
            )
        return iter(blocks)

    monkeypatch.setattr(quick.store, "scan", scan_then_replace)
    assert verified(quick, ids, labels(*[4] * 10)) == 10 + 1
    assert held(quick.store, ids, "a") == [4, None, *[4] * 8]
    assert rounds == [3], "the second round finds the point that was given a label since"


def test_verify_gives_up_when_points_keep_changing(
    quick: Bench, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three rounds that all found something to mend, another writer is to blame."""
    writer(quick.store).write(ids, {"a": 77})
    sent: list[str] = []
    monkeypatch.setattr(quick.store, "set_payload", lambda name, *_, **__: sent.append(name))
    with pytest.raises(
        Conflict, match=r"'default': clusters\.default\.a still differs .* after 3 rounds"
    ):
        verified(quick, ids, labels(*[4] * 10))
    assert len(sent) == 3 * 3, "operations of four, four and two points in each round"


# Strays.


@pytest.fixture
def two_vectors() -> Store:
    """Ten points with the vector toy, of which the last five also have the vector late."""
    store = open_store(StoreConfig(in_memory=True))
    specs = [VectorInfo(VECTOR, DIM, "f" * 64), VectorInfo("late", 2, "e" * 64)]
    store.create_collection("toys", specs)
    late = np.array([1, 0], np.float32)
    for i, one in enumerate(sorted(point_id(str(i)) for i in range(10))):
        vectors = {VECTOR: blobs(1)[0]} | ({"late": late} if i >= 5 else {})
        store.upsert("toys", [Point(one, vectors, {"ingested_at": 1.0})])
    return store


def test_strays_are_points_without_the_vector_that_have_a_label(two_vectors: Store) -> None:
    """Labels that a run of another vector left are emptied; points of the table are not read."""
    ids = sorted(point_id(str(i)) for i in range(10))
    writing = writer(two_vectors)
    writing.write([*ids[:3], *ids[5:9]], {"a": 4, "b": 4})
    read: list[list[str]] = []
    retrieve = two_vectors.retrieve

    def watched(name: str, some: list[str], **options: object) -> object:
        read.append(list(some))
        return retrieve(name, some, **options)  # type: ignore[arg-type]

    two_vectors.retrieve = watched  # type: ignore[method-assign, assignment]
    table = table_of(ids[5:7], [4, 4])
    assert writeback.clear_strays(writing, table, LATER, "late") == 3
    assert read == [[*ids[:3], *ids[7:9]]]
    assert held(two_vectors, ids, "a") == [None] * 5 + [4] * 4 + [None]
    assert held(two_vectors, ids, "b") == [4] * 3 + [None] * 2 + [4] * 4 + [None]


def test_strays_of_several_blocks_are_added_up(
    two_vectors: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection is read in blocks; the number is of all of them."""
    ids = sorted(point_id(str(i)) for i in range(10))
    writing = writer(two_vectors)
    writing.write(ids[:4], {"a": 4})
    whole = writeback.labelled
    monkeypatch.setattr(writeback, "labelled", lambda state: replace(whole(state), block_size=2))
    assert writeback.clear_strays(writing, table_of([], []), LATER, "late") == 4
    assert held(two_vectors, ids, "a") == [None] * 10


def test_points_that_are_gone_are_no_strays(two_vectors: Store) -> None:
    """An id that nothing is stored under is passed over."""
    ids = sorted(point_id(str(i)) for i in range(10))
    writing = writer(two_vectors)
    gone = point_id("nowhere")
    assert writeback.clear_those_without(writing, [gone, ids[0], ids[5]], LATER, "late") == 1


def test_reading_stops_when_told(quick: Bench, ids: list[str]) -> None:
    """Also where nothing is there to be written: before points are looked up, and at each block."""

    def stop() -> None:
        raise Cancelled("enough")

    stopped = writer(quick.store, check=stop)
    with pytest.raises(Cancelled):
        writeback.clear_those_without(stopped, ids, LATER, VECTOR)
    writer(quick.store).write(ids, {"a": 4})
    with pytest.raises(Cancelled):
        writeback.verify(stopped, table_of(ids, [4] * 10), labels(*[4] * 10), LATER, expected={})


# The small parts.


def test_labelled_is_a_scan_of_ids_that_have_a_label(quick: Bench, ids: list[str]) -> None:
    """Of the inactive slot; nothing but ids is read."""
    writing = writer(quick.store)
    writing.write(ids[:4], {"a": 1})
    writing.write(ids[4:], {"b": 1})
    found = list(quick.store.scan("toys", writeback.labelled(LATER)))
    assert [one for block in found for one in block.ids] == ids[:4]
    assert all(not payload for block in found for payload in block.payloads)


def test_slots_to_write_are_both_before_the_first_run() -> None:
    """Afterwards only the slot that readers do not follow."""
    assert writeback.written_slots(FIRST) == ("a", "b")
    assert writeback.written_slots(LATER) == ("a",)
    assert writeback.written_slots(State("x", Pointer(active_run="r"))) == ("b",)


def test_replaced_are_points_that_came_in_after_the_newest_time_read() -> None:
    """Where a time is missing nothing can be said, and no point counts as replaced."""
    read: list[Payload] = [{"ingested_at": 3.0}, {"ingested_at": 7}, {"ingested_at": 5.0}]
    assert writeback.replaced_since(read) == (Range(ARRIVED, gt=7),)
    assert writeback.replaced_since([{"ingested_at": 3.0}, {}]) == ()
    assert writeback.replaced_since([{"ingested_at": "3.0"}]) == ()
    assert writeback.replaced_since([]) == ()


def test_slot_labels_tell_empty_slots_from_noise() -> None:
    """UNASSIGNED is where there is nothing: no slot, no clustering, no integer."""
    payloads: list[Payload] = [
        {"clusters": {"default": {"a": 3, "b": 4}}},
        {"clusters": {"default": {"a": NOISE}}},
        {"clusters": {"default": {"b": 4}}},
        {"clusters": {"other": {"a": 4}}},
        {"clusters": {"default": {"a": "3"}}},
        {},
    ]
    found = writeback.slot_labels(payloads, "default", "a")
    assert found.dtype == np.int32
    assert found.tolist() == [3, NOISE, *[UNASSIGNED] * 4]


def test_rows_by_label_are_grouped_in_their_order() -> None:
    """Each label once, ascending, with its rows among those that were named."""
    groups = writeback.by_label(labels(5, 2, 5, NOISE, 2, 5), np.array([5, 0, 3, 4, 2]))
    assert [(label, rows.tolist()) for label, rows in groups] == [
        (NOISE, [3]),
        (2, [4]),
        (5, [5, 0, 2]),
    ]
    assert list(writeback.by_label(labels(1, 2), np.zeros(0, np.int64))) == []


def test_written_joins_and_brings_labels_up_to_date() -> None:
    """Counts add up; a later writing takes what points lost and gives what they gained."""
    first = Written(2, Counter({0: 3, 1: 1}), Counter({0: 2}), Counter({7: 1}))
    second = Written(1, Counter({1: 4}), Counter({1: 1}), Counter({7: 2, 0: 1}))
    assert first.join(second) is first
    assert first == Written(3, Counter({0: 3, 1: 5}), Counter({0: 2, 1: 1}), Counter({7: 3, 0: 1}))
    later = Written(4, gained=Counter({2: 2, 1: 1}), lost=Counter({0: 3, 1: 2, 9: 1}))
    assert first.labels_after(later) == {1: 4, 2: 2}
    assert first.labels == {0: 3, 1: 5}


def test_label_of_a_slot_that_is_empty_is_empty(quick: Bench, ids: list[str]) -> None:
    """What a filter finds empty, the labels call unassigned."""
    writer(quick.store).write(ids[:4], {"a": NOISE})
    empty = quick.store.scan(
        "toys", replace(writeback.labelled(LATER), where=Filter((Empty(LATER.inactive_field),)))
    )
    assert [one for block in empty for one in block.ids] == ids[4:]
