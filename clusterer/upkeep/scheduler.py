"""Starts scheduled runs. Blocking; the service calls it about once a second."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from clusterer.upkeep import schedule as schedules
from clusterer.upkeep.unchanged import Unchanged
from shoal.clock import SKEW_S
from shoal.errors import Cancelled, ShoalError, StoreUnavailable
from shoal.store.clusterings import Clusterings
from shoal.store.gateway import Store
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Drift

_LOG = logging.getLogger(__name__)


_MEND_EVERY_S: Final = 60.0
"""Time between two looks for schedules that a wrong clock put off."""


@dataclass(slots=True)
class Scheduler:
    """Starts the runs of one store: ``start`` begins a run, ``drift`` measures a clustering."""

    store: Store
    start: Callable[[pb.CreateRunRequest], pb.Run]
    drift: Callable[[str, str], Drift | None]
    _mended_at: float = field(default=-math.inf, init=False)
    _known: Unchanged[dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        """Remembers nothing yet."""
        self._known = Unchanged(self.store)

    def tick(self, now: float) -> None:
        """Starts the runs that are due at ``now`` (Unix seconds) in every collection.

        A run that cannot start, because another one is under way or there are too few points, is
        logged and left until its next time. A run that the store or a shutdown prevents stays due.
        """
        mending = not 0 <= now - self._mended_at < _MEND_EVERY_S  # the clock may go back, too
        if mending:
            self._mended_at = now
        for collection in self.store.collections():
            clusterings = Clusterings(self.store, collection.name)
            for name, next_at in sorted(self._times(clusterings).items()):
                if next_at > now and not (mending and next_at > now + SKEW_S):
                    continue
                try:
                    self._start_if_due(clusterings, name, now)
                except ShoalError as exc:
                    where = f"{collection.name}/{name}"
                    _LOG.warning("the schedule of %s waits: %s", where, exc.message)
                except Exception:  # noqa: BLE001 - one bad record must not stop the others
                    _LOG.exception("the schedule of %s/%s", collection.name, name)

    def _times(self, clusterings: Clusterings) -> dict[str, float]:
        """When each schedule of a collection is due, read if the collection has changed."""
        found = self._known.get(clusterings.collection)
        if found is None:
            version = self._known.version(clusterings.collection)
            found = clusterings.schedule_times()
            self._known.keep(clusterings.collection, version, found)
        return found

    def _start_if_due(self, clusterings: Clusterings, name: str, now: float) -> None:
        found = schedules.load(clusterings, name)
        if found is None:
            return
        if found.next_at > now:
            sooner = found.within_reach(now)
            if sooner is not found:
                where = f"{clusterings.collection}/{name}"
                _LOG.warning("the schedule of %s was put off by a wrong clock: mended", where)
                schedules.advance(clusterings, name, found, sooner)
            return
        run = self._start(clusterings.collection, name, found)
        moved = replace(found.after(now), last_run=run or found.last_run)
        schedules.advance(clusterings, name, found, moved)

    def _start(self, collection: str, clustering: str, schedule: schedules.Schedule) -> str:
        """The id of the run that began; empty if none did.

        Raises:
            Cancelled, StoreUnavailable: the start could not be tried.
        """
        aged = self.drift(collection, clustering) if schedule.only_if_due else None
        if aged is not None and not aged.due:
            return ""
        request = pb.CreateRunRequest()
        request.CopyFrom(schedule.request)
        request.collection, request.clustering = collection, clustering
        request.request_id = schedule.request_id(collection, clustering)
        try:
            return self.start(request).id
        except (Cancelled, StoreUnavailable):
            raise
        except ShoalError as exc:
            _LOG.warning("scheduled run of %s/%s: %s", collection, clustering, exc.message)
        return ""
