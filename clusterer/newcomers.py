"""The assignment of points that came in since the last run: nearest centroid, within seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clusterer.assignment import nearest
from clusterer.points import UNASSIGNED
from clusterer.writeback import SlotWriter, as_read, slot_labels
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.store.model import Block, Empty, Scan, Where
from shoal.vectors import Labels, Vectors


@dataclass(frozen=True, slots=True)
class _Centroids:
    """One run's clusters: ``ids`` int32 (K,), ``centroids`` float32 (K, D) of ``vector``."""

    ids: Labels
    centroids: Vectors
    vector: str

    def assign(self, vectors: Vectors) -> Labels:
        return self.ids[nearest(vectors, self.centroids).labels]


class Newcomers:
    """Assigns the new points of one clustering. Keeps the centroids of the runs in sight."""

    def __init__(self, store: Store, collection: str, clustering: str) -> None:
        self._store = store
        self._clusterings = Clusterings(store, collection)
        self._collection = collection
        self._clustering = clustering
        self._cache: dict[str, _Centroids] = {}

    def assign(self, *, block_size: int, check: Callable[[], None]) -> int:
        """Gives every point without a cluster the nearest one; returns how many there were.

        The other slot gets the cluster that the previous run would have given, so that a
        rollback finds the point assigned; but not while a run is under way, which then owns that
        slot, and not if the previous run clustered another vector. (What the slot lacks after a
        rollback is assigned at the next look.) A point that has a value by now, or another
        vector, keeps what it has: the writes are conditional.
        """
        state = self._clusterings.state(self._clustering)
        if not state.active_run:
            return 0
        where = Where(must=(Empty(state.active_field),))
        if not self._store.count(self._collection, where):
            return 0
        runs = [run for run in (state.active_run, state.previous_run) if run]
        self._cache = {run: self._cache.get(run) or self._load(run) for run in runs}
        options = Scan(
            where=where,
            vector=self._cache[state.active_run].vector,
            fields=("clusters", "ingested_at"),
            block_size=block_size,
        )
        writer = SlotWriter(self._store, self._collection, self._clustering, block_size, check)
        assigned = 0
        for block in self._store.scan(self._collection, options):
            self._write(writer, state, block)
            assigned += len(block)
        return assigned

    def _load(self, run: str) -> _Centroids:
        found = self._clusterings.clusters(self._clustering, run)
        return _Centroids(
            np.array([c.cluster for c in found], dtype=np.int32),
            np.stack([c.centroid for c in found]),
            self._clusterings.vector_of(self._clustering, run),
        )

    def _write(self, writer: SlotWriter, state: State, block: Block) -> None:
        if block.vectors is None:
            return
        active = self._cache[state.active_run].assign(block.vectors)
        other = None if state.leased(time.time()) else self._other(state, block.vectors, active)
        held = slot_labels(block.payloads, self._clustering, state.inactive_slot)
        groups: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for i in range(len(block)):
            values = [(state.active_slot, int(active[i]))]
            if other is not None and held[i] == UNASSIGNED:
                values.append((state.inactive_slot, int(other[i])))
            groups[tuple(values)].append(i)
        for slots, rows in groups.items():
            fields = (state.active_field, state.inactive_field)[: len(slots)]
            conditions = (*map(Empty, fields), *as_read([block.payloads[i] for i in rows]))
            writer.write([block.ids[i] for i in rows], dict(slots), *conditions)

    def _other(self, state: State, vectors: Vectors, active: Labels) -> Labels | None:
        """What goes into the other slot; None if the previous run cannot say."""
        if not state.previous_run:
            return active
        before, now = self._cache[state.previous_run], self._cache[state.active_run]
        return before.assign(vectors) if before.vector == now.vector else None
