from __future__ import annotations

import itertools
import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from reclustering import Bench

from clusterer.upkeep import schedule as schedules
from clusterer.upkeep.drift import Baseline, compare
from clusterer.upkeep.schedule import Schedule, from_message, next_time
from clusterer.upkeep.scheduler import Scheduler
from shoal.clock import SKEW_S
from shoal.errors import Cancelled, InvalidArgument, LeaseHeld, StoreUnavailable
from shoal.store.clusterings import Clusterings
from shoal.store.model import Payload
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Drift, VectorInfo

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


def test_interval_is_over_when_its_time_has_come() -> None:
    """The next time is always past now, at whole intervals from the last."""
    assert next_time("", 60, NOW, NOW - 30) == NOW + 60
    assert next_time("", 60, NOW, NOW + 59.5) == NOW + 60
    assert next_time("", 60, NOW, NOW + 60) == NOW + 120


@pytest.mark.parametrize(
    ("message", "words", "field"),
    [
        (wanted(), "expected cron or interval", "schedule.when"),
        (every(0.5), "expected 1 to 3.1536e+08 s, got 0.5", "schedule.interval"),
        (every(-5), "got -5 s", "schedule.interval"),
        (every(1e10), "got 1e+10", "schedule.interval"),
        (wanted(cron="* * * *"), "five fields", "schedule.cron"),
        (wanted(cron="* * * * * *"), "five fields", "schedule.cron"),
        (wanted(cron=""), "five fields", "schedule.cron"),
        (wanted(cron="61 * * * *"), "61", "schedule.cron"),
        (wanted(cron="0 0 31 2 *"), "0 0 31 2", "schedule.cron"),
        (wanted(cron="R R * * *"), "five fields of numbers", "schedule.cron"),
        (wanted(cron="0 0 L * *"), "five fields of numbers", "schedule.cron"),
        (wanted(cron="0,x 0 * * *"), "five fields of numbers", "schedule.cron"),
    ],
)
def test_schedule_out_of_range_is_refused(message: pb.Schedule, words: str, field: str) -> None:
    """The error says what was expected and what was got, and in which field."""
    with pytest.raises(InvalidArgument, match=re.escape(words)) as caught:
        from_message(message, NOW)
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    "cron", ["0,30 2-4 * * *", "*/5 1 1-7/2 jan-mar mon", "0 0 * * MON,FRI", " 5  4 * * * "]
)
def test_cron_takes_lists_ranges_steps_and_names(cron: str) -> None:
    """All that plain cron knows, with any spaces between the fields."""
    made = from_message(wanted(cron=cron), NOW)
    assert made.next_at == next_time(cron, 0, NOW, NOW) > NOW


@pytest.mark.parametrize("seconds", [1.0, 90.5, 10 * 365 * 86_400.0])
def test_interval_within_its_range_begins_now(seconds: float) -> None:
    """From a second to ten years, both included; the first run is one interval from now."""
    made = from_message(every(seconds), NOW)
    assert (made.interval_s, made.cron, made.next_at) == (seconds, "", NOW + seconds)
    assert (made.only_if_due, made.last_run) == (False, "")


def test_schedule_of_a_message_is_its_own() -> None:
    """Who set it is left out of the request, and the caller's message stays as it was."""
    message = wanted(cron="30 2 * * *")
    made = from_message(message, NOW)
    assert message.request.collection == "ignored"
    asked = made.request
    assert (asked.collection, asked.clustering, asked.request_id) == ("", "", "")
    assert asked.config.kmeans.k == 3


def test_schedule_after_its_time_is_past_now() -> None:
    """Everything else stays."""
    made = from_message(every(60), NOW)
    assert made.after(NOW + 60) == replace(made, next_at=NOW + 120)
    daily = from_message(wanted(cron="30 2 * * *"), NOW)
    assert daily.after(daily.next_at) == replace(daily, next_at=daily.next_at + 86_400)


