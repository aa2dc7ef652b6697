"""The schedules of clusterings: one record each."""

from __future__ import annotations

from shoal.store.clusterings.records import Records
from shoal.store.model import Equals, Filter, IdIn, Payload, Point, Range, Scan, point_id


class Schedules(Records):
    """The schedules of a collection's clusterings."""

    def put_schedule(self, clustering: str, payload: Payload | None) -> None:
        """Stores the schedule of ``clustering``; None removes it."""
        if payload is None:
            self._store.delete(self._records, Filter(must=(IdIn([_schedule_id(clustering)]),)))
            return
        record = {**payload, "kind": "schedule", "clustering": clustering}
        self._store.upsert(self._records, [Point(_schedule_id(clustering), {}, record)])

    def schedule_times(self) -> dict[str, float]:
        """The ``next_at`` of every stored schedule, by clustering."""
        where = Filter(must=(Equals("kind", "schedule"),))
        options = Scan(where=where, fields=("clustering", "next_at"))
        found = [p for block in self._store.scan(self._records, options) for p in block.payloads]
        return {str(p["clustering"]): float(p["next_at"]) for p in found}  # type: ignore[arg-type]

    def move_schedule(self, clustering: str, expected: float, changes: Payload) -> None:
        """Sets ``changes`` in the stored schedule if its ``next_at`` is still ``expected``."""
        where = Filter(
            must=(
                IdIn([_schedule_id(clustering)]),
                Range("next_at", gte=expected, lte=expected),
            )
        )
        self._store.set_payload(self._records, changes, where=where)

    def schedule(self, clustering: str) -> Payload | None:
        """The stored schedule of ``clustering``; None if it has none."""
        (record,) = self._store.retrieve(self._records, [_schedule_id(clustering)])
        return record.payload if record else None


def _schedule_id(clustering: str) -> str:
    return point_id(f"schedule/{clustering}")
