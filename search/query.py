"""A search, from a checked request to hits. Blocking; knows the store and no messages."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, replace
from typing import Literal

from search.snapshots import Snapshot, Snapshots, require_run
from shoal.errors import InvalidArgument, NotFound
from shoal.store import Store
from shoal.store.model import Collection, Equals, Filter, Hit, IdIn, Query, Record, point_id
from shoal.vectors import NOISE, Vectors

Scope = Literal["any", "auto"] | int


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to search. ``within`` is "any", "auto" or a cluster's id."""

    collection: Collection
    clustering: str
    vector: str
    within: Scope
    where: Filter
    limit: int
    offset: int
    min_score: float | None
    with_vectors: bool
    approximate: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, nearest first, the view they belong to, and the cluster that was searched."""

    hits: list[Hit]
    view: Snapshot
    cluster: int | None


class Searcher:
    """Searches one store."""

    def __init__(self, store: Store, views: Snapshots) -> None:
        self._store = store
        self._views = views

    def by_vector(self, target: Target, vector: Vectors) -> Found:
        """The points nearest to ``vector`` (D,), unit length."""
        return self._search(target, vector, self._view(target), None)

    def by_id(self, target: Target, reference: str) -> Found:
        """The points nearest to a stored one, which is left out itself.

        Raises:
            NotFound: no point has this id or key.
        """
        view = self._view(target)  # before the point: the pointer says which of its slots counts
        record = self.point(target.collection.name, reference, vectors=(target.vector,))
        target = replace(
            target,
            where=replace(target.where, must_not=(*target.where.must_not, IdIn([record.id]))),
        )
        return self._search(
            target, record.vectors[target.vector], view, view.cluster_of(record.payload)
        )

    def point(self, collection: str, reference: str, *, vectors: tuple[str, ...] = ()) -> Record:
        """The point with this id (UUID) or key.

        Raises:
            NotFound: there is none.
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

    def _view(self, target: Target) -> Snapshot:
        return self._views.view(target.collection.name, target.clustering)

    def _search(self, target: Target, vector: Vectors, view: Snapshot, stored: int | None) -> Found:
        cluster = self._scope(target, vector, view, stored)
        where = target.where
        if cluster is not None:
            where = where.also(Equals(view.state.active_field, cluster))
        hits = self._store.search(
            target.collection.name,
            Query(
                vector=vector,
                vector_name=target.vector,
                limit=target.limit,
                offset=target.offset,
                where=where,
                min_score=target.min_score,
                # Inside a cluster the answer is exact: a scan of the cluster, which is small
                # beside the collection. Elsewhere the index decides.
                exact=cluster is not None and not target.approximate,
                with_vector=target.with_vectors,
            ),
        )
        return Found(hits, view, cluster)

    def _scope(
        self, target: Target, vector: Vectors, view: Snapshot, stored: int | None
    ) -> int | None:
        if target.within == "any":
            return None
        require_run(view, target.collection.name)
        if target.within == "auto":
            if stored is not None:
                return stored
            if view.vector != target.vector:
                raise InvalidArgument(
                    f"within auto: clustering {view.state.clustering!r} is of vector "
                    f"{view.vector!r}, the query is of {target.vector!r}: name a cluster, or "
                    "search by a stored point"
                )
            return view.nearest_cluster(vector)
        if target.within != NOISE:
            view.require(target.within)
        return target.within
