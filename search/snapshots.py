"""Snapshots: what one request sees of a clustering, read once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from shoal.errors import Conflict, NotFound
from shoal.store import Store
from shoal.store.clusterings import Clusterings, ClusterRecord, State, cluster_of
from shoal.store.model import DEFAULT_CLUSTERING, Payload
from shoal.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A clustering at one moment: the pointer to its active run, and the clusters of that run.

    A request reads one snapshot and takes everything from it, so that its answer is of one run
    even if another run goes live meanwhile. Before the first run the pointer names no run, and
    there are no clusters.

    Attributes:
        state: The clustering's state. Its slot says which field of a payload counts.
        clusters: The records of the active run's clusters, by id.
        ids: The K ids of the clusters, in the order of ``centroids``.
        centroids: (K, D) float32, unit length.
        vector: The named vector that the run clustered; the collection's first before any run.
    """

    state: State
    clusters: dict[int, ClusterRecord]
    ids: list[int]
    centroids: Vectors
    vector: str

    def cluster_of(self, payload: Payload) -> int | None:
        """The cluster of the point with ``payload``; None if it has none yet."""
        if not self.state.pointer.active_run:
            return None
        return cluster_of(payload, self.state.clustering, self.state.pointer.active_slot)

    def nearest_cluster(self, vector: Vectors) -> int:
        """The cluster whose centroid is nearest to ``vector`` (D,)."""
        return self.ids[int((self.centroids @ vector).argmax())]

    def require(self, cluster: int) -> ClusterRecord:
        """The record of the cluster with this id.

        Raises:
            NotFound: the active run has no such cluster.
        """
        if cluster not in self.clusters:
            raise NotFound(
                f"clustering {self.state.clustering!r} has no cluster {cluster} in run "
                f"{self.state.pointer.active_run or 'none'}: expected one of the "
                f"{len(self.clusters)} that `shoal clusters` lists",
                cluster=str(cluster),
            )
        return self.clusters[cluster]


class Snapshots:
    """Reads snapshots. Keeps the cluster records of the runs that were asked for last. Thread-safe.

    The records of a run never change, so they are cached by the run's id. The pointer is read
    every time.
    """

    def __init__(self, store: Store, cached_runs: int) -> None:
        self._store = store
        self._capacity = cached_runs
        self._cache: OrderedDict[tuple[str, str, str], Snapshot] = OrderedDict()
        self._guard = threading.Lock()

    def read(self, collection: str, clustering: str) -> Snapshot:
        """The clustering as it is now.

        Raises:
            NotFound: no such collection; or no such clustering, unless it is the default one.
        """
        clusterings = Clusterings(self._store, collection)
        state = clusterings.state(clustering)
        key = (collection, state.clustering, state.pointer.active_run)
        with self._guard:
            cached = self._cache.get(key)
            if cached is not None:
                self._cache.move_to_end(key)
                return replace(cached, state=state)
        snapshot = self._load(clusterings, state)
        if state.pointer.active_run:
            with self._guard:
                self._cache[key] = snapshot
                while len(self._cache) > self._capacity:
                    self._cache.popitem(last=False)
        return snapshot

    def _load(self, clusterings: Clusterings, state: State) -> Snapshot:
        if not state.pointer.active_run:
            collection = self._store.collection(clusterings.collection)
            known = {DEFAULT_CLUSTERING, *collection.clusterings}
            if state.clustering not in known:
                raise NotFound(
                    f"collection {collection.name!r} has no clustering {state.clustering!r}: "
                    f"expected one of {', '.join(sorted(known))}",
                    clustering=state.clustering,
                )
            first = collection.vector()
            return Snapshot(state, {}, [], np.zeros((0, first.dim), np.float32), first.name)
        records = clusterings.clusters(state.clustering, state.pointer.active_run)
        return Snapshot(
            state=state,
            clusters={record.cluster: record for record in records},
            ids=[record.cluster for record in records],
            centroids=np.stack([record.centroid for record in records]),
            vector=clusterings.vector_name_of(state.clustering, state.pointer.active_run),
        )


def require_run(snapshot: Snapshot, collection: str) -> None:
    """Raises Conflict if the clustering has never been run."""
    if not snapshot.state.pointer.active_run:
        raise Conflict(
            f"clustering {snapshot.state.clustering!r} of {collection!r} has no clusters yet: "
            "run `shoal cluster` first"
        )
