"""Schedules of runs: their records, and when each is next due.

The record lies in the store beside the clustering, so all clusterer processes see the same one. The
id of a scheduled run is made of the clustering and the time that it was scheduled for. Of several
processes that wake at once, the lease lets one begin, and the others find its run.
"""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from croniter import croniter
from google.protobuf.json_format import MessageToDict, ParseDict

from shoal.clock import SKEW_S
from shoal.errors import InvalidArgument
from shoal.store.clusterings import Clusterings
from shoal.store.model import Payload
from shoal.v1 import clusterer_pb2 as pb

LEAST_INTERVAL_S: Final = 1.0
"""The shortest interval between two runs."""
MOST_INTERVAL_S: Final = 10 * 365 * 86_400.0
"""The longest interval between two runs: ten years."""
_PART: Final = r"(\*|\d+(-\d+)?|[A-Za-z]{3}(-[A-Za-z]{3})?)(/\d+)?"
_FIELD: Final = re.compile(rf"{_PART}(,{_PART})*")
"""A field of plain cron. The parser knows more (random and last days), which nobody expects."""
_NAMESPACE: Final = uuid.UUID("5f1b8f43-0c4e-5b8e-9a50-6f0f8d0f2c11")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One clustering's schedule. Times are Unix seconds.

    Attributes:
        request: The request for each run.
        cron: Five fields, in UTC; empty for an interval.
        interval_s: Without ``cron``, the time from one run to the next.
        only_if_due: Whether a run starts only when the drift makes it due.
        next_at: When the next run starts.
        last_run: The run that was started last; empty for none.
    """

    request: pb.CreateRunRequest
    cron: str
    interval_s: float
    only_if_due: bool
    next_at: float
    last_run: str = ""

    def after(self, now: float) -> Schedule:
        """This, with ``next_at`` past ``now``: of all times that were missed, one run makes up."""
        return replace(self, next_at=next_time(self.cron, self.interval_s, self.next_at, now))

    def within_reach(self, now: float) -> Schedule:
        """This, or this due sooner if ``next_at`` is past the first time that there can be.

        A clock that was wrong, or that went back, would else put off the runs for as long.
        """
        latest = next_time(self.cron, self.interval_s, now + SKEW_S, now + SKEW_S)
        if self.next_at <= latest:
            return self
        return replace(self, next_at=next_time(self.cron, self.interval_s, now, now))

    def request_id(self, collection: str, clustering: str) -> str:
        """The id of the request that is due at ``next_at``; every process makes the same."""
        return str(uuid.uuid5(_NAMESPACE, f"{collection}/{clustering}/{self.next_at!r}"))

    def message(self) -> pb.Schedule:
        """The schedule as a message."""
        made = pb.Schedule(
            request=self.request, only_if_due=self.only_if_due, last_run=self.last_run
        )
        if self.cron:
            made.cron = self.cron
        else:
            made.interval.FromNanoseconds(round(self.interval_s * 1e9))
        made.next_at.FromNanoseconds(round(self.next_at * 1e9))
        return made

    def answer(self) -> pb.Schedule:
        """The message without its vocabulary, whose vectors may be megabytes."""
        made = self.message()
        made.request.naming.ClearField("vocabulary")
        return made


def next_time(cron: str, interval_s: float, last: float, now: float) -> float:
    """The first time past ``now`` that ``cron`` names, or that is n intervals past ``last``.

    Raises:
        InvalidArgument: the expression names no time.
    """
    if cron:
        try:
            found: datetime = croniter(cron, datetime.fromtimestamp(now, UTC)).get_next(datetime)
        except (ValueError, KeyError) as exc:
            msg = f"cron: expected minute, hour, day, month and weekday, got {cron!r}: {exc}"
            raise InvalidArgument(msg, field="schedule.cron") from exc
        return found.timestamp()
    return last + interval_s * max(1, math.floor((now - last) / interval_s) + 1)


def from_message(message: pb.Schedule, now: float) -> Schedule:
    """The schedule in ``message``, set at ``now``.

    Raises:
        InvalidArgument: there is neither cron nor interval, or it is out of range.
    """
    interval_s = message.interval.ToNanoseconds() / 1e9
    match message.WhichOneof("when"):
        case "cron":
            fields = message.cron.split()
            if len(fields) != 5 or not all(map(_FIELD.fullmatch, fields)):  # noqa: PLR2004 - cron's fields
                msg = (
                    "cron: expected five fields of numbers, names, *, lists, ranges and steps, "
                    f"got {message.cron!r}"
                )
                raise InvalidArgument(msg, field="schedule.cron")
        case "interval":
            if not LEAST_INTERVAL_S <= interval_s <= MOST_INTERVAL_S:
                msg = (
                    f"interval: expected {LEAST_INTERVAL_S:g} to {MOST_INTERVAL_S:g} s, "
                    f"got {interval_s:g} s"
                )
                raise InvalidArgument(msg, field="schedule.interval")
        case _:
            msg = "schedule: expected cron or interval, got neither"
            raise InvalidArgument(msg, field="schedule.when")
    request = pb.CreateRunRequest()
    request.CopyFrom(message.request)
    for field in ("collection", "clustering", "request_id"):
        request.ClearField(field)
    first = next_time(message.cron, interval_s or LEAST_INTERVAL_S, now, now)
    return Schedule(request, message.cron, interval_s, message.only_if_due, first)


def load(clusterings: Clusterings, clustering: str) -> Schedule | None:
    """The schedule of ``clustering``; None if it has none."""
    payload = clusterings.schedule(clustering)
    if payload is None:
        return None
    record: Any = payload["record"]
    message = ParseDict(record, pb.Schedule(), ignore_unknown_fields=True)
    return Schedule(
        message.request,
        message.cron,
        message.interval.ToNanoseconds() / 1e9,
        message.only_if_due,
        float(payload["next_at"]),  # type: ignore[arg-type]
        str(payload["last_run"]),
    )


def advance(clusterings: Clusterings, clustering: str, schedule: Schedule, moved: Schedule) -> None:
    """Stores the times of ``moved``, unless ``schedule`` was changed or removed meanwhile."""
    changes: Payload = {"next_at": moved.next_at, "last_run": moved.last_run}
    clusterings.move_schedule(clustering, schedule.next_at, changes)


def save(clusterings: Clusterings, clustering: str, schedule: Schedule | None) -> None:
    """Stores ``schedule``; None removes it."""
    payload: Payload | None = None
    if schedule is not None:
        record = MessageToDict(schedule.message(), preserving_proto_field_name=True)
        payload = {
            "record": record,
            "next_at": schedule.next_at,
            "last_run": schedule.last_run,
        }
    clusterings.put_schedule(clustering, payload)
