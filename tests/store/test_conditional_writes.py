from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal.store import Equals, Filter, IdIn, Point, Range, point_id, records_name

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
