"""How many shards of the embedded engine are open, and what they take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge

from shoal.errors import StoreUnavailable, TooManyCollections
from shoal.store import Point, Store, StoreConfig, VectorInfo, open_store, point_id
from shoal.store.edge_open import OpenShards
from shoal.store.edge_shard import Shard

TINY = VectorInfo("tiny", 8, "ab" * 32)


@pytest.fixture
def root(quick_path: Path) -> Path:
    return quick_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """A store of four collections, all closed."""
    with open_store(StoreConfig(path=root)) as made:
        for name in "abcd":
            made.create_collection(name, [TINY])
    with open_store(StoreConfig(path=root)) as opened:
        yield opened


def point(key: str) -> Point:
    return Point(point_id(key), {"tiny": np.eye(8, dtype=np.float32)[0]}, {"key": key})


def engine(store: Store):  # noqa: ANN201 - the embedded one, which the store's type does not tell
    return store._session._backend.engine


def names_open(store: Store) -> set[str]:
    """The collections whose shards are open, without their companions."""
    shards = engine(store)._shards
    return {name for name, each in shards.items() if each.engine is not None and "--" not in name}


def bound(store: Store, most: int) -> None:
    engine(store)._open = OpenShards(most=most)


def test_collection_is_opened_by_its_first_call(store: Store) -> None:
    """Starting opens none, and neither does listing them."""
    assert [each.name for each in store.collections()] == ["a", "b", "c", "d"]
    assert names_open(store) == set()
    assert store.count("b") == 0
    assert names_open(store) == {"b"}


def test_shard_that_was_used_longest_ago_is_closed(store: Store) -> None:
    """The number of open ones is bounded; a closed one is opened again, with all that is in it."""
    bound(store, 2)
    for name in "abac":
        store.upsert(name, [point(name)])
    assert names_open(store) == {"a", "c"}
    store.upsert("d", [point("d")])
    assert names_open(store) == {"c", "d"}
    assert [store.count(name) for name in "abcd"] == [1, 1, 1, 1]
    assert len(names_open(store)) == 2


def test_shard_in_use_is_not_closed(store: Store) -> None:
    """A call in another thread goes on; nobody waits for it."""
    bound(store, 1)
    store.count("a")
    holding, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with engine(store)._shards["a"].lock:
            holding.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(30)
    try:
        assert store.count("b") == 0
        assert names_open(store) == {"a", "b"}
    finally:
        leave.set()
        thread.join()
    assert store.count("c") == 0
    assert names_open(store) == {"c"}


class Busy:
    """A collection's lock that another thread holds until ``leave`` is set."""

    def __init__(self) -> None:
        self.wanted, self.leave, self.in_time = threading.Event(), threading.Event(), list[bool]()

    def __enter__(self) -> None:
        self.wanted.set()
        self.in_time.append(self.leave.wait(20))

    def __exit__(self, *_: object) -> None:
        pass


def test_busy_collection_holds_nobody_else_up(store: Store) -> None:
    """While one is checked or written out, others are used, made and dropped; all are listed."""
    busy = Busy()
    engine(store)._shards["a"].lock = busy
    dropper = threading.Thread(target=engine(store).delete_collection, args=("a",))
    dropper.start()
    assert busy.wanted.wait(20)
    try:
        assert [each.name for each in store.collections()] == ["a", "b", "c", "d"]
        assert store.collection("b").name == "b"
        store.create_collection("e", [TINY])
        store.drop_collection("d")
    finally:
        busy.leave.set()
        dropper.join()
    assert set(busy.in_time) == {True}
    assert [each.name for each in store.collections()] == ["b", "c", "e"]


def test_idle_shard_is_closed_at_a_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten minutes without a call, by the clock that does not jump."""
    now = time.monotonic()
    store.upsert("a", [point("a")])
    monkeypatch.setattr(time, "monotonic", lambda: now + 500.0)
    store.count("b")
    monkeypatch.setattr(time, "monotonic", lambda: now + 590.0)
    store.flush()
    assert names_open(store) == {"a", "b"}
    monkeypatch.setattr(time, "monotonic", lambda: now + 700.0)
    store.flush()
    assert names_open(store) == {"b"}
    assert store.count("a") == 1


def test_refusal_of_the_system_closes_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread, map or file that the system refuses may be had once other shards are closed."""
    store.count("a")
    load = edge.EdgeShard.load

    class Scarce:
        """An engine that opens one shard at a time."""

        @staticmethod
        def load(*how: object) -> object:
            if names_open(store):
                msg = "Resource temporarily unavailable"
                raise Exception(msg)  # noqa: TRY002 - as the engine does
            return load(*how)

    monkeypatch.setattr("shoal.store.edge_shard.edge.EdgeShard", Scarce)
    assert store.count("b") == 0
    assert names_open(store) == {"b"}
    engine(store)._shards["b"].lock.acquire()
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            store.count("c")
        except StoreUnavailable as exc:
            outcome.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    engine(store)._shards["b"].lock.release()
    assert "Resource temporarily unavailable" in str(outcome[0])


def test_shard_that_cannot_be_written_out_is_closed_all_the_same(
    store: Store, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has its writes; the failure is reported, and the next opening checks its indexes."""
    store.upsert("a", [point("a")])
    shard: Shard = engine(store)._shards["a"]
    whole = shard.engine

    class Failing:
        """An engine that cannot flush."""

        def flush(self) -> None:
            raise Exception("disk")  # noqa: TRY002 - as the engine does

        def close(self) -> None:
            assert whole is not None
            whole.close()

    shard.engine = Failing()  # type: ignore[assignment]
    engine(store)._open.close_idle(-1.0)
    assert "not written out" in caplog.text
    assert (root / "collections" / "a" / "unwritten").exists()
    assert store.count("a") == 1


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_shard_takes_few_threads(store: Store, root: Path) -> None:
    """One thread, not one for each core; also a shard that an earlier version made."""
    store.close()
    shard = root / "collections" / "a" / "shard"
    vectors = {"tiny": edge.EdgeVectorParams(size=8, distance=edge.Distance.Cosine)}
    for each in (shard, shard.with_name("new")):
        each.mkdir(exist_ok=True)
    made = edge.EdgeShard.create(str(shard.with_name("new")), edge.EdgeConfig(vectors=vectors))
    made.close()
    shard.rename(shard.with_name("old"))
    shard.with_name("new").rename(shard)
    with open_store(StoreConfig(path=root)) as again:
        again.count("c")  # the engine's first shard brings threads of the process
        before = threads()
        assert again.count("b") == 0
        assert threads() - before <= 2
        before = threads()
        assert again.count("a") == 0
        assert threads() - before <= 2
        again.upsert("a", [point("a")])
    with open_store(StoreConfig(path=root)) as again:
        assert again.count("a") == 1


def test_collections_past_the_limit_are_refused(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number; those that are there go on working, and so does the next start."""
    monkeypatch.setattr("shoal.store.edge.MOST_COLLECTIONS", 5)
    store.create_collection("e", [TINY])
    with pytest.raises(
        TooManyCollections, match="'f' cannot be made: expected at most 5"
    ) as caught:
        store.create_collection("f", [TINY])
    assert caught.value.metadata == {"limit": "5"}
    store.create_collection("e", [TINY])
    monkeypatch.setattr("shoal.store.edge.MOST_COLLECTIONS", 2)
    store.close()
    with open_store(StoreConfig(path=root)) as again:
        assert [again.count(name) for name in "abcde"] == [0] * 5
        again.drop_collection("e")
        assert len(again.collections()) == 4
