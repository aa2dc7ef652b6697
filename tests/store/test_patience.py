"""Calls that are made again while a server is away: over real gRPC, and with faults thrown in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient
from stand_in import start_stand_in

from shoal.errors import Cancelled, NotFound, Overloaded, ShoalError, StoreUnavailable
from shoal.store import (
    EVERYWHERE,
    Point,
    Query,
    Scan,
    Store,
    StoreConfig,
    VectorInfo,
    engines,
    open_store,
    point_id,
)
from shoal.store.model import Equals, Filter
from shoal.store.patience import REPEATABLE, Patience

TINY = VectorInfo("tiny", 8, "ab" * 32)
ROWS = np.eye(8, dtype=np.float32)


class Place:
    """A server's port and points; the server itself comes and goes."""

    def __init__(self) -> None:
        self._points = QdrantClient(location=":memory:")
        self._server: grpc.Server | None = None
        self.port = 0
        self.come()

    def come(self) -> None:
        if self._server is None:
            self._server, self.port = start_stand_in(port=self.port, client=self._points)

    def go(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.go()


@pytest.fixture(scope="module")
def store(place: Place) -> Iterator[Store]:
    config = StoreConfig(url="http://127.0.0.1:1", grpc_port=place.port)
    with open_store(config) as opened:
        opened.create_collection("photos", [TINY])
        opened.upsert("photos", [point(1), point(2)])
        yield opened


def point(n: int) -> Point:
    return Point(point_id(f"{n}"), {"tiny": ROWS[n]}, {"n": n})


CALLS: dict[str, Callable[[Store], object]] = {
    "collections": lambda store: store.collections(),
    "collection": lambda store: store.collection("photos"),
    "retrieve": lambda store: store.retrieve("photos", [point_id("1")]),
    "scan": lambda store: [block.ids for block in store.scan("photos", Scan(block_size=1))],
    "search": lambda store: store.search("photos", Query(ROWS[1])),
    "count": lambda store: store.count("photos"),
    "facet": lambda store: store.facet("photos", "source"),
    "upsert": lambda store: store.upsert("photos", [point(3)]),
    "set_payload": lambda store: store.set_payload("photos", {"x": 1}, where=EVERYWHERE),
    "delete_fields": lambda store: store.delete_fields("photos", ["n"], where=EVERYWHERE),
    "delete": lambda store: store.delete("photos", Filter((Equals("source", "gone"),))),
    "ensure_clustering": lambda store: store.ensure_clustering("photos", "colour"),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_of_a_server_that_comes_back_succeeds(place: Place, store: Store, call: str) -> None:
    """Every call that may take effect twice is made until the server answers; a caller's is not."""
    place.come()
    waited: list[float] = []

    def wait(_: threading.Event, pause_s: float) -> None:
        waited.append(pause_s)
        place.come()

    place.go()
    with pytest.raises(StoreUnavailable):
        CALLS[call](store)
    assert waited == []
    CALLS[call](store.patient(Patience(20, wait=wait)))
    assert waited


class Faulty:
    """An engine each of whose calls fails with the next of ``errors`` first.

    With ``done_before`` it was done all the same. ``only`` names the one method that fails.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.errors: list[Exception] = []
        self.done_before = False
        self.only = ""
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            failing = self.errors and self.only in ("", name)
            if failing and not self.done_before:
                raise self.errors.pop(0)
            result = getattr(self._engine, name)(*args, **kwargs)
            if failing:
                raise self.errors.pop(0)
            return result

        return call


@pytest.fixture
def faulty() -> Faulty:
    return Faulty(engines.open_memory().engine)


@pytest.fixture
def remote(faulty: Faulty) -> Store:
    """A store over it that passes for a server's."""
    opened = Store(engines.Backend("server", faulty, threading.RLock()))  # type: ignore[arg-type]
    opened.create_collection("photos", [TINY])
    opened.upsert("photos", [point(1)])
    return opened


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def patience(self, limit_s: float = 1e9, **others: Any) -> Patience:
        return Patience(limit_s, monotonic=lambda: self.now, wait=self._wait, **others)

    def _wait(self, _: threading.Event, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s


def away(times: int) -> list[Exception]:
    return [OSError("refused") for _ in range(times)]


def test_pauses_double_up_to_a_second(remote: Store, faulty: Faulty) -> None:
    """So that a server is not pestered, and is used within a second once it is back."""
    clock = Clock()
    faulty.errors = away(7)
    assert remote.patient(clock.patience()).count("photos") == 1
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_server_may_be_away_for_hours(remote: Store, faulty: Faulty) -> None:
    """The pause stays a second, however often it has doubled."""
    clock = Clock()
    faulty.errors = away(1_100)
    assert remote.patient(clock.patience()).count("photos") == 1
    assert set(clock.pauses[4:]) == {1.0}


def test_overloaded_server_is_left_alone_as_long_as_it_asks(remote: Store, faulty: Faulty) -> None:
    """Up to half a minute; a shorter time than the usual pause is no haste."""
    clock = Clock()
    faulty.errors = [Overloaded("full", retry_after_s=s) for s in (7.0, 0.0, 1e6)]
    assert remote.patient(clock.patience()).count("photos") == 1
    assert clock.pauses == [7.0, 0.2, 30.0]


def test_limit_ends_the_waiting_with_what_failed_last(remote: Store, faulty: Faulty) -> None:
    """Counted from the first failure of the call, and anew for the next call."""
    clock = Clock()
    patient = remote.patient(clock.patience(2.0))
    patient.collection("photos")
    clock.now = 100.0
    faulty.errors = away(50)
    with pytest.raises(StoreUnavailable) as caught:
        patient.count("photos")
    assert caught.value.message == "the store was away for 2 s: photos: refused"
    assert clock.now == pytest.approx(102.5)
    faulty.errors = away(3)
    assert patient.count("photos") == 1


@pytest.mark.parametrize("when", ["before", "during"])
def test_waiting_ends_when_nobody_waits_any_more(remote: Store, faulty: Faulty, when: str) -> None:
    """The first try is made all the same."""
    stopped = threading.Event()
    patience = Patience(20, stopped=stopped, wait=lambda event, _: event.set())
    if when == "before":
        stopped.set()
    assert remote.patient(patience).count("photos") == 1
    faulty.errors = away(2)
    with pytest.raises(Cancelled, match="while the store was away"):
        remote.patient(patience).count("photos")
    assert len(faulty.errors) == 1


def test_call_is_made_again_only_when_ready(remote: Store, faulty: Faulty) -> None:
    """Whoever waits says when, and may end it with an error; the limit holds meanwhile."""
    clock = Clock()
    answers = iter([False, False, True])
    faulty.errors = away(1)
    faulty.only = "count"
    assert remote.patient(clock.patience(ready=lambda: next(answers))).count("photos") == 1
    assert (len(clock.pauses), faulty.calls.count("count")) == (3, 2)
    faulty.errors = away(1)
    with pytest.raises(StoreUnavailable, match="away for 3 s"):
        remote.patient(clock.patience(3, ready=lambda: False)).count("photos")

    def refuse() -> bool:
        raise NotFound("no more")

    faulty.errors = away(1)
    with pytest.raises(NotFound):
        remote.patient(clock.patience(ready=refuse)).count("photos")


@pytest.mark.parametrize(
    "error", [ValueError("Wrong input: x"), ValueError("Collection x not found")]
)
def test_mistake_is_not_repeated(remote: Store, faulty: Faulty, error: Exception) -> None:
    """Only what may succeed later is."""
    clock = Clock()
    faulty.errors = [error]
    with pytest.raises(ShoalError):
        remote.patient(clock.patience()).count("photos")
    assert clock.pauses == []


CHANGES: dict[str, Callable[[Store], object]] = {
    "create_collection": lambda store: store.create_collection("others", [TINY]),
    "delete_collection": lambda store: store.drop_collection("photos"),
}


@pytest.mark.parametrize("method", CHANGES)
def test_collection_is_made_and_dropped_once(remote: Store, faulty: Faulty, method: str) -> None:
    """Repeated, it would fail on what the first try did: the caller looks what there is."""
    patient = remote.patient(Clock().patience())
    faulty.done_before, faulty.only, faulty.errors = True, method, away(1)
    made = faulty.calls.count(method)
    with pytest.raises(StoreUnavailable, match="refused"):
        CHANGES[method](patient)
    assert faulty.calls.count(method) == made + 1


def test_every_other_method_of_an_engine_is_repeated() -> None:
    """A new one is thought about, and listed or not."""
    methods = {name for name in vars(engines.Engine) if not name.startswith("_")}
    once = {"create_collection", "delete_collection", "delete_payload_index", "close"}
    assert methods - REPEATABLE == once
    assert methods >= REPEATABLE


def test_conditional_write_whose_answer_was_lost_counts_once(remote: Store, faulty: Faulty) -> None:
    """The second try finds the condition gone, and another's write in between is kept."""
    patient = remote.patient(Clock().patience())
    where = Filter((Equals("n", 1),))
    faulty.done_before, faulty.errors = True, away(1)
    patient.count("photos")
    faulty.errors = away(1)
    patient.set_payload("photos", {"n": 2, "winner": "ours"}, where=where)
    assert faulty.calls[-2:] == ["set_payload"] * 2
    faulty.errors = []
    (found,) = remote.retrieve("photos", [point_id("1")])
    assert found is not None
    assert found.payload == {"n": 2, "winner": "ours"}


def test_patient_store_is_closed_with_the_store(remote: Store) -> None:
    """Whatever it waits for, it does not outlive the store that it was made of."""
    patient = remote.patient(Clock().patience())
    remote.close()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        patient.count("photos")


def test_engine_in_this_process_does_not_come_back() -> None:
    """A store in memory, or embedded, is its own patient one: its failures are told at once."""
    with open_store(StoreConfig(in_memory=True)) as opened:
        assert opened.patient(Patience(20)) is opened
