"""The engine that leaves a run's points in the store: Spark tasks count and write them by slice."""

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
from clusterer.runs.assign import Rule
from clusterer.runs.engine import Scope, Settled
from clusterer.runs.matching import Matching, Overlap
from clusterer.runs.plan import Changes, rand_index
from clusterer.runs.points import UNASSIGNED
from clusterer.runs.sampling import Sample
from clusterer.runs.task import RunProgress, not_enough
from clusterer.runs.writeback import VERIFY_ROUNDS, Written, still_differs
from clusterer.spark.fits import FitRequest, check_plan, fit_mllib
from clusterer.spark.passes import Orders, SliceTotals, clear_slice, count_slice, write_slice
from shoal.errors import Unsupported
from shoal.spark.cluster import SparkCluster
from shoal.spark.slices import Slice, slices_of, window_of
from shoal.store import NOISE, StoreConfig, VectorScan
from shoal.store.model import EVERYWHERE, Filter
from shoal.vectors import Labels

LEAST_POINTS: Final = 100_000
"""The fewest points of a slice. A killed executor costs at most one slice per core, about ten
seconds at this size."""
POINTS_PER_CLUSTER: Final = 100
"""The fewest points per cluster in a slice, on average. One write is of one cluster's points in a
slice, and writes of a few points each have stalled servers (qdrant#4260). One slice's result is
K x D sums, which the driver gets."""
MOST_POINTS: Final = 1_000_000
"""The most points of a slice: points to write wait in the executor, some 400 bytes each."""
_BLOCK_SIZE: Final = 1024
"""Points of one read: a server holds no GIL, and larger reads gain nothing over gRPC."""


@dataclass(frozen=True, slots=True)
class SparkSettings:
    """What a run in Spark needs besides its scope.

    Attributes:
        cluster: The open application.
        store: How tasks open the store.
        bisecting: Whether k-means bisects.
        record: Called with the progress before every job, for readers in another process.
    """

    cluster: SparkCluster
    store: StoreConfig
    bisecting: bool
    record: Callable[[RunProgress], object]


@dataclass(frozen=True, slots=True)
class CountedPoints:
    """The points of a run, counted where they lie in the store.

    Attributes:
        orders: The orders of every task.
        totals: The sums over the points.
        slices: The slices of every pass.
    """

    orders: Orders
    totals: SliceTotals
    slices: tuple[Slice, ...]

    @property
    def rule(self) -> Rule:
        """Gives any point its cluster."""
        return self.orders.rule


