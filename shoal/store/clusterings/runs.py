"""The records of runs: the request, the plan and the end of each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shoal.clock import seen_through
from shoal.errors import NotFound
from shoal.store.clusterings.records import Records
from shoal.store.model import Equals, Filter, IdIn, Payload, Point, Scan, point_id


class Runs(Records):
    """The records of a collection's runs."""

    def put_run(self, run: str, payload: Payload) -> None:
        """Stores the record of ``run``; ``payload`` must carry clustering and created_at."""
        self._store.upsert(
            self._records, [Point(_run_id(run), {}, {**payload, "kind": "run", "run": run})]
        )

    def drop_runs(self, runs: Sequence[str]) -> None:
        """Forgets the records of ``runs``; unknown ones are ignored."""
        if runs:
            self._store.delete(self._records, Filter(must=(IdIn([_run_id(run) for run in runs]),)))

    def run(self, run: str) -> Payload:
        """The record of ``run``.

        Raises:
            NotFound: there is none.
        """
        (record,) = self._store.retrieve(self._records, [_run_id(run)])
        if record is None:
            self._store.collection(self.collection)
            raise NotFound(f"collection {self.collection!r} has no run {run!r}", run=run)
        return record.payload

    def runs(self, clustering: str = "") -> list[Payload]:
        """The records of all runs, or of one clustering's, newest first.

        Runs that began in the future, by a clock that was wrong, are the oldest.
        """
        self._store.collection(self.collection)
        where = Filter(must=(Equals("kind", "run"),))
        if clustering:
            where = where.also(Equals("clustering", clustering))
        found = [p for b in self._store.scan(self._records, Scan(where=where)) for p in b.payloads]
        now = time.time()

        def newest_first(record: Payload) -> tuple[float, str]:
            created_at = float(record["created_at"])  # type: ignore[arg-type]
            return -seen_through(created_at, now), str(record["run"])

        return sorted(found, key=newest_first)


def _run_id(run: str) -> str:
    return point_id(f"run/{run}")
