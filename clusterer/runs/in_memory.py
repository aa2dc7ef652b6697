"""The engine that holds a run's points in this process: 28 bytes each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clusterer.fits import Fit
from clusterer.fits.models import Prototypes, unpack
from clusterer.runs import writeback
from clusterer.runs.assign import NoiseRule, Rule, Totals
from clusterer.runs.engine import Scope, Settled
from clusterer.runs.matching import Matching, Overlap, overlap_of
from clusterer.runs.plan import Changes, changes_of
from clusterer.runs.points import PointTable
from clusterer.runs.sampling import Sample, sample_vectors
from clusterer.runs.task import not_enough
from clusterer.runs.writeback import SlotWriter, Written, slot_labels
from shoal.errors import Conflict
from shoal.store.clusterings import Clusterings
from shoal.store.model import Equals, Filter, VectorScan
from shoal.vectors import NOISE, Labels


@dataclass(frozen=True, slots=True)
class FoundPoints:
    """The points of a run in a table, with the rule of their clusters and the sums over them."""

    rule: Rule
    totals: Totals
    table: PointTable


class InMemoryEngine:
    """Reads every point once, keeps its id and labels, and writes those that differ."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._store = scope.context.store
        self._config = scope.context.config
        self._task = scope.task
        self._tracker = scope.tracker
        self._writer = SlotWriter(
            self._store,
            self._task.collection,
            self._task.clustering,
            self._config.write_chunk,
            self._tracker.check,
            scope.seal,
        )

    def find(self) -> FoundPoints:
        """As ``Engine.find``.

        Raises:
            Conflict: only noise is to be clustered, and the active run left none, or is of
                another vector.
        """
        active_model = self._model_with_noise() if self._task.noise_only else None
        with self._tracker.stage("sample"):
            sample = self._sample()
        with self._tracker.stage("fit"):
            fit = self._fit(sample)
        rule = NoiseRule(fit, sample, *active_model) if active_model else Rule(fit, sample)
        del sample  # up to a few hundred MB
        with self._tracker.stage("assign"):
            return self._assign(rule)

    def _model_with_noise(self) -> tuple[Prototypes, Labels]:
        """The active run's model, which leaves noise, and the ids of its clusters."""
        state = self._scope.state
        clusterings = Clusterings(self._store, self._task.collection)
        packed = clusterings.model(state.clustering, state.pointer.active_run)
        model, ids = unpack(packed) if packed else (None, None)
        if not isinstance(model, Prototypes) or ids is None:
            msg = "noise_only: the active run left no noise: it was not of hdbscan or evoc"
            raise Conflict(msg)
        vector = clusterings.vector_name_of(state.clustering, state.pointer.active_run)
        if vector != self._task.vector:
            msg = f"noise_only: expected the active run's vector, {vector}, got {self._task.vector}"
            raise Conflict(msg)
        return model, ids

    def _sample(self) -> Sample:
        task = self._task
        where = Filter()
        if task.noise_only:
            where = where.also(Equals(self._scope.state.active_field, NOISE))
        count = self._store.count(task.collection, where)
        if count < task.fit_plan.least_points:
            raise not_enough(task.fit_plan, count, task.collection, noise=task.noise_only)
        size = min(count, task.sample_size)
        self._tracker.expect(size)
        options = VectorScan(
            where=where, vector=task.vector, fields=(), block_size=self._config.block_size
        )
        return sample_vectors(
            self._store,
            task.collection,
            options,
            size=size,
            seed=task.seed,
            progress=self._tracker.advance,
        )

    def _fit(self, sample: Sample) -> Fit:
        fit = self._scope.context.fit(
            self._task.fit_plan,
            sample.vectors,
            warm=self._scope.warm,
            scratch=self._config.scratch,
            check=self._tracker.check,
        )
        self._tracker.progress.facts = dict(fit.facts)
        return fit

    def _assign(self, rule: Rule) -> FoundPoints:
        task, state = self._task, self._scope.state
        self._tracker.expect(self._store.count(task.collection))
        totals = Totals(rule.model.centroids, self._config.silhouette_sample, task.naming.fields)
        table = PointTable()
        options = VectorScan(
            vector=task.vector,
            fields=(f"clusters.{task.clustering}", *task.naming.fields),
            block_size=self._config.block_size,
        )
        for block in self._store.scan(task.collection, options):
            active = slot_labels(block.payloads, state.clustering, state.pointer.active_slot)
            inactive = slot_labels(block.payloads, state.clustering, state.pointer.inactive_slot)
            assigned = rule.assign(block.ids, block.vectors, active)
            totals.count(block, assigned)
            table.append(block.ids, assigned.labels, active, inactive)
            self._tracker.advance(table.appended)
        table.seal()
        return FoundPoints(rule, totals, table)

    def overlap(self, found: FoundPoints) -> Overlap:
        """As ``Engine.overlap``."""
        clusters = len(found.totals.centroids)
        return overlap_of(found.table.active, found.table.rows, self._scope.active.ids, clusters)

    def changes(self, found: FoundPoints, matching: Matching) -> Changes:
        """As ``Engine.changes``."""
        return changes_of(found.table, matching.named(found.table.rows))

    def write(self, found: FoundPoints, matching: Matching) -> Written:
        """As ``Engine.write``."""
        return writeback.write_differences(
            self._writer,
            found.table,
            matching.named(found.table.rows),
            self._scope.state,
            began=self._scope.began,
            progress=self._tracker.advance,
        )

    def settle(self, found: FoundPoints, matching: Matching, written: Written) -> Settled:
        """As ``Engine.settle``."""
        state, table = self._scope.state, found.table
        if self._store.count(self._task.collection) > len(table):
            writeback.clear_strays(self._writer, table, state, self._task.vector)
        wanted = matching.named(table.rows)
        late = self._catch_up(found, matching, wanted)
        mended = writeback.verify(
            self._writer, table, wanted, state, expected=written.labels_after(late)
        )
        return Settled(late.points + mended, int(np.count_nonzero(wanted == NOISE)))

    def _catch_up(self, found: FoundPoints, matching: Matching, wanted: Labels) -> Written:
        """Labels points that the assignment pass has not seen: they are new or were replaced.

        An empty slot shows both; the time of ingestion shows the points that were replaced after
        the pass and then written with their old label. ``wanted`` gets the new labels of the
        points of the table.
        """
        state, done = self._scope.state, Written()
        options = VectorScan(
            where=self._scope.late,
            vector=self._task.vector,
            fields=("clusters", "ingested_at"),
            block_size=self._config.block_size,
        )
        slots = writeback.written_slots(state)
        for block in self._store.scan(self._task.collection, options):
            active = slot_labels(block.payloads, state.clustering, state.pointer.active_slot)
            held = slot_labels(block.payloads, state.clustering, state.pointer.inactive_slot)
            labels = matching.named(found.rule.assign(block.ids, block.vectors, active).labels)
            rows = found.table.find(block.ids)
            known = rows >= 0
            done.lost.update(writeback.count_labels(wanted[rows[known]]))
            done.gained.update(writeback.count_labels(labels))
            wanted[rows[known]] = labels[known]
            for label, at in writeback.by_label(labels, np.nonzero(held != labels)[0]):
                self._writer.write(
                    [block.ids[i] for i in at],
                    dict.fromkeys(slots, label),
                    unless=writeback.replaced_since([block.payloads[i] for i in at]),
                )
                done.points += len(at)
        return done
