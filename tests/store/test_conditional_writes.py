from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from qdrant_client import models
from quick_disk import quick_directory

from shoal.errors import InvalidArgument
from shoal.store import (
    Empty,
    Equals,
    Filter,
    IdIn,
    Point,
    Range,
    StoreConfig,
    VectorInfo,
    arrival,
    open_store,
    point_id,
    records_name,
)
from shoal.store.model import ARRIVED, Condition
from shoal.store.schema import indexes

if TYPE_CHECKING:
    from tests.store.conftest import Room


def test_of_two_conditional_writers_exactly_one_wins(room: Room) -> None:
    """The condition and the write are one step: writers that race leave one winner's values."""
    name, lease = records_name(room.name), point_id("lease")
    writers = 4
    barrier = threading.Barrier(writers, timeout=20)

    def take(writer: int, fence: int) -> None:
        barrier.wait()
        room.store.set_payload(
            name,
            {"owner": writer, "fence": fence + 1, "proof": [writer, fence]},
            where=Filter((IdIn([lease]), Equals("fence", fence))),
        )

    room.store.upsert(name, [Point(lease, {}, {"fence": 0})])
    with ThreadPoolExecutor(writers) as pool:
        for fence in range(15):
            list(pool.map(take, range(writers), [fence] * writers))
            (record,) = room.store.retrieve(name, [lease])
            assert record is not None
            owner = record.payload["owner"]
            assert record.payload == {"owner": owner, "fence": fence + 1, "proof": [owner, fence]}


def test_conditional_write_loses_to_a_change(room: Room) -> None:
    """A condition that no longer holds leaves the point as it is."""
    (i,) = room.fill([{"state": "a", "n": 1}])
    for value in ("b", "c"):
        room.store.set_payload(
            room.name, {"state": value, "n": 2}, where=Filter((IdIn([i]), Equals("n", 1)))
        )
    assert room.state() == {i: {"state": "b", "n": 2}}


def test_conditional_write_on_booleans_and_times(room: Room) -> None:
    """A lease's own condition, a flag and an expiry, works as a compare-and-set."""
    (i,) = room.fill([{"held": True, "expires": 1_700_000_000.25}])
    early = Filter((Equals("held", value=True), Range("expires", lt=1_700_000_000.25)))
    late = Filter((Equals("held", value=True), Range("expires", lt=1_700_000_000.5)))
    room.store.set_payload(room.name, {"held": False}, where=early)
    assert room.state()[i]["held"] is True
    room.store.set_payload(room.name, {"held": False}, where=late)
    assert room.state()[i]["held"] is False


def test_writers_and_readers_share_a_store(room: Room) -> None:
    """Threads may use one store at once: every write lands, every read is whole."""
    ids = room.fill([{"pair": [0, 0]} for _ in range(40)])
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not stop.is_set():
            for payload in room.state().values():
                pair = payload["pair"]
                if pair[0] != pair[1]:
                    torn.append(pair)

    def write(start: int) -> None:
        for step in range(1, 11):
            for i in ids[start::4]:
                room.store.set_payload(
                    room.name, {"pair": [step, step]}, where=Filter((IdIn([i]),))
                )

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
    finally:
        stop.set()
        reader.join(timeout=20)
    assert not torn
    assert all(payload == {"pair": [10, 10]} for payload in room.state().values())


@pytest.mark.parametrize(
    "condition",
    [
        Equals("source", "trip"),
        Range("ingested_at", lte=5),
        Empty("clusters.default.a"),
        Equals("clusters.default.b", 1),
    ],
)
@pytest.mark.parametrize("place", ["must", "should", "must_not"])
def test_write_is_refused_whose_condition_has_an_index(
    room: Room, condition: Condition, place: str
) -> None:
    """A crash could undo it: engines apply the condition again, with an index that is ahead."""
    (i,) = room.fill([{"n": 1, "source": "trip", **arrival(1)}])
    before = room.state()
    where = Filter(**{"must": (IdIn([i]),), place: (condition,)})
    expected = rf"'{room.name}': expected .* without a payload index, got {condition.field}: a"
    with pytest.raises(InvalidArgument, match=expected):
        room.store.set_payload(room.name, {"n": 2}, where=where)
    with pytest.raises(InvalidArgument, match=expected):
        room.store.delete_fields(room.name, ["n"], where=where)
    assert room.state() == before


