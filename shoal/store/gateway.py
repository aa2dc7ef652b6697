"""The store: one set of operations over three engines, and the only way to the vectors.

Knows collections, points, filters and searches; knows nothing of clusterings beyond the payload
fields that they use, of encoders beyond their fingerprints, or of gRPC.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, overload

from qdrant_client import models
from qdrant_client.conversions.common_types import PointId

from shoal.errors import InvalidArgument, Unsupported
from shoal.store import points as convert
from shoal.store import schema
from shoal.store.catalogue import Catalogue
from shoal.store.engines import Backend, EngineRecord, WithFields
from shoal.store.filters import to_filter
from shoal.store.model import (
    EVERYWHERE,
    MAX_BLOCK_SIZE,
    Block,
    Collection,
    Filter,
    Hit,
    IdIn,
    Payload,
    Point,
    Query,
    Record,
    Scan,
    VectorBlock,
    VectorScan,
    canonical_id,
    records_name,
)
from shoal.store.patience import Patience
from shoal.store.payloads import clean_payload, json_path
from shoal.store.search import nearest
from shoal.store.session import Session
from shoal.values import VectorInfo

__all__ = ["Query", "Scan", "Store", "records_name"]

_UPSERT_CHUNK = 128
"""Points per write: at 1280-d the embedded engine holds the GIL for about 15 ms."""

_RETRIEVE_CHUNK = 512
_FACET_LIMIT = 1024

# A conditional write is a compare-and-set: on a cluster it must go through the shard's leader.
_ORDERING = models.WriteOrdering.STRONG


@dataclass(frozen=True, slots=True)
class _ScrollRequest:
    """A checked ``Scan`` in the engine's words."""

    where: models.Filter
    start: str | None
    fields: WithFields
    limit: int


