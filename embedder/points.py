"""The collection's points as the ingest sees them: asked and written one by one, in batches below.

Owns the threads that wait for the store, and the batching of its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from embedder import metrics
from embedder.flow.batching import Batcher, Portion
from shoal.errors import NotFound
from shoal.store import Collection, Equals, Filter, IdIn, Payload, Point, Record, Store, VectorInfo

PORTION: Final[Portion[Any]] = Portion(256, spread=False)
"""Most points of one call to the store: 256 x 1280-d is 1.3 MB, a few milliseconds of an engine
that lets nothing else run meanwhile."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask for the payload of one point."""

    collection: str
    id: str


@dataclass(frozen=True, slots=True)
class Put:
    """Replace a point, or make it."""

    collection: str
    point: Point


@dataclass(frozen=True, slots=True)
class Patch:
    """Set and remove top-level payload fields of a point; vectors and clusters stay.

    Nothing happens to a point that has other content by then.
    """

    collection: str
    id: str
    content_hash: str
    fields: Payload
    removed: tuple[str, ...]


class Points:
    """Asynchronous, batched access to a store."""

    def __init__(self, store: Store, *, workers: int) -> None:
        """Prepare; ``start`` begins. ``workers`` calls of each kind are under way at once."""
        self._store = store
        # Lookups have threads of their own: behind slow writes they would hold up the model.
        self._reading = ThreadPoolExecutor(workers, "shoal-lookup")
        self._writing = ThreadPoolExecutor(workers, "shoal-write")
        self._lookups: Batcher[Lookup, Record | None] = Batcher(
            self._read,
            name="lookup",
            workers=workers,
            portion=PORTION,
            watch=metrics.queue("lookup"),
        )
        self._writes: Batcher[Put | Patch, None] = Batcher(
            self._write,
            name="write",
            workers=workers,
            portion=PORTION,
            watch=metrics.queue("write"),
        )

    def start(self) -> None:
        """Start the workers, as tasks of the running loop."""
        self._lookups.start()
        self._writes.start()

    async def close(self) -> None:
        """Finish what waits, then end the threads. The store stays open."""
        try:
            await asyncio.gather(self._lookups.close(), self._writes.close())
        finally:
            self._reading.shutdown(wait=False, cancel_futures=True)
            self._writing.shutdown(wait=False, cancel_futures=True)

    async def collection(self, name: str) -> Collection | None:
        """The collection, if it is there."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reading, self._store.collection, name)
        except NotFound:
            return None

    async def create_collection(self, name: str, vectors: Sequence[VectorInfo]) -> Collection:
        """The collection, made if it is not there.

        Raises:
            EncoderMismatch: it was made with another encoder.
            Unsupported: it lacks some of ``vectors``.
        """
        loop = asyncio.get_running_loop()
        create = self._store.create_collection
        return await loop.run_in_executor(self._writing, create, name, vectors)

    async def reachable(self) -> None:
        """Ask the store for anything; StoreUnavailable if it does not answer."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reading, self._store.collections)

    async def find(self, collection: str, point_id: str) -> Record | None:
        """The point's payload, if there is such a point."""
        return await self._lookups.submit(Lookup(collection, point_id))

    async def write(self, change: Put | Patch) -> None:
        """Make a change; when this returns, it survives a crash of the process.

        Cancelled, it returns when the change has ended all the same: the caller holds the point's
        turn, and a later change must come later.
        """
        writing = asyncio.ensure_future(self._writes.submit(change))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()  # nobody is left to tell
            raise

    async def _read(self, batch: Sequence[Lookup]) -> list[Record | Exception | None]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, self._read_now, batch)

    def _read_now(self, batch: Sequence[Lookup]) -> list[Record | Exception | None]:
        ids: dict[str, list[str]] = {}
        for lookup in batch:
            ids.setdefault(lookup.collection, []).append(lookup.id)
        found = {
            (name, point_id): record
            for name, wanted in ids.items()
            for point_id, record in zip(wanted, self._store.retrieve(name, wanted), strict=True)
        }
        return [found[lookup.collection, lookup.id] for lookup in batch]

    async def _write(self, batch: Sequence[Put | Patch]) -> list[Exception | None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._write_now, batch)
        return [None] * len(batch)

    def _write_now(self, batch: Sequence[Put | Patch]) -> None:
        """Write all; if one fails, the batcher repeats each alone, which changes nothing twice."""
        points: dict[str, list[Point]] = {}
        for change in batch:
            match change:
                case Put(name, point):
                    points.setdefault(name, []).append(point)
                case Patch(name, point_id, digest, fields, removed):
                    where = Filter(must=(IdIn([point_id]), Equals("content_hash", digest)))
                    if fields:
                        self._store.set_payload(name, fields, where=where)
                    if removed:
                        self._store.delete_fields(name, removed, where=where)
        for name, made in points.items():
            self._store.upsert(name, made)
