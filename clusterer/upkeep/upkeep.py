"""The clusterer's own tasks over all clusterings: new points, schedules, drift. Blocking."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

from prometheus_client import Counter, Gauge

from clusterer.config import ClustererConfig
from clusterer.runs.newcomers import Newcomers
from clusterer.runs.runner import Runner
from clusterer.upkeep import ageing
from clusterer.upkeep.scheduler import Scheduler
from clusterer.upkeep.unchanged import Unchanged
from shoal.errors import NotFound, ShoalError
from shoal.store.clusterings import Clusterings
from shoal.store.gateway import Store
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Drift

_ASSIGNED = Counter("shoal_clusterer_newcomers", "Points assigned between runs.")
_LAST_LOOK = Gauge("shoal_clusterer_last_look_seconds", "When new points were last looked for.")


class Upkeep:
    """Does each task once per call, for a caller that repeats it.

    ``start`` begins a run; ``check`` is called often and raises when it is time to stop.
    """

    def __init__(
        self,
        runner: Runner,
        store: Store,
        config: ClustererConfig,
        *,
        start: Callable[[pb.CreateRunRequest], pb.Run],
        check: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._store = store
        self._config = config
        self._check = check
        self._newcomers: dict[tuple[str, str], Newcomers] = {}
        self._settled: Unchanged[bool] = Unchanged(store)
        self._drifts: ageing.Known = Unchanged(store)
        self._scheduler = Scheduler(store, start, self._drift)
        self._measured_at = -math.inf

    def assign_newcomers(self) -> None:
        """Assigns the new points of every clustering; raises the first failure at the end."""
        failures = list[ShoalError]()
        for collection in self._store.collections():
            if self._settled.get(collection.name):
                continue
            version, settled = self._settled.version(collection.name), True
            for clustering in collection.clusterings:
                try:
                    assigned = self._assign_in(collection.name, clustering)
                    settled = settled and assigned == 0
                    _ASSIGNED.inc(assigned or 0)
                except ShoalError as exc:
                    failures.append(exc)
                    settled = False
            if settled:
                self._settled.keep(collection.name, version, value=True)
        if failures:
            raise failures[0]
        _LAST_LOOK.set_to_current_time()

    def keep_schedules(self) -> None:
        """Starts the scheduled runs that are due, and exports drift every ``drift_interval_s``."""
        self._scheduler.tick(time.time())
        if time.monotonic() - self._measured_at >= self._config.drift_interval_s:
            self._measured_at = time.monotonic()
            ageing.export(self._store, self._drifts)

    def _assign_in(self, collection: str, clustering: str) -> int | None:
        """The number of points that got a cluster; None if a cutover is under way."""
        lock = self._runner.cutover_lock(collection, clustering)
        if not lock.acquire(blocking=False):
            return None  # the cutover assigns new points itself
        try:
            key = (collection, clustering)
            if key not in self._newcomers:
                self._newcomers[key] = Newcomers(self._store, collection, clustering)
            return self._newcomers[key].assign(
                block_size=self._config.block_size, check=self._check
            )
        finally:
            lock.release()

    def _drift(self, collection: str, clustering: str) -> Drift | None:
        state = Clusterings(self._store, collection).state(clustering)
        if state.pointer.active_run:
            with contextlib.suppress(NotFound):  # then there is nothing to compare with
                return ageing.measure(self._store, collection, state)
        return None