class Store:
    """An open vector store. Thread-safe; every method may block on disk or network.

    Each method takes the name of a collection, or of its companion (``records_name``), whose
    points may have no vectors. Every method may raise, besides the errors that it names:

    * NotFound: the collection does not exist;
    * Conflict: Shoal did not make the collection;
    * InvalidArgument: an argument is malformed; nothing was written;
    * StoreUnavailable, Overloaded: the engine failed, or the store is closed;
    * DiskFull: the embedded store's disk has no room, neither for writes nor, if the store was not
      closed cleanly or lies in memory, for opening the collection.
    """

    def __init__(self, backend: Backend) -> None:
        self._session = Session(backend)
        self._catalogue = Catalogue(self._session)

    def patient(self, patience: Patience) -> Store:
        """This store, whose calls are made again while the server is away, as ``patience`` says.

        It is closed with this one. Only a server comes back: any other store is its own.
        """
        if self.kind != "server":
            return self
        other = copy.copy(self)
        other._session = self._session.patient(patience)  # noqa: SLF001 - another of this class
        other._catalogue = Catalogue(other._session)  # noqa: SLF001 - as above
        return other

    @property
    def kind(self) -> str:
        """``"embedded"``, ``"server"`` or ``"memory"``."""
        return self._session.kind

    @property
    def refusal(self) -> str:
        """Why writes are refused, as far as was seen last: a full disk; empty if they are not."""
        return self._session.refusal

    def __enter__(self) -> Self:
        """This store, closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the store."""
        self.close()

    # Collections

    def create_collection(self, name: str, vectors: Sequence[VectorInfo]) -> Collection:
        """The collection ``name`` with ``vectors``, made with its companion if it is not there.

        Idempotent; also completes a creation that was cut short.

        Raises:
            EncoderMismatch: it exists, with vectors of another encoder.
            Unsupported: it exists, and lacks some of ``vectors``.
        """
        return self._catalogue.create(name, vectors)

    def ensure_clustering(self, name: str, clustering: str) -> Collection:
        """The collection ``name``, with the slots of ``clustering`` indexed. Idempotent."""
        return self._catalogue.ensure_clustering(name, clustering)

    def collection(self, name: str) -> Collection:
        """The collection called ``name``, read afresh; NotFound names those that exist."""
        return self._catalogue.get(name)

    def collections(self) -> list[Collection]:
        """Every collection that Shoal made, by name; companions are not listed."""
        return self._catalogue.list_all()

    def drop_collection(self, name: str) -> None:
        """Deletes the collection and its companion, with everything in them."""
        self._catalogue.drop(name)

    # Points

    def upsert(self, name: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Writes ``points``, each in place of the point that had its id. Idempotent.

        With ``insert_only`` a point whose id is there stays as it is. Of several points with one
        id the last counts.

        All points are checked before the first is written. They are written in chunks: if the
        engine fails between two chunks, the first ones stay; send the points again.
        """
        structs = convert.to_structs(self._catalogue.require(name), points)
        mode = models.UpdateMode.INSERT_ONLY if insert_only else models.UpdateMode.UPSERT
        for start in range(0, len(structs), _UPSERT_CHUNK):
            with self._session.engine(name) as engine:
                engine.upsert(
                    name, structs[start : start + _UPSERT_CHUNK], wait=True, update_mode=mode
                )

    def retrieve(
        self, name: str, ids: Sequence[str], *, vectors: Sequence[str] = ()
    ) -> list[Record | None]:
        """The points with these ids, in this order; None for an id that is not there.

        ``vectors`` names the vectors to read with them; they may be joint ones.
        """
        collection = self._catalogue.require(name)
        asked = [collection.parts(vector) for vector in vectors]
        names = sorted({part.name for parts in asked for part in parts})
        wanted = [canonical_id(i) for i in ids]
        found: dict[str, Record] = {}
        for start in range(0, len(wanted), _RETRIEVE_CHUNK):
            with self._session.engine(name) as engine:
                records = engine.retrieve(
                    name,
                    wanted[start : start + _RETRIEVE_CHUNK],
                    with_payload=True,
                    with_vectors=names or False,
                )
            for record in map(convert.to_record, records):
                found[record.id] = convert.with_vectors(record, asked)
        return [found.get(i) for i in wanted]

    @overload
    def scan(self, name: str, options: VectorScan) -> Iterator[VectorBlock]: ...

    @overload
    def scan(self, name: str, options: Scan | None = None) -> Iterator[Block]: ...

    def scan(self, name: str, options: Scan | None = None) -> Iterator[Block]:
        """Every point that ``options`` select, by id, in blocks that are never empty.

        Points that are there throughout come exactly once, as they are when their block is read;
        points written or deleted meanwhile may or may not come.
        """
        options = options or Scan()
        collection = self._catalogue.require(name)
        if not 1 <= options.block_size <= MAX_BLOCK_SIZE:
            raise InvalidArgument(
                f"block_size: expected 1 to {MAX_BLOCK_SIZE}, got {options.block_size}"
            )
        fields = options.fields
        request = _ScrollRequest(
            where=to_filter(options.where),
            start=None if options.start is None else canonical_id(options.start),
            fields=True if fields is None else [json_path(field) for field in fields] or False,
            limit=options.block_size,
        )
        if isinstance(options, VectorScan):
            names = [part.name for part in collection.parts(options.vector)]
            return self._vector_blocks(name, request, names)
        return self._blocks(name, request)

    def search(self, name: str, query: Query) -> list[Hit]:
        """The points nearest to ``query.vector``, nearest first, ties by id."""
        collection = self._catalogue.require(name)
        spec = convert.check_query(collection, query)
        with self._session.engine(name) as engine:
            return nearest(engine, name, replace(query, vector_name=spec.name))

    def count(self, name: str, where: Filter = EVERYWHERE) -> int:
        """The number of points, exactly."""
        self._catalogue.require(name)
        count_filter = to_filter(where)
        with self._session.engine(name) as engine:
            return engine.count(name, count_filter=count_filter, exact=True).count

    def facet(self, name: str, field: str, where: Filter = EVERYWHERE) -> dict[int | str, int]:
        """The exact number of points that have each value of ``field``.

        Raises:
            Unsupported: the field has no exact-match index.
        """
        kind = self._facet_type(name, field)
        facet_filter, limit = to_filter(where), _FACET_LIMIT
        while True:
            with self._session.engine(name) as engine:
                hits = engine.facet(
                    name, key=json_path(field), facet_filter=facet_filter, limit=limit, exact=True
                ).hits
            if len(hits) < limit:
                # A value that no point has any more is counted 0. No index holds a value of another
                # type than its own.
                return {h.value: h.count for h in hits if h.count and type(h.value) is kind}
            limit *= 8

    def set_payload(
        self, name: str, payload: Payload, *, where: Filter, key: str | None = None
    ) -> None:
        """Merges ``payload`` into the payloads of the points, or into the object at ``key``.

        A top-level field of ``payload`` replaces the field of that name; None removes it. Checking
        the condition and writing are one step: of two writers, each of whose writes ends the
        other's condition, one wins. That no point meets the condition is no error.

        Raises:
            InvalidArgument: the condition looks at a field with a payload index.
        """
        self._catalogue.check_conditions(name, where.fields)
        cleaned = clean_payload(payload)
        path = None if key is None else json_path(key)
        points = to_filter(where)
        if not cleaned:
            return
        with self._session.engine(name) as engine:
            engine.set_payload(
                name, cleaned, points=points, key=path, wait=True, ordering=_ORDERING
            )

    def delete_fields(self, name: str, fields: Sequence[str], *, where: Filter) -> None:
        """Removes ``fields`` (dots reach into objects) from the payloads of the points.

        Raises:
            InvalidArgument: as ``set_payload``.
        """
        self._catalogue.check_conditions(name, where.fields)
        keys = [json_path(field) for field in fields]
        points = to_filter(where)
        if not keys:
            return
        with self._session.engine(name) as engine:
            engine.delete_payload(name, keys, points=points, wait=True, ordering=_ORDERING)

    def delete(self, name: str, where: Filter) -> None:
        """Deletes the points; ``EVERYWHERE`` deletes them all.

        The points are read first and deleted by their ids, a chunk at a time: a deletion by a
        filter could be another one when the engine repeats it after a crash.
        """
        self._catalogue.require(name)
        for ids in self._ids(name, where):
            with self._session.engine(name) as engine:
                engine.delete(name, ids, wait=True, ordering=_ORDERING)

    def version(self, name: str) -> int | None:
        """A number that is another one after each change of the collection ``name``.

        None if the collection does not exist, or where other processes may write to it.
        """
        return self._session.version(name)

    def flush(self) -> None:
        """Makes every acknowledged write safe against a power cut.

        (A process that is killed loses none in any case.)
        """
        self._session.flush()

    def close(self) -> None:
        """Flushes and releases the engine. Idempotent; every later call raises StoreUnavailable."""
        self._session.close()

    def _ids(self, name: str, where: Filter) -> Iterator[list[PointId]]:
        """The ids of the points that ``where`` selects, in chunks; or the ids that it names."""
        match where:
            case Filter(must=(IdIn(ids=ids),), should=(), must_not=()):
                wanted: list[PointId] = [canonical_id(i) for i in ids]
                for start in range(0, len(wanted), MAX_BLOCK_SIZE):
                    yield wanted[start : start + MAX_BLOCK_SIZE]
            case _:
                options = Scan(where=where, fields=(), block_size=MAX_BLOCK_SIZE)
                for block in self.scan(name, options):
                    yield [*block.ids]

    def _facet_type(self, name: str, field: str) -> type[str | int]:
        """The type of ``field``'s indexed values; Unsupported without such an index."""
        collection = self._catalogue.require(name)
        known = schema.facet_fields(name, collection.clusterings)
        if field not in known:  # another process may just have added its clustering
            known = schema.facet_fields(name, self._catalogue.get(name).clusterings)
        if field not in known:
            raise Unsupported(
                f"field {field!r}: expected one of the indexed fields {', '.join(known)}"
            )
        return known[field]

    def _blocks(self, name: str, request: _ScrollRequest) -> Iterator[Block]:
        for records in self._pages(name, request, with_vectors=False):
            if records:
                yield convert.to_block(records)

    def _vector_blocks(
        self, name: str, request: _ScrollRequest, vectors: list[str]
    ) -> Iterator[VectorBlock]:
        for records in self._pages(name, request, with_vectors=vectors):
            block = convert.to_vector_block(records, vectors)
            if len(block):
                yield block

    def _pages(
        self, name: str, request: _ScrollRequest, *, with_vectors: WithFields
    ) -> Iterator[Sequence[EngineRecord]]:
        cursor = request.start
        while True:
            with self._session.engine(name) as engine:
                records, following = engine.scroll(
                    name,
                    scroll_filter=request.where,
                    limit=request.limit,
                    offset=cursor,
                    with_payload=request.fields,
                    with_vectors=with_vectors,
                )
            yield records
            if following is None:
                return
            cursor = str(following)
