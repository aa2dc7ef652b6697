"""One reclustering run, from sample to cutover. Blocking; the service gives it a thread.

A run may be killed in any step, and readers still see one whole run:

1. take the lease; 2. fit on a bounded sample, in a child process; 3. assign every point in a
stream; 4. match to the active clusters, so that ids stay; 5. report the plan, and stop here if
asked or if a gate objects; 6. write the points whose inactive slot differs; 7. under the lock
that keeps new points from being assigned: catch up with what came in since, verify, and flip
the pointer in one conditional write.

Until the flip, readers follow the other slot and see nothing of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from clusterer.fits import keep_fit
from clusterer.fits.models import pack
from clusterer.runs.assign import Totals
from clusterer.runs.engine import Engine, F, Found, MakeEngine, Scope
from clusterer.runs.in_memory import InMemoryEngine
from clusterer.runs.lease import Lease
from clusterer.runs.matching import Clusters, Matching, match
from clusterer.runs.naming import nearest_words
from clusterer.runs.plan import Quality, centroid_drift, objections, plan_of, sampled_silhouette
from clusterer.runs.task import Outcome, RunContext, RunProgress, Task
from clusterer.runs.tracking import Tracker
from shoal.errors import NotFound, ShoalError
from shoal.store.clusterings import Clusterings, ClusterRecord, State

_LOG = logging.getLogger(__name__)


class Reclustering:
    """A run under a held lease. :meth:`execute` does it; :attr:`progress` tells how far it is."""

    def __init__(
        self,
        task: Task,
        context: RunContext,
        lease: Lease,
        make_engine: MakeEngine = InMemoryEngine,
    ) -> None:
        self.task = task
        self._lease = lease
        self._make_engine = make_engine
        self._tracker = Tracker(context, lease)
        store = context.store.patient(self._tracker.patience)
        self._context = replace(context, store=store)
        self._clusterings = Clusterings(store, task.collection)

    @property
    def progress(self) -> RunProgress:
        """How far the run is."""
        return self._tracker.progress

    def execute(self) -> Outcome:
        """Does the run.

        Returns:
            How it ended.

        Raises:
            Cancelled: the run was told to stop. The active clustering is whole.
            LeaseLost: another run took over. One write of labels may still have been on its way;
                the other run's verification mends it.
            ShoalError: anything else; the active clustering is whole.
        """
        began = time.time()
        state = self._clusterings.state(self.task.clustering)
        self.progress.base_run = state.pointer.active_run
        active = self._active_clusters(state)
        scope = Scope(
            task=self.task,
            context=self._context,
            tracker=self._tracker,
            fence=self._lease.fence,
            state=state,
            active=self._comparable(active, state),
            began=began,
        )
        return self._recluster(self._make_engine(scope), scope, active)

    def _recluster(
        self, engine: Engine[F], scope: Scope, active: Sequence[ClusterRecord]
    ) -> Outcome:
        found = engine.find()
        with self._tracker.stage("plan"):
            matching = self._plan(engine, found, scope)
            names = self._names(found.totals, matching, active)
        if self.task.plan_only:
            return Outcome.PLANNED
        if self.progress.objections and not self.task.force:
            return Outcome.REFUSED
        with self._tracker.stage("write"):
            # From the first write on, the previous assignment is no longer whole. The ids are
            # spent here, not at the flip: they are never used again even if this run dies.
            self._lease.update(
                {"previous_run": "", "next_cluster": matching.next_id, "unsettled": True},
                through=self._clusterings,
            )
            self._context.store.flush()  # before any write of a slot, also after a power cut
            written = engine.write(found, matching)
            self.progress.points_written = written.points
        with self._tracker.stage("cutover"), self._context.cutover_lock:
            settled = engine.settle(found, matching, written)
            self.progress.points_written += settled.points
            self._put_clusters(found, matching, names)
            self._flip(scope.state, found.totals, noise=settled.noise)
        try:
            keep_fit(self.task.fit_plan, found.rule.model, self.progress.facts)
        except ShoalError as exc:  # the run is whole without it
            _LOG.warning("run %s: its head was not kept: %s", self.task.run, exc.message)
        return Outcome.SUCCEEDED

    def _active_clusters(self, state: State) -> list[ClusterRecord]:
        """The clusters that readers see.

        Without them, before the first run or if their records are lost, the run makes the
        clustering anew, with new ids.
        """
        if state.pointer.active_run:
            with suppress(NotFound):
                return self._clusterings.clusters(self.task.clustering, state.pointer.active_run)
        return []

    def _comparable(self, active: Sequence[ClusterRecord], state: State) -> Clusters:
        """The active clusters to match; their centroids are zeros if they are of another vector."""
        spec = self._context.store.collection(self.task.collection).vector(self.task.vector)
        centroids = np.zeros((len(active), spec.dim), np.float32)
        run = state.pointer.active_run
        if active and self._clusterings.vector_name_of(state.clustering, run) == spec.name:
            centroids = np.stack([c.centroid for c in active])
        return Clusters(np.array([c.cluster for c in active], dtype=np.int32), centroids)

    def _plan(self, engine: Engine[F], found: F, scope: Scope) -> Matching:
        """Gives the new clusters their ids, and puts the plan and the objections to it in place."""
        totals, state = found.totals, scope.state
        matching = match(
            engine.overlap(found),
            scope.active,
            totals.centroids,
            next_id=state.next_cluster,
            thresholds=self._context.config.matching,
        )
        new = Clusters(matching.ids, totals.centroids)
        quality = Quality(
            inertia=totals.tally.inertia,
            silhouette=sampled_silhouette(totals.sampled(), totals.sampled_labels()),
            confidence=totals.confidence,
            centroid_drift=centroid_drift(scope.active, new, totals.tally.sizes),
        )
        changes = engine.changes(found, matching)
        if state.unsettled:  # then every point is written, to seal it
            changes = replace(changes, to_write=changes.points)
        plan = plan_of(changes, matching.lineage, quality)
        self.progress.plan = plan
        self.progress.objections = objections(plan, self.task.gates)
        self._context.changed()
        return matching

    def _names(
        self, totals: Totals, matching: Matching, active: Sequence[ClusterRecord]
    ) -> dict[int, str]:
        """The names of clusters by row: new ones, or the one that an id had."""
        old = {c.cluster: c.name for c in active}
        kept = {row: old.get(cluster, "") for row, cluster in enumerate(matching.ids.tolist())}
        words = nearest_words(totals.centroids, self.task.naming)
        return {**kept, **words, **totals.values.names()}

    def _put_clusters(self, found: Found, matching: Matching, names: Mapping[int, str]) -> None:
        """Stores the run's clusters, and the model that gives new points theirs."""
        sizes, cohesion = found.totals.tally.sizes, found.totals.tally.cohesion
        lines = {line.cluster: line for line in matching.lineage}
        self._clusterings.put_clusters(
            self.task.clustering,
            self.task.run,
            [
                ClusterRecord(
                    cluster=cluster,
                    size=int(sizes[row]),
                    cohesion=float(cohesion[row]),
                    centroid=found.totals.centroids[row],
                    name=names.get(row, ""),
                    lineage={
                        "kind": lines[cluster].kind,
                        "related": list(lines[cluster].related),
                        "overlap": lines[cluster].overlap,
                    },
                )
                for row, cluster in enumerate(matching.ids.tolist())
            ],
            vector=self.task.vector,
            fence=self._lease.fence,
        )
        self._clusterings.put_model(
            self.task.clustering,
            self.task.run,
            pack(found.rule.model, matching.ids),
            fence=self._lease.fence,
        )

    def _flip(self, state: State, totals: Totals, *, noise: int) -> None:
        """Points readers at the run, and drops the clusters of runs that nobody returns to."""
        self._tracker.check()
        self._context.store.flush()
        self._lease.update(
            {
                "active_slot": state.pointer.inactive_slot,
                "active_run": self.task.run,
                "previous_run": state.pointer.active_run,
                "changed_at": time.time(),
                "previous_noise": state.drift.run_noise,
                "previous_confidence": state.drift.run_confidence,
                "run_noise": noise,
                "run_confidence": totals.confidence,
                "newcomers_clustered": 0,
                "newcomers_confidence": 0.0,
                "unsettled": False,
            },
            through=self._clusterings,
        )
        self._context.store.flush()
        try:
            self._clusterings.drop_clusters_except(
                self.task.clustering,
                (self.task.run, state.pointer.active_run),
                fence=self._lease.fence,
            )
        except ShoalError as exc:  # the next run drops them
            _LOG.warning("old clusters were not dropped: %s", exc.message)
