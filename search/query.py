"""A search, from a checked request to hits. Blocking; knows the store and no messages."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, replace
from typing import Literal

from search.snapshots import Snapshot, Snapshots, require_run
from shoal.errors import InvalidArgument, NotFound
from shoal.rpc.config import MAX_MESSAGE_BYTES
from shoal.store import Store
from shoal.store.model import Collection, Equals, Filter, Hit, IdIn, Query, Record, point_id
from shoal.values import VectorInfo
from shoal.vectors import NOISE, Vectors

Scope = Literal["any", "auto"] | int


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to search: a checked request without its query.

    ``vector`` is the named vector that is compared. ``within`` is "any", "auto" or a cluster's id.
    """

    collection: Collection
    clustering: str
    vector: VectorInfo
    within: Scope
    where: Filter
    limit: int
    offset: int
    min_score: float | None
    with_vectors: bool
    approximate: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, nearest first, the snapshot that they belong to, and the cluster that was searched."""

    hits: list[Hit]
    snapshot: Snapshot
    cluster: int | None


class Searcher:
    """Searches one store."""

    def __init__(self, store: Store, snapshots: Snapshots) -> None:
        self._store = store
        self._snapshots = snapshots

    def by_vector(self, target: Target, vector: Vectors) -> Found:
        """The points nearest to ``vector`` (D,), unit length."""
        return self._search(target, vector, self._snapshot(target), None)

    def by_id(self, target: Target, reference: str) -> Found:
        """The points nearest to a stored point, which is not among them.

        Raises:
            NotFound: no point has this id or key.
            InvalidArgument: the point does not have the vector that is compared.
        """
        # Read before the point: the pointer says which of the point's slots counts.
        snapshot = self._snapshot(target)
        name = target.vector.name
        record = self.point(target.collection.name, reference, vectors=(name,))
        if name not in record.vectors:
            msg = f"point {reference!r} has no vector {name!r} to search by"
            raise InvalidArgument(msg, field="vector_name")
        others = replace(target.where, must_not=(*target.where.must_not, IdIn([record.id])))
        return self._search(
            replace(target, where=others),
            record.vectors[name],
            snapshot,
            snapshot.cluster_of(record.payload),
        )

    def point(self, collection: str, reference: str, *, vectors: tuple[str, ...] = ()) -> Record:
        """The point with this id (UUID) or key; the id wins if both exist.

        Raises:
            NotFound: there is no such point.
        """
        candidates = [point_id(reference)]
        with contextlib.suppress(ValueError):  # not an id, so a key
            candidates.insert(0, str(uuid.UUID(reference)))
        for record in self._store.retrieve(collection, candidates, vectors=vectors):
            if record is not None:
                return record
        raise NotFound(
            f"collection {collection!r} has no point with id or key {reference!r}", id=reference
        )

    def _snapshot(self, target: Target) -> Snapshot:
        return self._snapshots.read(target.collection.name, target.clustering)

    def _search(
        self, target: Target, vector: Vectors, snapshot: Snapshot, own: int | None
    ) -> Found:
        cluster = _cluster_to_search(target, vector, snapshot, own)
        where = target.where
        if cluster is not None:
            where = where.also(Equals(snapshot.state.active_field, cluster))
        hits = self._store.search(
            target.collection.name,
            Query(
                vector=vector,
                vector_name=target.vector.name,
                limit=target.limit,
                offset=target.offset,
                where=where,
                min_score=target.min_score,
                # Inside a cluster the answer is exact: the engine scans the cluster, which is
                # small beside the collection. Elsewhere the engine uses its index.
                exact=cluster is not None and not target.approximate,
                with_vector=target.with_vectors,
                max_bytes=MAX_MESSAGE_BYTES,
            ),
        )
        return Found(hits, snapshot, cluster)


def _cluster_to_search(
    target: Target, vector: Vectors, snapshot: Snapshot, own: int | None
) -> int | None:
    """The cluster that ``target.within`` means; None for everywhere.

    ``own`` is the cluster of the stored point that is the query; None if it has none, or if the
    query is no stored point.
    """
    if target.within == "any":
        return None
    require_run(snapshot, target.collection.name)
    if target.within == "auto":
        if own is not None:
            return own
        if snapshot.vector != target.vector.name:
            raise InvalidArgument(
                f"within auto: clustering {snapshot.state.clustering!r} is of vector "
                f"{snapshot.vector!r}, the query is of {target.vector.name!r}: name a cluster, or "
                "search by a stored point"
            )
        return snapshot.nearest_cluster(vector)
    if target.within != NOISE:
        snapshot.require(target.within)
    return target.within
