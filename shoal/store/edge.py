"""The embedded engine: ``QdrantClient``'s methods over qdrant-edge shards in a directory.

There is one shard per collection, which is opened when it is first used. The engine holds the GIL
during each call, and a shard that was closed cannot be called, so each shard has a lock that is
held for a whole method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any

import qdrant_edge as edge
from qdrant_client import models
from qdrant_client.conversions.common_types import PointId
from qdrant_client.http.models import QueryResponse

from shoal.errors import Conflict, NotFound, StoreUnavailable, TooManyCollections
from shoal.ownership import mark, read_mark
from shoal.store import edge_files as files
from shoal.store import edge_models as convert
from shoal.store.edge_open import OpenShards
from shoal.store.edge_shard import Shard
from shoal.store.edge_space import Space
from shoal.store.engines import Backend, IndexSchema, WithFields
from shoal.store.model import is_records_name, records_name
from shoal.vectors import Vectors

_Op = edge.UpdateOperation

MOST_COLLECTIONS = 1_000
"""The most collections of an embedded store. Only those in use are open; each takes half a
megabyte of disk when it is empty, and its metadata is read at the start."""


@dataclass(frozen=True, slots=True)
class _Info:
    """The answer of ``get_collection``. Only the second half of it opens the shard."""

    config: SimpleNamespace
    read_schema: Callable[[], Mapping[str, object]]

    @property
    def payload_schema(self) -> Mapping[str, object]:
        """The payload indexes by field."""
        return self.read_schema()


def open_embedded(root: Path, *, least_free: int) -> Backend:
    """The embedded engine on the directory ``root``, which this process now owns.

    It refuses writes while less than ``least_free`` bytes are free there.

    Raises:
        StoreLocked: another process owns it.
        ConfigError: the directory cannot be used.
        OperatorError: a collection's files are damaged.
    """
    engine = EdgeEngine(root, least_free=least_free)
    return Backend(
        "embedded",
        engine,
        nullcontext(),
        engine.flush,
        refusal=lambda: engine.refusal,
        version=engine.version,
    )


class EdgeEngine:
    """The methods of ``QdrantClient`` that the gateway uses, on shards under one directory."""

    def __init__(self, root: Path, *, least_free: int) -> None:
        self._root = root
        self._lock = RLock()
        self._shards: dict[str, Shard] = {}
        self._open = OpenShards()
        self._closed = False
        self._lock_file = files.take_lock(root)
        try:
            earlier = read_mark(root) is None  # an earlier version's: it noted nothing
            self._id = mark(root)
            self._space = Space(root, owner=self._id, least_free=least_free)
            for directory in files.collection_dirs(root, owner=self._id):
                metadata = files.read_metadata(directory)
                self._shards[directory.name] = Shard(directory, metadata, self._space)
                if earlier:
                    files.note_unwritten(directory)
        except BaseException:
            self.close()
            raise

    @property
    def refusal(self) -> str:
        """Why writes are refused; empty if they are not."""
        return self._space.refusal

    def version(self, name: str) -> int | None:
        """The version of the collection ``name``, which is not opened; None if it is not there."""
        with self._lock:
            entry = self._shards.get(name)
        return None if entry is None else entry.version

    def close(self) -> None:
        """Flushes and closes every shard, then gives up the directory. Idempotent."""
        with self._lock:
            self._closed = True
            shards = list(self._shards.values())
            self._shards.clear()
        with ExitStack() as last_first:  # one that fails does not stop the others
            last_first.callback(self._lock_file.close)
            for shard in shards:
                last_first.callback(shard.close)

    def flush(self) -> None:
        """Writes everything acknowledged to disk, and closes the shards that nobody uses."""
        with self._lock:
            names = list(self._shards)
        self._space.watch()
        for name in names:
            with suppress(NotFound), self._entry(name) as entry:  # one may have been dropped
                entry.flush()
        self._open.close_idle()

    def get_collections(self) -> models.CollectionsResponse:
        """Every collection."""
        with self._lock:
            self._check_open()
            rows = [models.CollectionDescription(name=name) for name in self._shards]
        return models.CollectionsResponse(collections=rows)

    def get_collection(self, collection_name: str) -> _Info:
        """Metadata and payload indexes. The former are told while the collection is busy, too."""
        config = SimpleNamespace(metadata=dict(self._found(collection_name).metadata))
        return _Info(config, lambda: self._payload_schema(collection_name))

    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, models.VectorParams],
        metadata: dict[str, Any],
    ) -> None:
        """Makes a collection; it exists once its directory has its name."""
        with self._lock:
            self._check_open()
            if collection_name in self._shards:
                raise Conflict(f"collection {collection_name!r} already exists")
            self._check_number(collection_name)
            self._space.check_write()
            directory = files.collection_dir(self._root, collection_name)
            with files.new_collection(directory, owner=self._id) as fresh:
                shard = fresh / "shard"
                shard.mkdir()
                # The engine keeps the paths of its files: it is opened again where they end up.
                edge.EdgeShard.create(str(shard), convert.to_config(vectors_config)).close()
                files.write_metadata(fresh, metadata)
            self._shards[collection_name] = Shard(directory, metadata, self._space)

    def update_collection(self, collection_name: str, *, metadata: dict[str, Any]) -> None:
        """Merges ``metadata``, top-level key by key."""
        with self._entry(collection_name) as entry:
            self._space.check_write()
            merged = {**entry.metadata, **metadata}
            entry.note_change()
            files.write_metadata(entry.directory, merged)
            entry.metadata = merged

    def delete_collection(self, collection_name: str) -> None:
        """Drops a collection and its files."""
        # In this order: while the collection is busy, the others are not held up.
        with self._entry(collection_name) as entry, self._lock:
            self._check_open()
            del self._shards[collection_name]
            entry.dropped = True
            entry.close(flush=False)
            files.remove_collection(entry.directory, owner=self._id)

    def create_payload_index(
        self, collection_name: str, field_name: str, *, field_schema: IndexSchema, wait: bool = True
    ) -> None:
        """Indexes a payload field."""
        del wait  # applied when the call returns
        self._write(
            collection_name, _Op.create_field_index(field_name, convert.to_index(field_schema))
        )

    def delete_payload_index(
        self, collection_name: str, field_name: str, *, wait: bool = True
    ) -> None:
        """Drops the index of a payload field."""
        del wait  # applied when the call returns
        self._write(collection_name, _Op.delete_field_index(field_name))

    def upsert(
        self,
        collection_name: str,
        points: list[models.PointStruct],
        *,
        wait: bool = True,
        update_mode: models.UpdateMode = models.UpdateMode.UPSERT,
    ) -> None:
        """Writes whole points."""
        del wait  # applied when the call returns
        operation = _Op.upsert_points(
            [convert.to_point(point) for point in points],
            update_mode=convert.to_update_mode(update_mode),
        )
        self._write(collection_name, operation, points=len(points))

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        *,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> list[convert.EdgeRecord]:
        """The points with these ids."""
        with self._shard(collection_name) as shard:
            records = shard.retrieve(list(ids), with_payload, with_vectors)
        return [convert.to_record(record) for record in records]

    def scroll(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        *,
        scroll_filter: models.Filter,
        limit: int,
        offset: PointId | None,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> tuple[list[convert.EdgeRecord], PointId | None]:
        """Up to ``limit`` points from ``offset`` on, by id, and the next id."""
        request = edge.ScrollRequest(
            offset=None if offset is None else str(offset),
            limit=limit,
            filter=convert.to_filter(scroll_filter),
            with_payload=with_payload,
            with_vector=with_vectors,
        )
        with self._shard(collection_name) as shard:
            records, following = shard.scroll(request)
        return (
            [convert.to_record(record) for record in records],
            None if following is None else str(following),
        )

    def query_points(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        *,
        query: Vectors,
        using: str,
        query_filter: models.Filter,
        search_params: models.SearchParams,
        limit: int,
        with_payload: WithFields,
        with_vectors: WithFields,
    ) -> QueryResponse:
        """The nearest points."""
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(query.tolist(), using=using),
            filter=convert.to_filter(query_filter),
            params=edge.SearchParams(exact=bool(search_params.exact)),
            with_payload=with_payload,
            with_vector=with_vectors,
        )
        with self._shard(collection_name) as shard:
            points = shard.query(request)
        return QueryResponse.model_construct(points=[convert.to_scored(point) for point in points])

    def count(
        self, collection_name: str, *, count_filter: models.Filter, exact: bool = True
    ) -> models.CountResult:
        """The number of points."""
        request = edge.CountRequest(exact=exact, filter=convert.to_filter(count_filter))
        with self._shard(collection_name) as shard:
            return models.CountResult(count=shard.count(request))

    def facet(
        self,
        collection_name: str,
        *,
        key: str,
        facet_filter: models.Filter,
        limit: int,
        exact: bool,
    ) -> models.FacetResponse:
        """The most frequent values of an indexed field."""
        request = edge.FacetRequest(
            key, limit=limit, exact=exact, filter=convert.to_filter(facet_filter)
        )
        with self._shard(collection_name) as shard:
            hits = shard.facet(request).hits
        return models.FacetResponse(
            hits=[
                models.FacetValueHit(value=convert.decode(hit.value), count=hit.count)
                for hit in hits
            ]
        )

    def set_payload(  # noqa: PLR0913 - QdrantClient's signature
        self,
        collection_name: str,
        payload: dict[str, Any],
        *,
        points: models.Filter,
        key: str | None = None,
        wait: bool = True,
        ordering: models.WriteOrdering = models.WriteOrdering.STRONG,
    ) -> None:
        """Merges ``payload`` into that of the points, in one engine call."""
        del wait, ordering  # applied, in order, when the call returns
        where = convert.to_filter(points) or edge.Filter()
        operation = _Op.set_payload_by_filter(where, convert.encode(payload), key)
        self._write(collection_name, operation)

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        *,
        points: models.Filter,
        wait: bool = True,
        ordering: models.WriteOrdering = models.WriteOrdering.STRONG,
    ) -> None:
        """Removes payload fields of the points."""
        del wait, ordering  # applied, in order, when the call returns
        where = convert.to_filter(points) or edge.Filter()
        self._write(collection_name, _Op.delete_payload_by_filter(where, list(keys)))

    def delete(
        self,
        collection_name: str,
        points_selector: list[PointId],
        *,
        wait: bool = True,
        ordering: models.WriteOrdering = models.WriteOrdering.STRONG,
    ) -> None:
        """Deletes the points with these ids."""
        del wait, ordering  # applied, in order, when the call returns
        self._write(collection_name, _Op.delete_points([str(i) for i in points_selector]))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store at {self._root} is closed")

    def _found(self, name: str) -> Shard:
        """The collection ``name``, which another thread may use, close or drop at any time."""
        with self._lock:
            self._check_open()
            entry = self._shards.get(name)
        if entry is None:
            raise NotFound(f"collection {name!r} does not exist")
        return entry

    @contextmanager
    def _entry(self, name: str) -> Iterator[Shard]:
        """The collection ``name``, locked.

        No deadlock: nobody waits for a collection's lock while holding ``self._lock``.
        """
        entry = self._found(name)
        with entry.lock:
            self._check_open()  # closing, and dropping, may have come in between
            if entry.dropped:
                raise NotFound(f"collection {name!r} was dropped")
            yield entry

    @contextmanager
    def _shard(self, name: str) -> Iterator[edge.EdgeShard]:
        """The open shard of the collection ``name``, locked."""
        with self._entry(name) as entry:
            yield self._open.live(entry)

    def _check_number(self, name: str) -> None:
        """TooManyCollections if there is no room for one more, called ``name``."""
        number = sum(is_records_name(each) == is_records_name(name) for each in self._shards)
        if number >= MOST_COLLECTIONS:
            msg = (
                f"collection {name.removesuffix(records_name(''))!r} cannot be made: expected at "
                f"most {MOST_COLLECTIONS:,} collections in an embedded store, got one more; drop "
                "some, or use a Qdrant server"
            )
            raise TooManyCollections(msg, limit=str(MOST_COLLECTIONS))

    def _payload_schema(self, name: str) -> Mapping[str, object]:
        with self._shard(name) as shard:
            found: Mapping[str, object] = shard.info().payload_schema
            return found

    def _write(
        self, name: str, operation: edge.UpdateOperation, *, points: int | None = None
    ) -> None:
        """Applies ``operation`` to ``name``: ``points`` whole points, or None for one by filter."""
        with self._entry(name) as entry:
            self._space.check_write(entry.directory)
            self._open.live(entry)
            entry.write(operation, points)
