"""One reclustering run, from sample to cutover. Blocking; the service gives it a thread.

The protocol, each step safe to be killed in:

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
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from clusterer.fits import Fit, keep_fit
from clusterer.fits.models import Prototypes, pack, unpack
from clusterer.runs import points, writeback
from clusterer.runs.assign import Assignment, NoiseRule, Rule, Totals
from clusterer.runs.lease import Lease
from clusterer.runs.matching import Clusters, Matching, match
from clusterer.runs.naming import nearest_words
from clusterer.runs.plan import (
    Quality,
    Report,
    centroid_drift,
    objections,
    report,
    sampled_silhouette,
)
from clusterer.runs.sampling import Sample, sample_vectors
from clusterer.runs.task import Outcome, Progress, RunContext, Task, not_enough
from shoal.errors import Cancelled, Conflict, NotFound, ShoalError
from shoal.store.clusterings import Clusterings, ClusterRecord, State
from shoal.store.model import Empty, Equals, Filter, Range, VectorScan
from shoal.vectors import NOISE, Labels

_LOG = logging.getLogger(__name__)


class Run:
    """A run under a held lease. :meth:`execute` does it; :attr:`progress` tells how far it is.

    Where the points are held and written is in ``_find``, ``_match``, ``_report``, ``_write`` and
    ``_settle``, which another engine replaces (``clusterer.spark``).
    """

    _rule: Rule
    """What the fit says of any point; set by ``_find``."""
    _table: points.PointTable
    """The points, as this engine holds them; set by ``_find``."""

    def __init__(self, task: Task, context: RunContext, lease: Lease) -> None:
        self._task = task
        self._context = context
        self._lease = lease
        self._clusterings = Clusterings(context.store, task.collection)
        self._writer = writeback.SlotWriter(
            context.store,
            task.collection,
            task.clustering,
            context.config.write_chunk,
            self._check,
            writeback.Seal(lease.fence, sealing=False),
        )
        self._old_names: dict[int, str] = {}
        self.progress = Progress()

    def execute(self) -> Outcome:
        """Does the run; returns an Outcome.

        Raises:
            Cancelled: the service was told to stop it. The active clustering is whole.
            LeaseLost: another run took over. One write of labels may still have been on its way;
                the other run's verification mends it.
            ShoalError: anything else; the active clustering is whole.
        """
        began = time.time()
        state = self._clusterings.state(self._task.clustering)
        self.progress.base_run = state.pointer.active_run
        self._writer = replace(
            self._writer, seal=writeback.Seal(self._lease.fence, sealing=state.unsettled)
        )
        active = self._active_clusters(state)
        found = self._find(state, active)
        with self._stage("plan"):
            matching = self._plan(state, active, found)
            names = self._names(found, matching)
        if self._task.plan_only:
            return Outcome.PLANNED
        if self.progress.objections and not self._task.force:
            return Outcome.REFUSED
        with self._stage("write"):
            # From the first write on, the previous assignment is no longer whole. The ids are
            # spent here, not at the flip: they are never used again even if this run dies.
            self._lease.update(
                {"previous_run": "", "next_cluster": matching.next_id, "unsettled": True}
            )
            self._context.store.flush()  # before any write of a slot, also after a power cut
            self.progress.points_written = self._write(state, matching, began)
        with self._stage("cutover"), self._context.cutover_lock:
            self._settle(state, matching, began)
            self._put_clusters(found, matching, names)
            self._flip(state, found)
        try:
            keep_fit(self._task.fit, self._rule.model, self.progress.facts)
        except ShoalError as exc:  # the run is whole without it
            _LOG.warning("run %s: its head was not kept: %s", self._task.run, exc.message)
        return Outcome.SUCCEEDED

    def _find(self, state: State, active: Clusters) -> Totals:
        """Samples, fits and assigns every point; sets ``_rule``."""
        noisy = self._noisy(state)
        with self._stage("sample"):
            sample = self._sample(state)
        with self._stage("fit"):
            fit = self._fit(sample, active)
        self._rule = NoiseRule(fit, sample, *noisy) if noisy else Rule(fit, sample)
        del sample  # up to a few hundred MB
        with self._stage("assign"):
            found = self._assign(state, self._rule)
        self._table = found.table
        return found

    def _check(self) -> None:
        if self._context.cancelled.is_set():
            raise Cancelled("told to stop, by a caller or because the server stops")
        self._lease.check()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._check()
        self.progress.stage, self.progress.done, self.progress.total = name, 0, 0
        self._context.changed()
        began = time.monotonic()
        try:
            yield
        finally:
            self.progress.stage_s[name] = time.monotonic() - began

    def _advance(self, done: int) -> None:
        self._check()
        self.progress.done = done
        self._context.changed()

    def _active_clusters(self, state: State) -> Clusters:
        """The clusters that readers see; zeros for centroids if they are of another vector.

        None, if their records are lost: the run then mends the clustering, with new ids.
        """
        found: list[ClusterRecord] = []
        if state.pointer.active_run:
            with suppress(NotFound):
                found = self._clusterings.clusters(self._task.clustering, state.pointer.active_run)
        self._old_names = {c.cluster: c.name for c in found if c.name}
        spec = self._context.store.collection(self._task.collection).vector(self._task.vector)
        centroids = np.zeros((len(found), spec.dim), np.float32)
        if (
            found
            and self._clusterings.vector_name_of(state.clustering, state.pointer.active_run)
            == spec.name
        ):
            centroids = np.stack([c.centroid for c in found])
        return Clusters(np.array([c.cluster for c in found], dtype=np.int32), centroids)

    def _sample(self, state: State) -> Sample:
        store, task = self._context.store, self._task
        where = Filter()
        if task.noise_only:
            where = where.also(Equals(state.active_field, NOISE))
        count = store.count(task.collection, where)
        if count < task.fit.least_points:
            raise not_enough(task.fit, count, task.collection, noise=task.noise_only)
        self.progress.total = min(count, task.sample_size)
        return sample_vectors(
            store,
            task.collection,
            VectorScan(
                where=where,
                vector=task.vector,
                fields=(),
                block_size=self._context.config.block_size,
            ),
            size=min(count, task.sample_size),
            seed=task.seed,
            progress=self._advance,
        )

    def _fit(self, sample: Sample, active: Clusters) -> Fit:
        warm = active.centroids if self._task.warm_start and len(active.ids) else None
        if warm is not None and not np.any(warm):
            warm = None
        fit = self._context.fit(
            self._task.fit,
            sample.vectors,
            warm=warm,
            scratch=self._context.config.scratch,
            check=self._check,
        )
        self.progress.facts = dict(fit.facts)
        return fit

    def _noisy(self, state: State) -> tuple[Prototypes, Labels] | None:
        """The active run's model and ids, if only its noise is to be clustered; else None.

        Raises:
            Conflict: it left no noise, or is of another vector.
        """
        if not self._task.noise_only:
            return None
        packed = self._clusterings.model(state.clustering, state.pointer.active_run)
        model, ids = unpack(packed) if packed else (None, None)
        if not isinstance(model, Prototypes) or ids is None:
            msg = "noise_only: the active run left no noise: it was not of hdbscan or evoc"
            raise Conflict(msg)
        vector = self._clusterings.vector_name_of(state.clustering, state.pointer.active_run)
        if vector != self._task.vector:
            msg = f"noise_only: expected the active run's vector, {vector}, got {self._task.vector}"
            raise Conflict(msg)
        return model, ids

    def _assign(self, state: State, rule: Rule) -> Assignment:
        config, task = self._context.config, self._task
        self.progress.total = self._context.store.count(task.collection)
        found = Assignment(rule, config.silhouette_sample, task.naming.fields)
        options = VectorScan(
            vector=task.vector,
            fields=(f"clusters.{task.clustering}", *task.naming.fields),
            block_size=config.block_size,
        )
        for block in self._context.store.scan(task.collection, options):
            found.add(block, state)
            self._advance(found.table.appended)
        found.table.seal()
        return found

    def _plan(self, state: State, active: Clusters, found: Totals) -> Matching:
        matching = self._match(state, active, found)
        silhouette = sampled_silhouette(found.sampled(), found.sampled_labels())
        planned = self._report(
            matching,
            Quality(
                inertia=found.tally.inertia,
                silhouette=silhouette,
                confidence=found.confidence,
                centroid_drift=centroid_drift(
                    active, Clusters(matching.ids, found.centroids), found.tally.sizes
                ),
            ),
        )
        if state.unsettled:
            planned = replace(planned, to_write=planned.points)
        self.progress.report = planned
        self.progress.objections = objections(planned, self._task.gates)
        self._context.changed()
        return matching

    def _match(self, state: State, active: Clusters, found: Totals) -> Matching:
        table = self._table
        matching = match(
            table.active,
            table.wanted,
            active,
            found.centroids,
            next_id=state.next_cluster,
            thresholds=self._context.config.matching,
        )
        table.wanted = matching.named(table.wanted)
        return matching

    def _report(self, matching: Matching, quality: Quality) -> Report:
        return report(self._table, matching.lineage, quality)

    def _write(self, state: State, matching: Matching, began: float) -> int:
        """Makes the inactive slot hold what is wanted; returns how many points it wrote."""
        del matching  # the table has its ids by now
        if self.progress.report is not None:
            self.progress.total = self.progress.report.to_write
        return writeback.write_differences(
            self._writer, self._table, state, began=began, progress=self._advance
        )

    def _settle(self, state: State, matching: Matching, began: float) -> None:
        """Catches up with the points that came in since ``began``, and verifies."""
        if self._context.store.count(self._task.collection) > len(self._table):
            writeback.clear_strays(self._writer, self._table, state, self._task.vector)
        late = self._catch_up(state, matching, began)
        self.progress.points_written += writeback.verify(
            self._writer, self._table, state, late=late
        )

    def _noise(self) -> int:
        """How many points the run leaves as noise; known from the end of ``_settle`` on."""
        return int(np.count_nonzero(self._table.wanted == NOISE))

    def _catch_up(self, state: State, matching: Matching, began: float) -> Counter[int]:
        """Labels what the assignment pass has not seen: points that are new or were replaced.

        An empty slot shows both; the time of ingestion shows those that were replaced after
        the pass and then written with their old label.

        Returns:
            How many points that are not in the table now have each label.
        """
        options = VectorScan(
            where=self._late(state, began),
            vector=self._task.vector,
            fields=("clusters", "ingested_at"),
            block_size=self._context.config.block_size,
        )
        late: Counter[int] = Counter()
        for block in self._context.store.scan(self._task.collection, options):
            active = writeback.slot_labels(
                block.payloads, state.clustering, state.pointer.active_slot
            )
            labels = matching.named(self._rule.assign(block.ids, block.vectors, active).labels)
            held = writeback.slot_labels(
                block.payloads, state.clustering, state.pointer.inactive_slot
            )
            rows = self._table.find(block.ids)
            self._table.wanted[rows[rows >= 0]] = labels[rows >= 0]
            late.update(labels[rows < 0].tolist())
            slots = ("a", "b") if not state.pointer.active_run else (state.pointer.inactive_slot,)
            for label in np.unique(labels[held != labels]).tolist():
                at = np.nonzero((labels == label) & (held != labels))[0]
                self._writer.write(
                    [block.ids[i] for i in at],
                    dict.fromkeys(slots, label),
                    *writeback.as_read([block.payloads[i] for i in at]),
                )
                self.progress.points_written += len(at)
        return late

    def _late(self, state: State, began: float) -> Filter:
        """The points that came in since ``began``, or may have."""
        since = began - self._context.config.clock_skew_s
        return Filter(should=(Empty(state.inactive_field), Range("ingested_at", gte=since)))

    def _put_clusters(self, found: Totals, matching: Matching, names: Mapping[int, str]) -> None:
        sizes, cohesion = found.tally.sizes, found.tally.cohesion
        lines = {line.cluster: line for line in matching.lineage}
        self._clusterings.put_clusters(
            self._task.clustering,
            self._task.run,
            [
                ClusterRecord(
                    cluster=int(cluster),
                    size=int(sizes[row]),
                    cohesion=float(cohesion[row]),
                    centroid=found.centroids[row],
                    name=names.get(row, ""),
                    lineage={
                        "kind": lines[int(cluster)].kind,
                        "related": list(lines[int(cluster)].related),
                        "overlap": lines[int(cluster)].overlap,
                    },
                )
                for row, cluster in enumerate(matching.ids)
            ],
            vector=self._task.vector,
            fence=self._lease.fence,
        )
        self._clusterings.put_model(
            self._task.clustering,
            self._task.run,
            pack(self._rule.model, matching.ids),
            fence=self._lease.fence,
        )

    def _names(self, found: Totals, matching: Matching) -> dict[int, str]:
        """The names of clusters by row: new ones, or the one that an id had."""
        kept = {row: self._old_names.get(int(one), "") for row, one in enumerate(matching.ids)}
        words = nearest_words(found.centroids, self._task.naming)
        return {**kept, **words, **found.values.names()}

    def _flip(self, state: State, found: Totals) -> None:
        self._check()
        self._context.store.flush()
        self._lease.update(
            {
                "active_slot": state.pointer.inactive_slot,
                "active_run": self._task.run,
                "previous_run": state.pointer.active_run,
                "changed_at": time.time(),
                "previous_noise": state.drift.run_noise,
                "previous_confidence": state.drift.run_confidence,
                "run_noise": self._noise(),
                "run_confidence": found.confidence,
                "newcomers_clustered": 0,
                "newcomers_confidence": 0.0,
                "unsettled": False,
            }
        )
        self._context.store.flush()
        try:
            self._clusterings.drop_clusters_except(
                self._task.clustering,
                (self._task.run, state.pointer.active_run),
                fence=self._lease.fence,
            )
        except ShoalError as exc:  # the next run drops them
            _LOG.warning("old clusters were not dropped: %s", exc.message)
