"""The collections of a store: made, found, indexed, dropped.

A collection has a companion with the same vectors, for its records. What a collection is made of
is noted in the engine's metadata (``schema``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import Conflict, InvalidArgument, NotFound
from shoal.store import schema
from shoal.store.engines import CollectionInfo
from shoal.store.model import (
    DEFAULT_CLUSTERING,
    Collection,
    check_clustering_name,
    check_collection_name,
    is_records_name,
    records_name,
)
from shoal.store.session import Session
from shoal.values import VectorInfo

_TRUSTED_S = 5.0
"""How long a collection is assumed not to change: another process may drop it and make another."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A collection as it was read at ``read_at``; ``indexed`` are its fields with an index."""

    read_at: float
    collection: Collection
    indexed: frozenset[str]


class Catalogue:
    """The collections of a store. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, _Known] = {}

    def create(self, name: str, vectors: Sequence[VectorInfo]) -> Collection:
        """The collection ``name`` with ``vectors``, made with its companion if it is not there.

        Idempotent; also completes a creation that was cut short.

        Raises:
            EncoderMismatch: it exists, with vectors of another encoder.
            Unsupported: it exists, and lacks some of ``vectors``.
        """
        check_collection_name(name)
        schema.check_vectors(vectors)
        info = self._look(name)
        if info is not None:
            existing = schema.parse_metadata(name, info.config.metadata)
        else:
            # The companion comes first: whoever sees the collection can rely on it.
            self._ensure_companion(records_name(name), vectors)
            existing = self._make(name, vectors)
        self._ensure_companion(records_name(name), existing.vectors)
        schema.check_same_vectors(existing, vectors)
        return self.ensure_clustering(name, DEFAULT_CLUSTERING)

    def ensure_clustering(self, name: str, clustering: str) -> Collection:
        """The collection ``name``, with the slots of ``clustering`` indexed. Idempotent."""
        check_collection_name(name)
        clustering = check_clustering_name(clustering)
        info = self._info(name)
        collection = schema.parse_metadata(name, info.config.metadata)
        self._index(name, info, (*collection.clusterings, clustering))
        if clustering not in collection.clusterings:
            with self._session.engine(name) as engine:
                engine.update_collection(name, metadata=schema.clustering_metadata(clustering))
        return self.get(name)

    def get(self, name: str) -> Collection:
        """The collection called ``name``; NotFound names those that exist."""
        return self._read(name).collection

    def require(self, name: str) -> Collection:
        """The collection ``name`` as it was read within the last ``_TRUSTED_S`` seconds."""
        return self._recent(name).collection

    def check_conditions(self, name: str, fields: frozenset[str]) -> None:
        """Refuses a write to ``name`` whose condition looks at a field that has a payload index.

        Engines note such a write as its filter, and apply the filter again when they start after a
        crash. The index may be ahead of the payload by then, and the write would be lost
        (qdrant#9424; servers note the points instead from 1.19 on, qdrant#9678).

        Indexes of records that an earlier version made are dropped.

        Raises:
            InvalidArgument: a field has an index.
        """
        indexed = self._recent(name).indexed
        if is_records_name(name) and fields & indexed & schema.RETIRED_INDEXES:
            for field in sorted(indexed & schema.RETIRED_INDEXES):
                with self._session.engine(name) as engine:
                    engine.delete_payload_index(name, field, wait=True)
            indexed = self._read(name).indexed
        if fields & indexed:
            got = ", ".join(sorted(fields & indexed))
            msg = (
                f"collection {name!r}: expected the condition of a write on fields without a "
                f"payload index, got {got}: a crash could undo the write. "
                "Write to ids, or drop the index"
            )
            raise InvalidArgument(msg, field="where")

    def list_all(self) -> list[Collection]:
        """Every collection that Shoal made, by name; companions are not listed."""
        with self._session.engine("collections") as engine:
            names = sorted(row.name for row in engine.get_collections().collections)
        found: list[Collection] = []
        for name in names:
            if is_records_name(name):
                continue
            try:
                noted = self._info(name).config.metadata
            except NotFound:  # dropped since it was listed
                continue
            if schema.is_ours(noted):
                found.append(schema.parse_metadata(name, noted))
        return found

    def drop(self, name: str) -> None:
        """Deletes the collection and its companion, with everything in them."""
        check_collection_name(name)
        self.get(name)
        # The collection goes last, so that a drop that was cut short can be repeated.
        for each in (records_name(name), name):
            self._known.pop(each, None)
            if self._look(each) is not None:
                with self._session.engine(each) as engine:
                    engine.delete_collection(each)

    def _read(self, name: str) -> _Known:
        """The collection called ``name``, read now."""
        shown = check_collection_name(name.removesuffix(records_name("")))
        try:
            info = self._info(name)
            collection = schema.parse_metadata(name, info.config.metadata)
        except NotFound as exc:
            self._known.pop(name, None)
            known = ", ".join(other.name for other in self.list_all()) or "none"
            raise NotFound(
                f"collection {shown!r} does not exist; existing: {known}", collection=shown
            ) from exc
        # The in-memory engine tells no indexes: those that the collection should have count too.
        indexed = {*info.payload_schema, *schema.indexes(name, collection.clusterings)}
        read = _Known(time.monotonic(), collection, frozenset(indexed))
        self._known[name] = read
        return read

    def _recent(self, name: str) -> _Known:
        """The collection called ``name``, read within the last ``_TRUSTED_S`` seconds."""
        known = self._known.get(name)
        if known is None or time.monotonic() - known.read_at > _TRUSTED_S:
            return self._read(name)
        return known

    def _info(self, name: str) -> CollectionInfo:
        with self._session.engine(f"collection {name!r}") as engine:
            return engine.get_collection(name)

    def _look(self, name: str) -> CollectionInfo | None:
        """The engine's description of ``name``; None if it does not exist."""
        try:
            return self._info(name)
        except NotFound:
            return None

    def _make(self, name: str, vectors: Sequence[VectorInfo]) -> Collection:
        """The new collection ``name``, or the one that another process has just made."""
        noted = schema.metadata(vectors, time.time())
        try:
            with self._session.engine(f"collection {name!r}") as engine:
                engine.create_collection(
                    name, vectors_config=schema.vectors_config(vectors), metadata=noted
                )
        except (Conflict, InvalidArgument):
            info = self._look(name)
            if info is None:
                raise
            return schema.parse_metadata(name, info.config.metadata)
        return schema.parse_metadata(name, noted)

    def _ensure_companion(self, name: str, vectors: Sequence[VectorInfo]) -> None:
        """Makes the companion ``name`` with its indexes.

        A companion with other vectors is debris: its creation was cut short or lost a race.
        """
        info = self._look(name)
        if info is not None:
            found = schema.parse_metadata(name, info.config.metadata)
            if found.vectors == tuple(vectors):
                self._index(name, info, ())
                return
            self._known.pop(name, None)
            with self._session.engine(name) as engine:
                engine.delete_collection(name)
        self._make(name, vectors)
        self._index(name, self._info(name), ())

    def _index(self, name: str, info: CollectionInfo, clusterings: Sequence[str]) -> None:
        """Makes the payload indexes that ``name`` lacks."""
        for field, kind in schema.indexes(name, clusterings).items():
            if field not in info.payload_schema:
                with self._session.engine(name) as engine:
                    engine.create_payload_index(name, field, field_schema=kind, wait=True)
