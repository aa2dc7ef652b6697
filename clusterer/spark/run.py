"""A run whose points stay in the store: counted, and written, by Spark tasks, slice by slice."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array

from clusterer.fits import Fit
from clusterer.runs.assign import Rule, Totals
from clusterer.runs.lease import Lease
from clusterer.runs.matching import Clusters, Matching, Overlap, match_overlap
from clusterer.runs.plan import Changes, Quality, Report, rand_index, report_of
from clusterer.runs.points import UNASSIGNED
from clusterer.runs.run import Run
from clusterer.runs.sampling import Sample
from clusterer.runs.task import Progress, RunContext, Task, not_enough
from clusterer.spark.fits import FitRequest, check_plan, fit_mllib
from clusterer.spark.passes import (
    Orders,
    SliceTotals,
    Written,
    clear_slice,
    count_slice,
    write_slice,
)
from shoal.errors import Conflict, Unsupported
from shoal.spark.cluster import SparkCluster
from shoal.spark.slices import Slice, slices_of, window_of
from shoal.store import NOISE, StoreConfig, VectorScan
from shoal.store.clusterings import State
from shoal.store.model import EVERYWHERE, Filter
from shoal.vectors import Labels

LEAST_POINTS: Final = 100_000
"""Of a slice: what a killed executor costs at most per core, some ten seconds of it."""
POINTS_PER_CLUSTER: Final = 100
"""Of a slice, on average, at least. One write is of one cluster's points in it, and writes of a
few points each have stalled servers (qdrant#4260); one result is K x D sums, for the driver."""
MOST_POINTS: Final = 1_000_000
"""Of a slice: those to be written wait in the executor, some 400 bytes each."""
_BLOCK_SIZE: Final = 1024
"""Points of one read: a server has no GIL to hold; larger ones gain nothing over gRPC."""
_ROUNDS: Final = 3
"""Passes of a verification, as in one process."""


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """What a run works with besides its context.

    ``record`` is told of the progress before every job, for who looks from another process.
    """

    cluster: SparkCluster
    store: StoreConfig
    bisecting: bool
    record: Callable[[Progress], object]


class SparkRun(Run):
    """A run under a held lease, over a Qdrant server, in a Spark application."""

    def __init__(self, task: Task, context: RunContext, lease: Lease, engine: SparkEngine) -> None:
        super().__init__(task, context, lease)
        self._engine = engine
        self._orders: Orders
        self._slices: list[Slice] = []
        self._totals: SliceTotals
        self._labels: Counter[int] = Counter()

    def _find(self, state: State, active: Clusters) -> Totals:
        task, config = self._task, self._context.config
        if task.noise_only:
            raise Unsupported("--engine spark clusters whole collections: noise_only is not for it")
        check_plan(task.fit, bisecting=self._engine.bisecting)
        with self._stage("sample"):
            count = self._context.store.count(task.collection)
            if count < task.fit.least_points:
                raise not_enough(task.fit, count, task.collection)
            cluster = self._engine.cluster
            share = min(1.0, task.sample_size / count)
            parts = max(cluster.parallelism, ceil(share * count / LEAST_POINTS))
            window = window_of(share, parts, seed=task.seed)
        with self._stage("fit"):
            fit = self._fit_sample(tuple(window), active)
        self._slices = self._cut(count, len(fit.model.centroids))
        # No fit here labels points itself, so the rule needs no sample to know them by.
        self._rule = Rule(fit, _NO_SAMPLE)
        self._orders = Orders(
            store=self._engine.store,
            collection=task.collection,
            vector=task.vector,
            state=state,
            run=task.run,
            fence=self._lease.fence,
            rule=self._rule,
            fields=task.naming.fields,
            block_size=_BLOCK_SIZE,
            write_chunk=config.write_chunk,
        )
        with self._stage("assign"):
            self._engine.record(self.progress)
            sample = ceil(config.silhouette_sample / len(self._slices))
            self._totals = cluster.reduce(
                functools.partial(count_slice, self._orders, sample),
                SliceTotals.join,
                self._slices,
                check=self._check,
                progress=self._share_of(count),
            )
        return self._totals

    def _fit_sample(self, window: tuple[Slice, ...], active: Clusters) -> Fit:
        task, engine = self._task, self._engine
        engine.record(self.progress)
        warm = active.centroids if task.warm_start and np.any(active.centroids) else None
        request = FitRequest(
            plan=task.fit,
            bisecting=engine.bisecting,
            store=engine.store,
            collection=task.collection,
            options=VectorScan(vector=task.vector, fields=(), block_size=_BLOCK_SIZE),
            window=window,
        )
        fit = fit_mllib(engine.cluster, request, warm=warm, check=self._check)
        self.progress.facts = dict(fit.facts)
        return fit

    def _cut(self, points: int, clusters: int) -> list[Slice]:
        """The slices of both passes: larger ones where there are many clusters."""
        size = min(MOST_POINTS, max(LEAST_POINTS, POINTS_PER_CLUSTER * clusters))
        return slices_of(max(2 * self._engine.cluster.parallelism, ceil(points / size)))

    def _share_of(self, points: int) -> Callable[[int, int], None]:
        """Progress in points, from that in tasks."""
        self.progress.total = points

        def advance(done: int, of: int) -> None:
            self._advance(points * done // of if of else 0)

        return advance

    def _match(self, state: State, active: Clusters, found: Totals) -> Matching:
        sizes = found.tally.sizes
        rows = {int(cluster): row for row, cluster in enumerate(active.ids)}
        old_sizes = np.zeros(len(active.ids), np.int64)
        entries: list[tuple[int, int, int]] = []
        for (label, row), amount in self._totals.active.items():
            if label in rows:
                old_sizes[rows[label]] += amount
                if row >= 0:
                    entries.append((rows[label], row, amount))
        at = np.array(entries, dtype=np.int64).reshape(-1, 3)
        counts = csc_array(
            (at[:, 2], (at[:, 0], at[:, 1])), shape=(len(active.ids), len(sizes)), dtype=np.int64
        )
        return match_overlap(
            Overlap(counts, old_sizes, sizes),
            active,
            found.centroids,
            next_id=state.next_cluster,
            thresholds=self._context.config.matching,
        )

    def _report(self, matching: Matching, quality: Quality) -> Report:
        totals = self._totals
        held, wanted, amounts = _columns(totals.active, matching)
        known = held != UNASSIGNED
        there, needed, waiting = _columns(totals.inactive, matching)
        changes = Changes(
            points=totals.points,
            known=int(amounts[known].sum()),
            moved=int(amounts[known & (held != wanted)].sum()),
            to_write=int(waiting[there != needed].sum()),
            noise=int(amounts[wanted == NOISE].sum()),
            agreement=rand_index(amounts[known], held[known], wanted[known])
            if known.any()
            else None,
            sizes=totals.tally.sizes[totals.tally.sizes > 0],
        )
        return report_of(changes, matching.lineage, quality)

    def _write(self, state: State, matching: Matching, began: float) -> int:
        del state, began  # the tasks have their orders, and look at each point's own time
        done = self._pass(matching, EVERYWHERE)
        self._labels = done.labels
        return done.written

    def _settle(self, state: State, matching: Matching, began: float) -> None:
        if self._context.store.count(self._task.collection) > self._totals.points:
            self._engine.cluster.reduce(
                functools.partial(clear_slice, self._orders),
                operator.add,
                self._slices,
                check=self._check,
            )
        late = self._pass(matching, self._late(state, began))
        self.progress.points_written += late.written
        self._labels.update(late.gained)
        self._labels.subtract(late.lost)
        for _ in range(_ROUNDS):
            if self._held(state) == +self._labels:
                return
            # Points were replaced or deleted under the run, or a write was lost: look at all.
            again = self._pass(matching, EVERYWHERE)
            self.progress.points_written += again.written
            self._labels = again.labels
            if not again.written:
                return
        raise Conflict(
            f"clustering {state.clustering!r}: {state.inactive_field} still differs from the plan "
            f"after {_ROUNDS} rounds: is another process writing it?"
        )

    def _held(self, state: State) -> dict[int | str, int]:
        """How many points the inactive slot gives each label."""
        return self._context.store.facet(self._task.collection, state.inactive_field)

    def _pass(self, matching: Matching, where: Filter) -> Written:
        """Writes what differs among the points that ``where`` selects, in all slices."""
        self._engine.record(self.progress)
        return self._engine.cluster.reduce(
            functools.partial(write_slice, self._orders, matching.ids, where),
            Written.join,
            self._slices,
            check=self._check,
            progress=self._share_of(self._totals.points),
        )

    def _noise(self) -> int:
        return self._labels[NOISE]


def _columns(
    pairs: Counter[tuple[int, int]], matching: Matching
) -> tuple[Labels, Labels, npt.NDArray[np.int64]]:
    """``pairs`` as arrays (M,): the slot's label, the id that is wanted, and how many points."""
    found = np.array([(a, b, n) for (a, b), n in pairs.items()], dtype=np.int64).reshape(-1, 3)
    labels = found[:, :2].astype(np.int32)
    return labels[:, 0], matching.named(labels[:, 1]), found[:, 2]


_NO_SAMPLE: Final = Sample(np.zeros(0, np.void), np.zeros((0, 0), np.float32))
