from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

import pytest
from reclustering import Bench

from clusterer.upkeep import schedule as schedules
from clusterer.upkeep.drift import Baseline, compare
from clusterer.upkeep.schedule import Schedule, from_message, next_time
from clusterer.upkeep.scheduler import Scheduler
from shoal.errors import Cancelled, InvalidArgument, LeaseHeld, StoreUnavailable
from shoal.store.model import Payload
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Drift

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC).timestamp()


def wanted(**when: object) -> pb.Schedule:
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=3))
    request = pb.CreateRunRequest(
        collection="ignored", clustering="ignored", request_id="ignored", config=config
    )
    return pb.Schedule(request=request, **when)  # type: ignore[arg-type]


def every(seconds: float) -> pb.Schedule:
    message = wanted()
    message.interval.FromNanoseconds(round(seconds * 1e9))
    return message


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", datetime(2026, 3, 2, 2, 30, tzinfo=UTC)),
        ("*/15 * * * *", datetime(2026, 3, 1, 12, 15, tzinfo=UTC)),
        ("0 0 * * 1", datetime(2026, 3, 2, tzinfo=UTC)),
        ("0 0 29 2 *", datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_cron_names_the_next_time_in_utc(cron: str, expected: datetime) -> None:
    """Five fields, after cron's own rules, whatever the zone of the machine."""
    assert next_time(cron, 0, NOW, NOW) == expected.timestamp()


def test_interval_that_was_missed_is_made_up_once() -> None:
    """After ten intervals asleep, the next time lies ahead and on the old grid."""
    assert next_time("", 60, NOW, NOW) == NOW + 60
    assert next_time("", 60, NOW, NOW + 605) == NOW + 660
    assert next_time("", 60, NOW, NOW + 600) == NOW + 660


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (wanted(), "expected cron or interval"),
        (every(0.5), "expected 1 to 3.1536e+08 s, got 0.5"),
        (wanted(cron="* * * *"), "five fields"),
        (wanted(cron="61 * * * *"), "61"),
        (wanted(cron="0 0 31 2 *"), "0 0 31 2"),
        (wanted(cron="R R * * *"), "five fields of numbers"),
        (every(1e10), "got 1e+10"),
    ],
)
def test_schedule_out_of_range_is_refused(message: pb.Schedule, words: str) -> None:
    """What was expected and what was got."""
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        from_message(message, NOW)


def test_schedule_survives_the_store(bench: Bench) -> None:
    """What was saved is loaded; removed, there is none."""
    bench.clusterings.ensure("default")
    made = from_message(wanted(cron="30 2 * * *", only_if_due=True), NOW)
    assert (made.request.collection, made.request.request_id) == ("", "")
    schedules.save(bench.clusterings, "default", made)
    assert schedules.load(bench.clusterings, "default") == made
    schedules.save(bench.clusterings, "default", None)
    assert schedules.load(bench.clusterings, "default") is None


class Desk:
    """Where the scheduler's requests end up."""

    def __init__(self, bench: Bench, *, fail: Exception | None = None, due: bool = True) -> None:
        self.asked: list[pb.CreateRunRequest] = []
        self._fail = fail
        self._due = due
        self.scheduler = Scheduler(bench.store, self.start, self.drift)
        self._numbers = itertools.count()

    def start(self, request: pb.CreateRunRequest) -> pb.Run:
        self.asked.append(request)
        if self._fail is not None:
            raise self._fail
        return pb.Run(id=f"run-{next(self._numbers)}")

    def drift(self, collection: str, clustering: str) -> Drift:
        assert (collection, clustering) == ("toys", "default")
        grown = {0: 100 + (80 if self._due else 0), 1: 100 + (80 if self._due else 0)}
        return compare(Baseline({0: 100, 1: 100}, 0.9), grown, confidence=0.1)


def put(bench: Bench, message: pb.Schedule) -> Schedule:
    bench.clusterings.ensure("default")
    made = from_message(message, NOW)
    schedules.save(bench.clusterings, "default", made)
    return made


