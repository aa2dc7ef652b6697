"""The store's points, asked for and written one by one, batched below. A real store in memory."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from embedder.ingest.points import PORTION, Patch, Points
from shoal.errors import EncoderMismatch, InvalidArgument, ServiceUnavailable, StoreUnavailable
from shoal.store import Point, Store, StoreConfig, VectorInfo, open_store

pytestmark = pytest.mark.timeout(60)

SPEC = VectorInfo("colours", 3, "f" * 64)
IDS = [str(uuid.UUID(int=number)) for number in range(8)]


class Watched:
    """A store that remembers its calls, and whose writes wait when they are told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.writing = threading.Event()
        self.may_write = threading.Event()
        self.may_write.set()

    def retrieve(self, name: str, ids: list[str]) -> Any:
        self._remember("retrieve", name, list(ids))
        return self._store.retrieve(name, ids)

    def upsert(self, name: str, points: list[Point]) -> None:
        self.writing.set()
        assert self.may_write.wait(30)
        self._remember("upsert", name, [point.id for point in points])
        self._store.upsert(name, points)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _remember(self, *call: Any) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name.rpartition("_")[0])


@asynccontextmanager
async def points_of(*collections: str, workers: int = 1) -> AsyncIterator[tuple[Points, Watched]]:
    with open_store(StoreConfig(in_memory=True)) as store:
        watched = Watched(store)
        points = Points(watched, workers=workers)  # type: ignore[arg-type]
        points.start()
        for collection in collections:
            await points.create_collection(collection, [SPEC])
        try:
            yield points, watched
        finally:
            watched.may_write.set()
            await points.close()


def point(number: int, **payload: Any) -> Point:
    return Point(IDS[number], {"colours": np.array([1, 0, 0], np.float32)}, payload)


def test_points_of_several_collections_are_written_and_found_together() -> None:
    """One call for each collection of a batch; each caller gets its own record, or None."""

    async def scenario() -> None:
        async with points_of("red", "blue") as (points, store):
            changes = [("red", 0), ("blue", 0), ("red", 1), ("blue", 2)]
            await asyncio.gather(*(points.write(name, point(n, n=name)) for name, n in changes))
            asked = [*changes, ("blue", 1), ("red", 0)]
            records = await asyncio.gather(*(points.find(name, IDS[n]) for name, n in asked))
        found = [record and (record.id, record.payload) for record in records]
        assert found == [
            *((IDS[number], {"n": name}) for name, number in changes),
            None,
            (IDS[0], {"n": "red"}),
        ]
        assert store.calls == [
            ("upsert", "red", [IDS[0], IDS[1]]),
            ("upsert", "blue", [IDS[0], IDS[2]]),
            ("retrieve", "red", [IDS[0], IDS[1], IDS[0]]),
            ("retrieve", "blue", [IDS[0], IDS[2], IDS[1]]),
        ]
        assert store.threads == {"shoal-lookup", "shoal-write"}

    asyncio.run(scenario())


def test_patch_changes_only_points_of_its_content() -> None:
    """Fields are set and removed; vector, clusters and all else stay; other content is left."""

    async def scenario() -> None:
        async with points_of("red") as (points, store):
            first = {"content_hash": "x", "a": 1, "b": 2, "c": 3, "clusters": {"d": {"a": 1}}}
            for number, digest in ((0, "x"), (1, "x"), (2, "y")):
                payload = {**first, "content_hash": digest}
                await points.write("red", point(number, **payload))
            patch = {"a": 5, "e": [6]}
            await points.write("red", Patch(IDS[0], "x", patch, ("b",)))
            await points.write("red", Patch(IDS[2], "x", patch, ("b",)))
            await points.write("red", Patch(IDS[3], "x", patch, ("b",)))
            found = await asyncio.gather(*(points.find("red", IDS[n]) for n in range(4)))
            (record,) = store.retrieve("red", [IDS[0]])
            assert record is not None
            assert [each and each.payload for each in found] == [
                {"content_hash": "x", "a": 5, "c": 3, "e": [6], "clusters": {"d": {"a": 1}}},
                first,
                {**first, "content_hash": "y"},
                None,
            ]
            await points.write("red", Patch(IDS[1], "x", {"a": 7}, ()))
            await points.write("red", Patch(IDS[1], "x", {}, ("c",)))
            changed = await points.find("red", IDS[1])
            assert changed is not None
            assert changed.payload == {
                "content_hash": "x",
                "a": 7,
                "b": 2,
                "clusters": {"d": {"a": 1}},
            }

    asyncio.run(scenario())


def test_a_change_that_the_store_refuses_fails_alone() -> None:
    """The others of its batch are written all the same."""

    async def scenario() -> None:
        async with points_of("red") as (points, store):
            bad = Point(IDS[1], {"colours": np.array([1, 1, 1], np.float32)}, {})
            answers = await asyncio.gather(
                *(points.write("red", each) for each in (point(0), bad, point(2))),
                return_exceptions=True,
            )
            assert [type(answer) for answer in answers] == [type(None), InvalidArgument, type(None)]
            assert store.count("red") == 2

    asyncio.run(scenario())