@pytest.mark.parametrize("late_s", [0.0, 1.0, 1e9])
@pytest.mark.parametrize("message", [every(60), wanted(cron="30 2 * * *")])
def test_schedule_that_a_wrong_clock_put_off_is_due_sooner(
    message: pb.Schedule, late_s: float
) -> None:
    """No run is further away than the next after now; clocks may differ by some minutes."""
    made = from_message(message, NOW)
    latest = from_message(message, NOW + SKEW_S).next_at
    found = replace(made, next_at=latest + late_s, last_run="run")
    sooner = found if late_s == 0 else replace(made, last_run="run")
    assert found.within_reach(NOW) == sooner


def test_request_id_is_of_the_place_and_the_time() -> None:
    """A UUID that differs with collection, clustering and time, and with nothing else."""
    made = from_message(every(60), NOW)
    ids = {
        made.request_id("toys", "default"),
        made.request_id("toys", "other"),
        made.request_id("others", "default"),
        replace(made, next_at=made.next_at + 60).request_id("toys", "default"),
    }
    assert len(ids) == 4
    assert all(str(uuid.UUID(one)) == one for one in ids)
    again = replace(made, last_run="x", only_if_due=True)
    assert again.request_id("toys", "default") in ids


@pytest.mark.parametrize("message", [every(90.5), wanted(cron="30 2 * * *")])
def test_message_of_a_schedule_says_all_of_it(message: pb.Schedule) -> None:
    """What was asked for, when it runs next and what it started last."""
    made = replace(from_message(message, NOW), only_if_due=True, last_run="r")
    told = made.message()
    assert told.WhichOneof("when") == message.WhichOneof("when")
    assert (told.cron, told.interval) == (message.cron, message.interval)
    assert (told.only_if_due, told.last_run) == (True, "r")
    assert told.next_at.ToNanoseconds() / 1e9 == made.next_at
    assert told.request == made.request


def test_answer_leaves_out_the_vocabulary() -> None:
    """Its vectors may be megabytes; the schedule keeps them."""
    message = every(60)
    message.request.naming.fields.append("kind")
    message.request.naming.vocabulary.add(text="cat", vector=b"1234")
    made = from_message(message, NOW)
    assert list(made.answer().request.naming.fields) == ["kind"]
    assert not made.answer().request.naming.vocabulary
    assert made.message().request.naming.vocabulary[0].text == "cat"


@pytest.mark.parametrize("message", [every(90.5), wanted(cron="30 2 * * *", only_if_due=True)])
def test_schedule_survives_the_store(quick: Bench, message: pb.Schedule) -> None:
    """What was saved is loaded, its last run too; removed, there is none."""
    quick.clusterings.ensure("default")
    made = replace(from_message(message, NOW), last_run="r")
    assert schedules.load(quick.clusterings, "default") is None
    schedules.save(quick.clusterings, "default", made)
    assert schedules.load(quick.clusterings, "default") == made
    assert schedules.load(quick.clusterings, "other") is None
    schedules.save(quick.clusterings, "default", None)
    assert schedules.load(quick.clusterings, "default") is None


def test_schedule_of_a_later_version_is_read(quick: Bench) -> None:
    """Fields that this version does not know are left out."""
    quick.clusterings.ensure("default")
    made = from_message(every(60), NOW)
    schedules.save(quick.clusterings, "default", made)
    stored = quick.clusterings.schedule("default")
    assert stored is not None
    stored["record"]["color"] = "red"  # type: ignore[call-overload, index]
    quick.clusterings.put_schedule("default", stored)
    assert schedules.load(quick.clusterings, "default") == made


def test_schedule_is_moved_only_if_it_is_as_it_was_read(quick: Bench) -> None:
    """Its time and its last run change together; one that was set anew stays."""
    quick.clusterings.ensure("default")
    made = from_message(every(60), NOW)
    moved = replace(made.after(NOW + 60), last_run="r")
    schedules.save(quick.clusterings, "default", made)
    schedules.advance(quick.clusterings, "default", made, moved)
    assert schedules.load(quick.clusterings, "default") == moved
    schedules.advance(quick.clusterings, "default", made, replace(made, last_run="late"))
    assert schedules.load(quick.clusterings, "default") == moved