def test_condition_on_the_arrival_replaces_the_indexed_time(room: Room) -> None:
    """``ingested_at`` has an index for scans; its copy among the clusters has none for writes."""
    old, new = room.fill([arrival(10.5), arrival(20.25)])
    where = Filter((IdIn([old, new]),), must_not=(Range(ARRIVED, gt=10.5),))
    room.store.set_payload(room.name, {"a": 3}, where=where, key="clusters.default")
    holds = {i: "default" in payload["clusters"] for i, payload in room.state().items()}  # type: ignore[operator]
    assert holds == {old: True, new: False}
    assert "ingested_at" in indexes(room.name, ["default"])
    assert ARRIVED not in indexes(room.name, ["default"])


def test_index_that_an_earlier_version_made_is_dropped_before_the_first_write() -> None:
    """Records had indexes on the fields of leases; those on other fields stay."""
    with (
        quick_directory() as path,
        open_store(StoreConfig(path=path / "store")) as store,
    ):
        store.create_collection("photos", [VectorInfo("tiny", 8, "ab" * 32)])
        records = records_name("photos")
        engine = store._session._backend.engine
        kept = set(engine.get_collection(records).payload_schema)
        for field in ("fence", "lease_owner", "lease_expires"):
            engine.create_payload_index(
                records, field, field_schema=models.PayloadSchemaType.KEYWORD, wait=True
            )
        store._catalogue.get(records)
        store.upsert(records, [Point(point_id("x"), {}, {"fence": 0})])
        assert set(engine.get_collection(records).payload_schema) > kept
        where = Filter((IdIn([point_id("x")]), Equals("fence", 0)))
        store.set_payload(records, {"fence": 1}, where=where)
        assert set(engine.get_collection(records).payload_schema) == kept
        (record,) = store.retrieve(records, [point_id("x")])
        assert record is not None
        assert record.payload == {"fence": 1}


def test_index_that_somebody_made_by_hand_is_told() -> None:
    """Shoal drops no index that it did not make."""
    with (
        quick_directory() as path,
        open_store(StoreConfig(path=path / "store")) as store,
    ):
        store.create_collection("photos", [VectorInfo("tiny", 8, "ab" * 32)])
        engine = store._session._backend.engine
        engine.create_payload_index(
            "photos", "content_hash", field_schema=models.PayloadSchemaType.KEYWORD, wait=True
        )
        store._catalogue.get("photos")
        where = Filter((IdIn([point_id("x")]), Equals("content_hash", "0")))
        with pytest.raises(InvalidArgument, match=r"got content_hash: .* drop the index"):
            store.set_payload("photos", {"n": 1}, where=where)
        assert "content_hash" in engine.get_collection("photos").payload_schema


def test_deletion_is_of_ids_whatever_selects_them(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter is read first: an engine that repeats a filter could delete other points."""
    ids = room.fill([{"n": i, "source": "odd" if i % 2 else "even"} for i in range(6)])
    sent: list[list[str]] = []
    engine = room.store._session._backend.engine
    delete = engine.delete
    monkeypatch.setattr(
        engine,
        "delete",
        lambda name, which, **rest: (sent.append(which), delete(name, which, **rest)),
    )
    room.store.delete(room.name, Filter((Equals("source", "odd"),), must_not=(Equals("n", 3),)))
    assert sorted(room.state()) == sorted([ids[0], ids[2], ids[3], ids[4]])
    room.store.delete(room.name, Filter((IdIn([ids[0], point_id("nowhere")]),)))
    assert sorted(room.state()) == sorted([ids[2], ids[3], ids[4]])
    assert [sorted(each) for each in sent] == [
        sorted([ids[1], ids[5]]),
        sorted([ids[0], point_id("nowhere")]),
    ]
