"""The store's points as the ingest sees them: asked for and written one by one, batched below.

Owns the threads that wait for the store, and the batching of its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from embedder import metrics
from embedder.flow.batching import Batcher, Portion
from shoal.errors import NotFound
from shoal.store import (
    Collection,
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    Record,
    Store,
    VectorInfo,
)

PORTION: Final[Portion[Any]] = Portion(256, spread=False)
"""The most points of one call to the store. 256 points of 1280-d are 1.3 MB, and hold up an engine
that does one thing at a time for a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A change of a point's top-level payload fields; its vectors and clusters stay.

    It does nothing to a point whose content is not ``content_hash`` by then.
    """

    id: str
    content_hash: str
    fields: Payload
    removed: tuple[str, ...]


_Lookup: TypeAlias = tuple[str, str]
"""A collection, and the id of a point in it."""

_Change: TypeAlias = tuple[str, Point | Patch]
"""A collection, and a point to make or to replace in it, or the change of one."""


class Points:
    """Asynchronous, batched access to a store."""

    def __init__(self, store: Store, *, workers: int) -> None:
        """Prepares; ``start`` begins. As many lookups as ``workers`` run at once, and writes."""
        self._store = store
        # Lookups have threads of their own: behind slow writes they would hold up the model.
        self._reading = ThreadPoolExecutor(workers, "shoal-lookup")
        self._writing = ThreadPoolExecutor(workers, "shoal-write")
        self._lookups: Batcher[_Lookup, Record | None] = Batcher(
            self._read,
            name="lookup",
            workers=workers,
            portion=PORTION,
            watch=metrics.queue("lookup"),
        )
        self._writes: Batcher[_Change, None] = Batcher(
            self._write,
            name="write",
            workers=workers,
            portion=PORTION,
            watch=metrics.queue("write"),
        )

    def start(self) -> None:
        """Starts the workers, as tasks of the running loop."""
        self._lookups.start()
        self._writes.start()

    async def close(self) -> None:
        """Finishes the calls that wait, then ends the threads. The store stays open."""
        try:
            await asyncio.gather(self._lookups.close(), self._writes.close())
        finally:
            self._reading.shutdown(wait=False, cancel_futures=True)
            self._writing.shutdown(wait=False, cancel_futures=True)

    async def collection(self, name: str) -> Collection | None:
        """The collection, or None if there is no such collection."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reading, self._store.collection, name)
        except NotFound:
            return None

    async def create_collection(self, name: str, vectors: Sequence[VectorInfo]) -> Collection:
        """The collection, which is made if it is missing.

        Raises:
            EncoderMismatch: the collection was made with another encoder.
            Unsupported: the collection has some of ``vectors``, and lacks others.
        """
        loop = asyncio.get_running_loop()
        create = self._store.create_collection
        return await loop.run_in_executor(self._writing, create, name, vectors)

    async def reachable(self) -> None:
        """Asks the store for its collections; StoreUnavailable if it does not answer."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reading, self._store.collections)

    async def find(self, collection: str, point_id: str) -> Record | None:
        """The point's payload, or None if there is no such point."""
        return await self._lookups.submit((collection, point_id))

    async def write(self, collection: str, change: Point | Patch) -> None:
        """Makes a change; when this returns, the change survives a crash of the process.

        When it is cancelled, it still waits for the end of the change: the caller holds the
        point's turn, and a later change must come later.
        """
        writing = asyncio.ensure_future(self._writes.submit((collection, change)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()  # nobody is left to tell
            raise

    async def _read(self, batch: Sequence[_Lookup]) -> list[Record | Exception | None]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, self._read_now, batch)

    def _read_now(self, batch: Sequence[_Lookup]) -> list[Record | Exception | None]:
        ids: dict[str, list[str]] = {}
        for name, point_id in batch:
            ids.setdefault(name, []).append(point_id)
        found = {
            (name, point_id): record
            for name, wanted in ids.items()
            for point_id, record in zip(wanted, self._store.retrieve(name, wanted), strict=True)
        }
        return [found[lookup] for lookup in batch]

    async def _write(self, batch: Sequence[_Change]) -> list[Exception | None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._write_now, batch)
        return [None] * len(batch)

    def _write_now(self, batch: Sequence[_Change]) -> None:
        """Makes all changes. If one fails, the batcher repeats each alone: none counts twice."""
        points: dict[str, list[Point]] = {}
        for name, change in batch:
            if isinstance(change, Point):
                points.setdefault(name, []).append(change)
            else:
                self._patch(name, change)
        for name, made in points.items():
            self._store.upsert(name, made)

    def _patch(self, name: str, patch: Patch) -> None:
        same = Filter(must=(IdIn([patch.id]), Equals("content_hash", patch.content_hash)))
        if patch.fields:
            self._store.set_payload(name, patch.fields, where=same)
        if patch.removed:
            self._store.delete_fields(name, patch.removed, where=same)
