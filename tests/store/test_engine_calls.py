"""What the store asks of an engine, where the answers of small collections could not tell."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient, models
from stand_in import start_stand_in

from shoal.channels import channel_options
from shoal.errors import NotFound, StoreUnavailable
from shoal.store import (
    EVERYWHERE,
    Equals,
    Filter,
    Point,
    Query,
    Store,
    StoreConfig,
    VectorInfo,
    engines,
    open_store,
    point_id,
    records_name,
)

TINY = VectorInfo("tiny", 8, "ab" * 32)
ROWS = np.eye(8, dtype=np.float32)


@pytest.fixture
def store() -> Iterator[Store]:
    """A store in memory with one collection."""
    with open_store(StoreConfig(in_memory=True)) as opened:
        opened.create_collection("photos", [TINY])
        yield opened


def points(count: int) -> list[Point]:
    return [Point(point_id(f"{i}"), {"tiny": ROWS[i % 8]}, {"n": i}) for i in range(count)]


@pytest.fixture
def spy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """Gives the keyword arguments of all calls of one of the engine's methods."""
    engine = store._session._backend.engine

    def watch(name: str) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        method = getattr(engine, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append({**kwargs, "args": args})
            return method(*args, **kwargs)

        monkeypatch.setattr(engine, name, call)
        return calls

    return watch


@pytest.mark.parametrize("exact", [True, False])
def test_search_is_exact_if_it_was_asked_for(store: Store, spy: Any, *, exact: bool) -> None:
    """On a small collection an index would find the same: the request has to say it."""
    calls = spy("query_points")
    store.search("photos", Query(ROWS[0], exact=exact))
    assert [call["search_params"].exact for call in calls] == [exact]


def test_writes_wait_and_keep_their_order(store: Store, spy: Any) -> None:
    """Each write is applied when the call returns; conditional ones go through a shard's leader."""
    calls = [spy(name) for name in ("set_payload", "delete_payload", "delete")]
    upserts = spy("upsert")
    store.upsert("photos", points(1))
    store.set_payload("photos", {"x": 1}, where=EVERYWHERE)
    store.delete_fields("photos", ["x"], where=EVERYWHERE)
    store.delete("photos", EVERYWHERE)
    assert [call["wait"] for call in upserts] == [True]
    made = [call for each in calls for call in each]
    assert [call["wait"] for call in made] == [True] * 3
    assert [call["ordering"] for call in made] == [models.WriteOrdering.STRONG] * 3


def test_counts_are_exact(store: Store, spy: Any) -> None:
    """Of points and of values."""
    counts, facets = spy("count"), spy("facet")
    store.count("photos")
    store.facet("photos", "source")
    assert [call["exact"] for call in (*counts, *facets)] == [True, True]


@pytest.mark.parametrize("name", ["set_payload", "delete_fields"])
def test_change_of_nothing_asks_the_engine_for_nothing(store: Store, spy: Any, name: str) -> None:
    """No fields, no call; a malformed condition is refused all the same."""
    calls = spy("set_payload"), spy("delete_payload")
    change = getattr(store, name)
    change("photos", {} if name == "set_payload" else [], where=EVERYWHERE)
    assert calls == ([], [])


@pytest.mark.parametrize("count", [1, 128, 129, 300])
def test_points_are_written_in_chunks(store: Store, spy: Any, count: int) -> None:
    """A chunk at a time, so that other calls come in between: all of them, none twice."""
    calls = spy("upsert")
    store.upsert("photos", points(count))
    sizes = [len(call["args"][1]) for call in calls]
    assert sizes == [128] * (count // 128) + ([count % 128] if count % 128 else [])
    assert store.count("photos") == count


@pytest.mark.parametrize("count", [0, 512, 513, 1100])
def test_points_are_read_in_chunks(store: Store, spy: Any, count: int) -> None:
    """In the order asked for, over several calls."""
    store.upsert("photos", points(count))
    calls = spy("retrieve")
    ids = [point_id(f"{i}") for i in reversed(range(count))]
    found = store.retrieve("photos", ids)
    assert [record and record.id for record in found] == ids
    assert [len(call["args"][1]) for call in calls] == [512] * (count // 512) + (
        [count % 512] if count % 512 else []
    )


def test_vectors_are_read_only_if_asked_for(store: Store, spy: Any) -> None:
    """They are most of a point."""
    calls = spy("retrieve")
    store.retrieve("photos", [point_id("1")])
    store.retrieve("photos", [point_id("1")], vectors=["tiny"])
    assert [call["with_vectors"] for call in calls] == [False, ["tiny"]]


def test_point_deleted_while_a_page_ends_among_ties_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a page is read in two steps; what has gone in between is no hit."""
    copies = [Point(point_id(f"{i}"), {"tiny": ROWS[0]}, {"n": i}) for i in range(20)]
    store.upsert("photos", copies)
    engine, gone = store._session._backend.engine, min(point.id for point in copies)
    retrieve = engine.retrieve

    def late(name: str, ids: list[str], **options: Any) -> Any:
        engine.delete(name, models.Filter(must=[models.HasIdCondition(has_id=[gone])]))
        return retrieve(name, ids, **options)

    monkeypatch.setattr(engine, "retrieve", late)
    hits = store.search("photos", Query(ROWS[0], limit=5))
    assert [hit.id for hit in hits] == sorted(point.id for point in copies)[1:5]


# What another process does meanwhile


@pytest.fixture
def pair(store: Store) -> tuple[Store, Store]:
    """Two stores over one engine, as two processes have them over one server."""
    return store, Store(store._session._backend)


def test_clustering_of_another_process_can_be_counted_at_once(pair: tuple[Store, Store]) -> None:
    """Its slots are looked up when they are not known, and not only when time has passed."""
    ours, theirs = pair
    assert ours.count("photos") == 0
    theirs.ensure_clustering("photos", "colour")
    assert ours.facet("photos", "clusters.colour.a") == {}


def test_collection_of_another_process_is_believed_for_seconds(
    pair: tuple[Store, Store], spy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is read again: dropped and made anew, it may have other vectors."""
    ours, theirs = pair
    now = [time.monotonic()]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("shoal.store.catalogue.time", clock)
    ours.collection("photos")
    reads = spy("get_collection")
    now[0] += 4.9
    assert ours.count("photos") == 0
    assert reads == []
    theirs.drop_collection("photos")
    theirs.create_collection("photos", [VectorInfo("tiny", 4, "cd" * 32)])
    small = Point(point_id("a"), {"tiny": ROWS[0][:4]}, {})
    now[0] += 0.2
    ours.upsert("photos", [small])
    assert ours.count("photos") == 1


def test_collection_that_was_dropped_is_forgotten(pair: tuple[Store, Store]) -> None:
    """Once it was found to be gone, its name means nothing until it is made again."""
    ours, theirs = pair
    assert ours.count("photos") == 0
    theirs.drop_collection("photos")
    with pytest.raises(NotFound):
        ours.collection("photos")
    theirs.create_collection("photos", [VectorInfo("other", 8, "cd" * 32)])
    ours.upsert("photos", [Point(point_id("a"), {"other": ROWS[0]}, {})])
    assert ours.count("photos") == 1


def test_collection_dropped_while_all_are_listed_is_left_out(
    pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list has those that are still there when they are looked at."""
    ours, theirs = pair
    theirs.create_collection("others", [TINY])
    engine = ours._session._backend.engine
    listed = engine.get_collections()
    theirs.drop_collection("others")
    monkeypatch.setattr(engine, "get_collections", lambda: listed)
    assert [collection.name for collection in ours.collections()] == ["photos"]


def test_drop_that_was_cut_short_can_be_repeated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection goes last: as long as it is there, its name can be dropped."""
    engine = store._session._backend.engine
    delete = engine.delete_collection

    def once(name: str) -> Any:
        delete(name)
        monkeypatch.setattr(engine, "delete_collection", delete)
        raise StoreUnavailable("cut short")

    monkeypatch.setattr(engine, "delete_collection", once)
    with pytest.raises(StoreUnavailable):
        store.drop_collection("photos")
    store.drop_collection("photos")
    for name in ("photos", records_name("photos")):
        with pytest.raises(NotFound):
            store.count(name)


# How an engine is opened and locked


class Guard:
    """A lock that says whether it is held."""

    held = False

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


class Locked:
    """An engine that notes whether its guard is held during each call."""

    def __init__(self, engine: Any, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard
        self.calls: list[tuple[str, bool]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, self._guard.held))
            return getattr(self._engine, name)(*args, **kwargs)

        return call

    def get_collection(self, name: str) -> Any:
        """The description, with the index that an earlier version made until it is dropped."""
        self.calls.append(("get_collection", self._guard.held))
        dropped = any(call == "delete_payload_index" for call, _ in self.calls)
        info = self._engine.get_collection(name)
        return SimpleNamespace(config=info.config, payload_schema={} if dropped else {"fence": 1})


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
def test_guard_is_held_during_every_call_of_the_engine() -> None:
    """An engine that is not thread-safe is called by one thread at a time; the lock is let go."""
    guard = Guard()
    engine = Locked(engines.open_memory().engine, guard)
    with Store(engines.Backend("memory", engine, guard)) as store:  # type: ignore[arg-type]
        store.create_collection("photos", [TINY])
        store.upsert("photos", points(3))
        store.retrieve("photos", [point_id("1")])
        for _ in store.scan("photos"):
            assert not guard.held
        store.search("photos", Query(ROWS[0], limit=1))
        store.count("photos")
        store.facet("photos", "source")
        store.set_payload("photos", {"x": 1}, where=EVERYWHERE)
        store.set_payload("photos--records", {"x": 1}, where=Filter((Equals("fence", 1),)))
        store.delete_fields("photos", ["x"], where=EVERYWHERE)
        store.delete("photos", EVERYWHERE)
        store.collections()
        store.drop_collection("photos")
    assert {name for name, _ in engine.calls} == {
        name for name in vars(engines.Engine) if not name.startswith("_")
    }
    assert [name for name, held in engine.calls if not held] == []


def test_engine_in_memory_has_a_lock() -> None:
    """One that its thread may take again: an operation calls another."""
    with (guard := engines.open_memory().guard), guard:
        pass
    assert isinstance(guard, type(threading.RLock()))


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_server_is_opened_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points over gRPC, a whole number of seconds, and no probing in the background."""
    made: list[dict[str, Any]] = []

    class Client:
        def __init__(self, **options: Any) -> None:
            made.append(options)

    monkeypatch.setattr(engines, "QdrantClient", Client)
    url = "http://qdrant:6333"
    for config in (
        StoreConfig(url=url, grpc_port=7, timeout_s=2.1, api_key=SecretStr("hush")),
        StoreConfig(url=url, timeout_s=3.0, via_proxy=True),
    ):
        backend = engines.open_server(config)
        assert backend.kind == "server"
    common = {"url": url, "prefer_grpc": True, "check_compatibility": False, "trust_env": False}
    direct, proxied = channel_options(), channel_options(via_proxy=True)
    assert made == [
        {**common, "grpc_port": 7, "timeout": 3, "api_key": "hush", "grpc_options": direct},
        {**common, "grpc_port": 6334, "timeout": 3, "api_key": None, "grpc_options": proxied},
    ]


def test_channel_of_a_server_has_the_options_that_all_channels_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They arrive at gRPC, whatever lies between: the server is found again within 2 s."""
    made: list[dict[str, Any]] = []
    opening = grpc.insecure_channel

    def noting(target: str, options: Any, compression: Any) -> grpc.Channel:
        made.append(dict(options))
        return opening(target, options, compression)

    monkeypatch.setattr(grpc, "insecure_channel", noting)
    config = StoreConfig(url="http://127.0.0.1:1", grpc_port=1)
    with open_store(config) as opened, pytest.raises(StoreUnavailable):
        opened.collections()
    assert made
    for options in made:
        assert channel_options().items() <= options.items()


def test_server_that_comes_back_answers_on_the_same_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a restart on its port, with what it had before; no proxy comes in between."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    kept = QdrantClient(location=":memory:")
    first, port = start_stand_in(client=kept)
    with open_store(StoreConfig(url="http://127.0.0.1:1", grpc_port=port)) as opened:
        opened.create_collection("photos", [TINY])
        first.stop(None).wait()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                opened.count("photos")
        second, _ = start_stand_in(port=port, client=kept)
        found: list[int] = []
        while not found:
            with contextlib.suppress(StoreUnavailable):
                found.append(opened.count("photos"))
        second.stop(None).wait()
    assert found == [0]


def test_store_is_closed_at_the_end_of_its_block() -> None:
    """Also if the block raises."""
    with pytest.raises(ZeroDivisionError), open_store(StoreConfig(in_memory=True)) as opened:
        raise ZeroDivisionError
    with pytest.raises(StoreUnavailable, match="closed"):
        opened.collections()


@pytest.mark.parametrize(
    ("version", "warned"),
    [("1.18.3", True), ("0.11.0", True), ("1.19.0", False), ("1.20.1-dev", False), ("2.0", False)],
)
def test_server_that_is_too_old_is_told_once(
    caplog: pytest.LogCaptureFixture, version: str, *, warned: bool
) -> None:
    """At the first call that it answers, in one warning with its version and the one to have."""
    server, port = start_stand_in(version=version)
    try:
        config = StoreConfig(url="http://127.0.0.1:1", grpc_port=port, timeout_s=20)
        with open_store(config) as opened:
            assert opened.collections() == []
            assert opened.collections() == []
    finally:
        server.stop(None).wait()
    said = [r.message for r in caplog.records if r.name == "shoal.store.session"]
    assert len(said) == warned
    if warned:
        assert f"the Qdrant server has version {version}: upgrade to 1.19 or later" in said[0]


def test_server_that_does_not_tell_its_version_is_used_all_the_same(store: Store) -> None:
    """The answer that the caller waits for has come by then."""

    def unknown() -> str:
        raise ValueError("no version")

    backend = store._session._backend
    with Store(replace(backend, advice=unknown)) as other:
        assert [each.name for each in other.collections()] == ["photos"]
