"""Starts the runs that schedules ask for. Blocking; the service calls it every second or so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from clusterer import schedule as schedules
from clusterer.drift import Drift
from shoal.errors import LeaseHeld, NotEnoughPoints, ShoalError
from shoal.store.clusterings import Clusterings
from shoal.store.gateway import Store
from shoal.v1 import clusterer_pb2 as pb

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What it works with: ``start`` begins a run, ``drift`` says how a clustering has aged."""

    store: Store
    start: Callable[[pb.CreateRunRequest], pb.Run]
    drift: Callable[[str, str], Drift | None]

    def tick(self, now: float) -> None:
        """Starts what is due at ``now`` (Unix seconds) in every collection.

        One that cannot start, because another run is under way or there are too few points, is
        logged, and tried again at its next time.
        """
        for collection in self.store.collections():
            clusterings = Clusterings(self.store, collection.name)
            for name in collection.clusterings:
                found = schedules.load(clusterings, name)
                if found is not None and found.next_at <= now:
                    run = self._fire(collection.name, name, found)
                    moved = found.after(now)
                    # Another process may have removed or changed it meanwhile.
                    if schedules.load(clusterings, name) == found:
                        schedules.save(
                            clusterings, name, replace(moved, last_run=run or found.last_run)
                        )

    def _fire(self, collection: str, clustering: str, schedule: schedules.Schedule) -> str:
        """The id of the run that began; empty if none did."""
        aged = self.drift(collection, clustering) if schedule.only_if_due else None
        if aged is not None and not aged.due:
            return ""
        request = pb.CreateRunRequest()
        request.CopyFrom(schedule.request)
        request.collection, request.clustering = collection, clustering
        request.request_id = schedule.request_id(collection, clustering)
        try:
            return self.start(request).id
        except (LeaseHeld, NotEnoughPoints) as exc:
            _LOG.info("scheduled run of %s/%s: %s", collection, clustering, exc.message)
        except ShoalError as exc:
            _LOG.warning("scheduled run of %s/%s: %s", collection, clustering, exc.message)
        return ""
