"""Gives points that came in since the last run their clusters, by that run's model."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clusterer.fits.models import Assigned, Centroids, Model, unpack
from clusterer.runs.matching import named
from clusterer.runs.points import UNASSIGNED
from clusterer.runs.writeback import Seal, SlotWriter, replaced_since, slot_labels
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.store.model import Empty, Equals, Filter, VectorBlock, VectorScan
from shoal.vectors import Labels, Vectors


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one run assigns: its model, the ids int32 (K,) of its clusters, its vector's name."""

    model: Model
    ids: Labels
    vector: str

    def assign(self, vectors: Vectors) -> Assigned:
        """The cluster ids of ``vectors`` (B, D), or noise, and the confidence."""
        found = self.model.assign(vectors)
        return Assigned(named(self.ids, found.labels), found.confidence)


@dataclass(slots=True)
class _Seen:
    """The points that one look assigned.

    ``clustered`` points are not noise, and ``confidence`` is the sum of theirs.
    """

    points: int = 0
    clustered: int = 0
    confidence: float = 0.0

    def add(self, found: Assigned) -> None:
        self.points += len(found.labels)
        self.clustered += int(np.count_nonzero(found.labels >= 0))
        self.confidence += float(found.confidence.sum())


class Newcomers:
    """Assigns the new points of one clustering. Keeps the models of the runs that it goes by."""

    def __init__(self, store: Store, collection: str, clustering: str) -> None:
        self._store = store
        self._clusterings = Clusterings(store, collection)
        self._collection = collection
        self._clustering = clustering
        self._cache: dict[str, _Rule] = {}

    def assign(self, *, block_size: int, check: Callable[[], None]) -> int:
        """Gives every point without a cluster the one that the active run's model says.

        The other slot gets the cluster that the previous run would have given, so that a rollback
        finds the point assigned. It gets none while a run is under way, which then owns that slot,
        or if the previous run clustered another vector; after a rollback the next look fills it.
        A point that got another vector meanwhile, or a label of a run that began meanwhile, keeps
        what it has: the writes are conditional. Two that look at once write the same.

        Returns:
            How many points there were.
        """
        state = self._clusterings.state(self._clustering)
        if not state.pointer.active_run:
            return 0
        where = Filter(must=(Empty(state.active_field),))
        if not self._store.count(self._collection, where):
            return 0
        runs = [run for run in (state.pointer.active_run, state.pointer.previous_run) if run]
        self._cache = {run: self._cache.get(run) or self._load(run) for run in runs}
        options = VectorScan(
            where=where,
            vector=self._cache[state.pointer.active_run].vector,
            fields=("clusters", "ingested_at"),
            block_size=block_size,
        )
        seal = Seal(state.lease.fence, sealing=False)
        writer = SlotWriter(
            self._store, self._collection, self._clustering, block_size, check, seal
        )
        seen = _Seen()
        try:
            for block in self._store.scan(self._collection, options):
                self._write(writer, state, block, seen)
        finally:
            if seen.points:
                self._count(state, seen)
        return seen.points

    def _count(self, state: State, seen: _Seen) -> None:
        """Adds the points to the clustering's sums over newcomers."""
        now = self._clusterings.state(self._clustering)
        self._clusterings.compare_and_set(
            self._clustering,
            {
                "newcomers_clustered": now.drift.newcomers_clustered + seen.clustered,
                "newcomers_confidence": now.drift.newcomers_confidence + seen.confidence,
            },
            Equals("active_run", state.pointer.active_run),
        )

    def _load(self, run: str) -> _Rule:
        vector = self._clusterings.vector_name_of(self._clustering, run)
        packed = self._clusterings.model(self._clustering, run)
        if packed:
            return _Rule(*unpack(packed), vector)
        # A run of a version that stored no model: k-means, whose centroids are its clusters'.
        found = self._clusterings.clusters(self._clustering, run)
        ids = np.array([c.cluster for c in found], dtype=np.int32)
        return _Rule(Centroids(np.stack([c.centroid for c in found])), ids, vector)

    def _write(self, writer: SlotWriter, state: State, block: VectorBlock, seen: _Seen) -> None:
        found = self._cache[state.pointer.active_run].assign(block.vectors)
        active = found.labels
        other = None if state.lease.held(time.time()) else self._other(state, block.vectors, active)
        held = slot_labels(block.payloads, self._clustering, state.pointer.inactive_slot)
        groups: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for i in range(len(block)):
            values = [(state.pointer.active_slot, int(active[i]))]
            if other is not None and held[i] == UNASSIGNED:
                values.append((state.pointer.inactive_slot, int(other[i])))
            groups[tuple(values)].append(i)
        for slots, rows in groups.items():
            replaced = replaced_since([block.payloads[i] for i in rows])
            writer.write([block.ids[i] for i in rows], dict(slots), unless=replaced)
        seen.add(found)

    def _other(self, state: State, vectors: Vectors, active: Labels) -> Labels | None:
        """The labels for the other slot; None if the previous run clustered another vector."""
        if not state.pointer.previous_run:
            return active
        before, now = self._cache[state.pointer.previous_run], self._cache[state.pointer.active_run]
        return before.assign(vectors).labels if before.vector == now.vector else None
