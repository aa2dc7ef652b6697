"""Starts the runs that schedules ask for. Blocking; the service calls it every second or so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from clusterer.upkeep import schedule as schedules
from shoal.errors import Cancelled, ShoalError, StoreUnavailable
from shoal.store.clusterings import Clusterings
from shoal.store.gateway import Store
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Drift

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What it works with: ``start`` begins a run, ``drift`` says how a clustering has aged."""

    store: Store
    start: Callable[[pb.CreateRunRequest], pb.Run]
    drift: Callable[[str, str], Drift | None]

    def tick(self, now: float) -> None:
        """Starts what is due at ``now`` (Unix seconds) in every collection.

        What cannot start, because another run is under way or there are too few points, is logged
        and left until its next time; what the store or a shutdown prevents stays due.
        """
        for collection in self.store.collections():
            clusterings = Clusterings(self.store, collection.name)
            for name in clusterings.due_schedules(now):
                try:
                    self._look(clusterings, name, now)
                except ShoalError as exc:
                    where = f"{collection.name}/{name}"
                    _LOG.warning("the schedule of %s waits: %s", where, exc.message)
                except Exception:  # noqa: BLE001 - one bad record must not stop the others
                    _LOG.exception("the schedule of %s/%s", collection.name, name)

    def _look(self, clusterings: Clusterings, name: str, now: float) -> None:
        found = schedules.load(clusterings, name)
        if found is None or found.next_at > now:
            return
        run = self._fire(clusterings.collection, name, found)
        moved = replace(found.after(now), last_run=run or found.last_run)
        schedules.advance(clusterings, name, found, moved)

    def _fire(self, collection: str, clustering: str, schedule: schedules.Schedule) -> str:
        """The id of the run that began; empty if none did.

        Raises:
            Cancelled, StoreUnavailable: it could not be tried.
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