class Desk:
    """Where the scheduler's requests end up."""

    def __init__(self, quick: Bench, *, fail: Exception | None = None, due: bool = True) -> None:
        self.asked: list[pb.CreateRunRequest] = []
        self._fail = fail
        self._due = due
        self.scheduler = Scheduler(quick.store, self.start, self.drift)
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


def put(quick: Bench, message: pb.Schedule) -> Schedule:
    quick.clusterings.ensure("default")
    made = from_message(message, NOW)
    schedules.save(quick.clusterings, "default", made)
    return made


def test_scheduler_starts_what_is_due_once(quick: Bench) -> None:
    """Nothing before its time, one run at it, the next an interval later."""
    put(quick, every(60))
    desk = Desk(quick)
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
    stored = schedules.load(quick.clusterings, "default")
    assert stored is not None
    assert (stored.last_run, stored.next_at) == ("run-1", NOW + 180)


def test_scheduler_reads_a_collection_that_has_changed(bench: Bench) -> None:
    """A schedule that is set, moved or removed while it waits counts at once."""
    desk = Desk(bench)
    desk.scheduler.tick(NOW)
    put(bench, every(60))
    desk.scheduler.tick(NOW + 60)
    assert len(desk.asked) == 1
    schedules.save(bench.clusterings, "default", None)
    desk.scheduler.tick(NOW + 120)
    assert len(desk.asked) == 1