def test_a_change_is_under_way_until_it_has_ended() -> None:
    """A caller that is cancelled waits for it: its point's turn must not go to a later change."""

    async def scenario() -> None:
        async with points_of("red") as (points, store):
            store.may_write.clear()
            writing = asyncio.create_task(points.write("red", point(0)))
            assert await asyncio.to_thread(store.writing.wait, 30)
            writing.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not writing.done()
            store.may_write.set()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert store.calls == [("upsert", "red", [IDS[0]])]

    asyncio.run(scenario())


@pytest.mark.filterwarnings("error")
def test_a_change_that_fails_after_its_caller_has_gone_is_not_reported() -> None:
    """The error has nobody to go to: the loop does not complain that it was never fetched."""
    complaints: list[Any] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        async with points_of("red") as (points, store):
            store.may_write.clear()
            bad = Point(IDS[1], {"colours": np.array([1, 1, 1], np.float32)}, {})
            writing = asyncio.create_task(points.write("red", bad))
            assert await asyncio.to_thread(store.writing.wait, 30)
            writing.cancel()
            store.may_write.set()
            with pytest.raises(asyncio.CancelledError):
                await writing

    asyncio.run(scenario())
    assert complaints == []


def test_lookups_do_not_wait_for_writes() -> None:
    """They have threads of their own: a slow write does not hold up the model."""

    async def scenario() -> None:
        async with points_of("red", workers=1) as (points, store):
            store.may_write.clear()
            writing = asyncio.create_task(points.write("red", point(0)))
            assert await asyncio.to_thread(store.writing.wait, 30)
            assert await points.find("red", IDS[0]) is None
            assert await points.collection("red") is not None
            await points.reachable()
            store.may_write.set()
            await writing
            assert await points.find("red", IDS[0]) is not None

    asyncio.run(scenario())


def test_a_collection_is_made_once_and_found_after_that() -> None:
    """None before; the same again; another encoder of its name is refused."""

    async def scenario() -> None:
        async with points_of() as (points, store):
            assert await points.collection("red") is None
            made = await points.create_collection("red", [SPEC])
            assert made == await points.collection("red") == store.collection("red")
            assert await points.create_collection("red", [SPEC]) == made
            with pytest.raises(EncoderMismatch):
                await points.create_collection("red", [VectorInfo("colours", 3, "0" * 64)])

    asyncio.run(scenario())


def test_closed_points_take_nothing_new() -> None:
    """Lookups and changes are refused, each by its name; the store stays open; threads end."""

    async def scenario() -> None:
        async with points_of("red") as (points, store):
            writing = asyncio.create_task(points.write("red", point(0)))
            await asyncio.sleep(0)
            await points.close()
            assert writing.done()
            with pytest.raises(ServiceUnavailable, match=r"^lookup: shutting down"):
                await points.find("red", IDS[0])
            with pytest.raises(ServiceUnavailable, match=r"^write: shutting down"):
                await points.write("red", point(1))
            assert store.count("red") == 1

    asyncio.run(scenario())
    for thread in threading.enumerate():
        if thread.name.startswith(("shoal-lookup", "shoal-write")):
            thread.join(10)
            assert not thread.is_alive()


def test_a_store_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness asks it for its collections; any answer will do."""

    def away() -> None:
        raise StoreUnavailable("away")

    async def scenario() -> None:
        async with points_of() as (points, store):
            await points.reachable()
            monkeypatch.setattr(store._store, "collections", away)
            with pytest.raises(StoreUnavailable):
                await points.reachable()

    asyncio.run(scenario())


def test_metrics_tell_of_lookups_and_writes() -> None:
    """Their batches, and how long each waited."""

    def counts() -> list[float]:
        return [
            REGISTRY.get_sample_value(f"shoal_embedder_{name}", {"stage": stage}) or 0.0
            for stage in ("lookup", "write")
            for name in ("batch_items_count", "batch_items_sum", "queue_seconds_count")
        ]

    async def scenario() -> None:
        async with points_of("red") as (points, _):
            await asyncio.gather(*(points.write("red", point(number)) for number in range(3)))
            await asyncio.gather(*(points.find("red", IDS[number]) for number in range(5)))

    before = counts()
    asyncio.run(scenario())
    grown = [after - start for after, start in zip(counts(), before, strict=True)]
    assert grown == [1, 5, 5, 1, 3, 3]


def test_one_call_to_the_store_is_bounded() -> None:
    """256 points of 1280-d are 1.3 MB; and no worker leaves some for another."""
    assert (PORTION.items, PORTION.spread) == (256, False)
