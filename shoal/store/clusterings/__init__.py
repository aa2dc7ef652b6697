"""Clusterings as readers see them: the pointer to the active run, and that run's clusters.

They are points of the collection's records collection, so that one conditional write of the
store is all that atomicity needs (docs/adr/0001). Each module here owns one kind of point:

* ``state``: one point per clustering, with the pointer, the lease and the counter of cluster ids;
* ``clusters``: one point per cluster of a run, whose vector is the centroid;
* ``models``: the model of a run, in pieces, which gives new points their clusters;
* ``schedules``: when a clustering is run again;
* ``runs``: what happened in each run.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.store.clusterings.clusters import ClusterRecord, Clusters
from shoal.store.clusterings.models import Models
from shoal.store.clusterings.runs import Runs
from shoal.store.clusterings.schedules import Schedules
from shoal.store.clusterings.slots import FENCE, cluster_of
from shoal.store.clusterings.state import DriftSums, Pointer, State, States, StoredLease
from shoal.store.model import Equals, Filter, IdIn, Scan

__all__ = [
    "FENCE",
    "ClusterRecord",
    "Clusterings",
    "DriftSums",
    "Pointer",
    "State",
    "StoredLease",
    "cluster_of",
]


class Clusterings(States, Clusters, Models, Schedules, Runs):
    """The clusterings of one collection, in the store. Thread-safe like the store."""

    def drop_clusters_except(self, clustering: str, runs: Sequence[str], *, fence: int) -> None:
        """Deletes clusters and models of every run before ``fence`` but ``runs``."""
        kept = tuple(Equals("run", run) for run in runs if run)
        for kind in ("cluster", "model"):
            where = Filter(
                must=(Equals("kind", kind), Equals("clustering", clustering)), must_not=kept
            )
            outdated = [
                one
                for block in self._store.scan(self._records, Scan(where=where, fields=("fence",)))
                for one, payload in zip(block.ids, block.payloads, strict=True)
                if isinstance(of := payload.get("fence"), int) and of < fence
            ]
            self._store.delete(self._records, Filter((IdIn(outdated),)))