def test_scheduler_starts_what_is_due_once(bench: Bench) -> None:
    """Nothing before its time, one run at it, the next an interval later."""
    put(bench, every(60))
    desk = Desk(bench)
    for after in (0, 59):
        desk.scheduler.tick(NOW + after)
    assert desk.asked == []
    for after in (60, 61, 119):
        desk.scheduler.tick(NOW + after)
    (request,) = desk.asked
    assert (request.collection, request.clustering) == ("toys", "default")
    assert request.config.kmeans.k == 3
    desk.scheduler.tick(NOW + 120)
    assert len({one.request_id for one in desk.asked}) == 2
    stored = schedules.load(bench.clusterings, "default")
    assert stored is not None
    assert stored.last_run == "run-1"


@pytest.mark.parametrize("fail", [Cancelled("shutting down"), StoreUnavailable("away")])
def test_scheduler_keeps_what_it_could_not_try(bench: Bench, fail: Exception) -> None:
    """A shutdown or an absent store leaves the run due, for the next look or another process."""
    put(bench, every(60))
    Desk(bench, fail=fail).scheduler.tick(NOW + 60)
    desk = Desk(bench)
    desk.scheduler.tick(NOW + 61)
    assert len(desk.asked) == 1


def test_scheduler_goes_on_past_a_record_that_cannot_be_read(bench: Bench) -> None:
    """One bad record is logged; the schedules of other clusterings run."""
    put(bench, every(60))
    bench.clusterings.ensure("broken")
    bad: Payload = {"record": {"cron": 7}, "next_at": NOW, "last_run": ""}
    bench.clusterings.put_schedule("broken", bad)
    desk = Desk(bench)
    desk.scheduler.tick(NOW + 60)
    assert [one.clustering for one in desk.asked] == ["default"]


def test_scheduler_does_not_bring_back_what_was_removed_meanwhile(bench: Bench) -> None:
    """Removed or set anew while its run was starting, a schedule stays as it was left."""
    put(bench, every(60))
    desk = Desk(bench)
    start = desk.scheduler.start

    def start_and_remove(request: pb.CreateRunRequest) -> pb.Run:
        schedules.save(bench.clusterings, "default", None)
        return start(request)

    Scheduler(bench.store, start_and_remove, desk.drift).tick(NOW + 60)
    assert len(desk.asked) == 1
    assert schedules.load(bench.clusterings, "default") is None

    put(bench, every(60))
    other = from_message(every(600), NOW + 1)

    def start_and_change(request: pb.CreateRunRequest) -> pb.Run:
        schedules.save(bench.clusterings, "default", other)
        return start(request)

    Scheduler(bench.store, start_and_change, desk.drift).tick(NOW + 60)
    assert schedules.load(bench.clusterings, "default") == other


def test_two_schedulers_ask_for_the_same_run(bench: Bench) -> None:
    """Processes that wake at once use one request id, so that only one run can begin."""
    made = put(bench, every(60))
    one, two = Desk(bench), Desk(bench)
    one.scheduler.tick(NOW + 60)
    schedules.save(bench.clusterings, "default", made)  # as the other read it
    two.scheduler.tick(NOW + 60.5)
    assert one.asked[0].request_id == two.asked[0].request_id


def test_scheduler_skips_what_cannot_start(bench: Bench) -> None:
    """Another run under way: it is tried again at the next time, not at once."""
    put(bench, every(60))
    desk = Desk(bench, fail=LeaseHeld("busy"))
    for after in (60, 61, 62):
        desk.scheduler.tick(NOW + after)
    assert len(desk.asked) == 1
    desk.scheduler.tick(NOW + 120)
    assert len(desk.asked) == 2


@pytest.mark.parametrize("due", [True, False])
def test_scheduler_waits_for_the_drift_when_told(bench: Bench, *, due: bool) -> None:
    """With only_if_due a run begins only if two signs say so."""
    message = every(60)
    message.only_if_due = True
    put(bench, message)
    desk = Desk(bench, due=due)
    desk.scheduler.tick(NOW + 60)
    assert len(desk.asked) == int(due)