def test_scheduler_mends_what_a_wrong_clock_put_off(
    quick: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """At its first look, and within a minute of a clock that went back; a good one is not moved."""
    put(quick, every(60))
    desk = Desk(quick)
    year = 365 * 86_400.0
    desk.scheduler.tick(NOW + year)  # the clock is wrong
    assert len(desk.asked) == 1
    desk.scheduler.tick(NOW)  # it is right again
    assert "was put off by a wrong clock" in caplog.text
    stored = schedules.load(quick.clusterings, "default")
    assert stored is not None
    assert (stored.next_at, stored.last_run) == (NOW + 60, "run-0")
    caplog.clear()
    desk.scheduler.tick(NOW + 60)
    assert len(desk.asked) == 2

    far = replace(stored, next_at=NOW + year)
    schedules.save(quick.clusterings, "default", far)
    desk.scheduler.tick(NOW + 60.5)  # it has just looked
    assert schedules.load(quick.clusterings, "default") == far
    Desk(quick).scheduler.tick(NOW + 61)  # another process has not
    mended = schedules.load(quick.clusterings, "default")
    assert mended is not None
    assert mended.next_at == NOW + 121
    schedules.save(quick.clusterings, "default", replace(far, next_at=NOW + 61 + 60 + SKEW_S))
    caplog.clear()
    desk.scheduler.tick(NOW + 61)
    assert caplog.text == ""


@pytest.mark.parametrize("fail", [Cancelled("shutting down"), StoreUnavailable("away")])
def test_scheduler_keeps_what_it_could_not_try(quick: Bench, fail: Exception) -> None:
    """A shutdown or an absent store leaves the run due, for the next look or another process."""
    put(quick, every(60))
    Desk(quick, fail=fail).scheduler.tick(NOW + 60)
    desk = Desk(quick)
    desk.scheduler.tick(NOW + 61)
    assert len(desk.asked) == 1


def test_scheduler_goes_on_past_a_record_that_cannot_be_read(quick: Bench) -> None:
    """One bad record is logged; the schedules of other clusterings run."""
    put(quick, every(60))
    quick.clusterings.ensure("broken")
    bad: Payload = {"record": {"cron": 7}, "next_at": NOW, "last_run": ""}
    quick.clusterings.put_schedule("broken", bad)
    desk = Desk(quick)
    desk.scheduler.tick(NOW + 60)
    assert [one.clustering for one in desk.asked] == ["default"]


def test_scheduler_does_not_bring_back_what_was_removed_meanwhile(quick: Bench) -> None:
    """Removed or set anew while its run was starting, a schedule stays as it was left."""
    put(quick, every(60))
    desk = Desk(quick)
    start = desk.scheduler.start

    def start_and_remove(request: pb.CreateRunRequest) -> pb.Run:
        schedules.save(quick.clusterings, "default", None)
        return start(request)

    Scheduler(quick.store, start_and_remove, desk.drift).tick(NOW + 60)
    assert len(desk.asked) == 1
    assert schedules.load(quick.clusterings, "default") is None

    put(quick, every(60))
    other = from_message(every(600), NOW + 1)

    def start_and_change(request: pb.CreateRunRequest) -> pb.Run:
        schedules.save(quick.clusterings, "default", other)
        return start(request)

    Scheduler(quick.store, start_and_change, desk.drift).tick(NOW + 60)
    assert schedules.load(quick.clusterings, "default") == other


def test_two_schedulers_ask_for_the_same_run(quick: Bench) -> None:
    """Processes that wake at once use one request id, so that only one run can begin."""
    made = put(quick, every(60))
    one, two = Desk(quick), Desk(quick)
    one.scheduler.tick(NOW + 60)
    schedules.save(quick.clusterings, "default", made)  # as the other read it
    two.scheduler.tick(NOW + 60.5)
    assert one.asked[0].request_id == two.asked[0].request_id


def test_scheduler_skips_what_cannot_start(quick: Bench) -> None:
    """Another run under way: it is tried again at the next time, not at once."""
    put(quick, every(60))
    desk = Desk(quick, fail=LeaseHeld("busy"))
    for after in (60, 61, 62):
        desk.scheduler.tick(NOW + after)
    assert len(desk.asked) == 1
    desk.scheduler.tick(NOW + 120)
    assert len(desk.asked) == 2


@pytest.mark.parametrize("due", [True, False])
def test_scheduler_waits_for_the_drift_when_told(quick: Bench, *, due: bool) -> None:
    """With only_if_due a run begins only if two signs say so."""
    message = every(60)
    message.only_if_due = True
    put(quick, message)
    desk = Desk(quick, due=due)
    desk.scheduler.tick(NOW + 60)
    assert len(desk.asked) == int(due)


def test_scheduler_does_not_ask_the_drift_unless_told(quick: Bench) -> None:
    """Without only_if_due a run begins whatever the drift, which is not measured."""
    put(quick, every(60))
    desk = Desk(quick)
    Scheduler(quick.store, desk.start, lambda *_: pytest.fail("measured")).tick(NOW + 60)
    assert len(desk.asked) == 1


def test_scheduler_runs_where_there_is_no_drift_to_measure(quick: Bench) -> None:
    """Before the first run nothing can be due, and the run begins."""
    message = every(60)
    message.only_if_due = True
    put(quick, message)
    desk = Desk(quick)
    Scheduler(quick.store, desk.start, lambda *_: None).tick(NOW + 60)
    assert len(desk.asked) == 1


def test_scheduler_keeps_the_last_run_where_none_began(quick: Bench) -> None:
    """A time that passed without a run moves on, and the schedule still names the run before."""
    made = replace(put(quick, every(60)), last_run="before")
    schedules.save(quick.clusterings, "default", made)
    Desk(quick, fail=LeaseHeld("busy")).scheduler.tick(NOW + 60)
    stored = schedules.load(quick.clusterings, "default")
    assert stored == replace(made, next_at=NOW + 120)


def test_scheduler_looks_in_every_collection(quick: Bench) -> None:
    """Each due schedule is asked for with its own place, under the id of that place."""
    quick.store.create_collection("others", [VectorInfo("toy", 4, "f" * 64)])
    made = put(quick, every(60))
    others = Clusterings(quick.store, "others")
    others.ensure("second")
    schedules.save(others, "second", made)
    desk = Desk(quick)
    desk.scheduler.tick(NOW + 60)
    asked = {(one.collection, one.clustering): one.request_id for one in desk.asked}
    assert asked == {
        place: made.request_id(*place) for place in (("toys", "default"), ("others", "second"))
    }
    assert made.request.collection == ""