class SparkEngine:
    """Runs over a Qdrant server, in a Spark application."""

    def __init__(self, settings: SparkSettings, scope: Scope) -> None:
        self._settings = settings
        self._scope = scope
        self._store = scope.context.store
        self._task = scope.task
        self._tracker = scope.tracker

    def find(self) -> CountedPoints:
        """As ``Engine.find``."""
        task, cluster, config = self._task, self._settings.cluster, self._scope.context.config
        if task.noise_only:
            raise Unsupported("--engine spark clusters whole collections: noise_only is not for it")
        check_plan(task.fit_plan, bisecting=self._settings.bisecting)
        with self._tracker.stage("sample"):
            count = self._store.count(task.collection)
            if count < task.fit_plan.least_points:
                raise not_enough(task.fit_plan, count, task.collection)
            share = min(1.0, task.sample_size / count)
            parts = max(cluster.parallelism, ceil(share * count / LEAST_POINTS))
            window = window_of(share, parts, seed=task.seed)
        with self._tracker.stage("fit"):
            fit = self._fit(tuple(window))
        slices = self._cut(count, len(fit.model.centroids))
        orders = self._orders(fit)
        with self._tracker.stage("assign"):
            self._settings.record(self._tracker.progress)
            sample = ceil(config.silhouette_sample / len(slices))
            totals = cluster.reduce(
                functools.partial(count_slice, orders, sample),
                SliceTotals.join,
                slices,
                check=self._tracker.check,
                progress=self._progress_in(count),
            )
        return CountedPoints(orders, totals, slices)

    def _fit(self, window: tuple[Slice, ...]) -> Fit:
        task, settings = self._task, self._settings
        settings.record(self._tracker.progress)
        request = FitRequest(
            plan=task.fit_plan,
            bisecting=settings.bisecting,
            store=settings.store,
            collection=task.collection,
            options=VectorScan(vector=task.vector, fields=(), block_size=_BLOCK_SIZE),
            window=window,
        )
        fit = fit_mllib(settings.cluster, request, warm=self._scope.warm, check=self._tracker.check)
        self._tracker.progress.facts = dict(fit.facts)
        return fit

    def _cut(self, points: int, clusters: int) -> tuple[Slice, ...]:
        """The slices of every pass: larger ones where there are many clusters."""
        size = min(MOST_POINTS, max(LEAST_POINTS, POINTS_PER_CLUSTER * clusters))
        parts = max(2 * self._settings.cluster.parallelism, ceil(points / size))
        return tuple(slices_of(parts))

    def _orders(self, fit: Fit) -> Orders:
        task = self._task
        return Orders(
            store=self._settings.store,
            collection=task.collection,
            vector=task.vector,
            state=self._scope.state,
            run=task.run,
            fence=self._scope.fence,
            # No fit of MLlib labels points itself, so the rule needs no sample.
            rule=Rule(fit, _NO_SAMPLE),
            fields=task.naming.fields,
            block_size=_BLOCK_SIZE,
            write_chunk=self._scope.context.config.write_chunk,
        )

    def _progress_in(self, points: int) -> Callable[[int, int], None]:
        """A listener that turns progress in tasks into progress in ``points``."""
        self._tracker.expect(points)

        def advance(done: int, of: int) -> None:
            self._tracker.advance(points * done // of if of else 0)

        return advance

    def overlap(self, found: CountedPoints) -> Overlap:
        """As ``Engine.overlap``."""
        ids, sizes = self._scope.active.ids, found.totals.tally.sizes
        rows = {cluster: row for row, cluster in enumerate(ids.tolist())}
        old_sizes = np.zeros(len(ids), np.int64)
        entries: list[tuple[int, int, int]] = []
        for (label, row), amount in found.totals.active.items():
            if label in rows:
                old_sizes[rows[label]] += amount
                if row >= 0:
                    entries.append((rows[label], row, amount))
        at = np.array(entries, dtype=np.int64).reshape(-1, 3)
        shape = (len(ids), len(sizes))
        counts = csc_array((at[:, 2], (at[:, 0], at[:, 1])), shape=shape, dtype=np.int64)
        return Overlap(counts, old_sizes, sizes)

    def changes(self, found: CountedPoints, matching: Matching) -> Changes:
        """As ``Engine.changes``."""
        totals = found.totals
        held, wanted, amounts = _columns(totals.active, matching)
        known = held != UNASSIGNED
        there, needed, waiting = _columns(totals.inactive, matching)
        return Changes(
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

    def write(self, found: CountedPoints, matching: Matching) -> Written:
        """As ``Engine.write``."""
        return self._pass(found, matching, EVERYWHERE)

    def settle(self, found: CountedPoints, matching: Matching, written: Written) -> Settled:
        """As ``Engine.settle``."""
        state = self._scope.state
        if self._store.count(self._task.collection) > found.totals.points:
            self._settings.cluster.reduce(
                functools.partial(clear_slice, found.orders),
                operator.add,
                found.slices,
                check=self._tracker.check,
            )
        late = self._pass(found, matching, self._scope.late)
        points, labels = late.points, written.labels_after(late)
        for _ in range(VERIFY_ROUNDS):
            if self._store.facet(self._task.collection, state.inactive_field) == labels:
                return Settled(points, labels[NOISE])
            # Points were replaced or deleted under the run, or a write was lost: look at all.
            again = self._pass(found, matching, EVERYWHERE)
            points, labels = points + again.points, again.labels
            if not again.points:
                return Settled(points, labels[NOISE])
        raise still_differs(state)

    def _pass(self, found: CountedPoints, matching: Matching, where: Filter) -> Written:
        """Writes the labels that differ among the points that ``where`` selects, in all slices."""
        self._settings.record(self._tracker.progress)
        return self._settings.cluster.reduce(
            functools.partial(write_slice, found.orders, matching.ids, where),
            Written.join,
            found.slices,
            check=self._tracker.check,
            progress=self._progress_in(found.totals.points),
        )


def _columns(
    pairs: Counter[tuple[int, int]], matching: Matching
) -> tuple[Labels, Labels, npt.NDArray[np.int64]]:
    """``pairs`` as arrays (M,): the slot's label, the wanted id, and the number of points."""
    found = np.array([(a, b, n) for (a, b), n in pairs.items()], dtype=np.int64).reshape(-1, 3)
    labels = found[:, :2].astype(np.int32)
    return labels[:, 0], matching.named(labels[:, 1]), found[:, 2]


_NO_SAMPLE: Final = Sample(np.zeros(0, np.void), np.zeros((0, 0), np.float32))
