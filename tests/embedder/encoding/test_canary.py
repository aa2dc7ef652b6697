"""The canary: asked in the background, believed until it answers otherwise. A clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest

from embedder.encoding.canary import LONGEST_GAP_S, Attended, Canary, Runs, Times
from shoal.errors import OperatorError, SelfTestFailed, ServiceUnavailable, Unrecoverable


class Model:
    """A model that answers when it may, and rightly unless it is broken; and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.broken = False

    async def __call__(self) -> None:
        self.asked += 1
        await self.may_answer.wait()
        if self.broken:
            msg = "other vectors"
            raise SelfTestFailed(msg)

    def canary(self) -> Canary:
        return Canary(self, name="m", times=Times(30, 60, 300), clock=lambda: self.now)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def fails(canary: Canary, model: Model, times: Iterable[float]) -> None:
    """Look at these times; each time the last test has failed."""
    for model.now in times:
        with pytest.raises(SelfTestFailed):
            canary.check()
        await settled()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_canary_asks_again_when_the_last_answer_is_old() -> None:
    """One test per interval, however often it is looked at; the first when the opening's is old."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        for model.now in (0.0, 29.0, 30.0, 31.0, 59.0, 60.5, 61.0):
            canary.check()
            await settled()
        assert model.asked == 2

    run(scenario())


def test_canary_believes_the_last_answer_while_the_next_is_under_way() -> None:
    """A model behind a long batch is slow, not wrong; it is not asked twice at a time."""

    async def scenario() -> None:
        model = Model()
        model.may_answer.clear()
        canary = model.canary()
        for model.now in (30.0, 45.0, 90.0):
            canary.check()
            await settled()
        model.may_answer.set()
        await settled()
        model.now = 91.0
        canary.check()
        await settled()
        assert model.asked == 1

    run(scenario())


def test_canary_that_stays_out_too_long_is_a_failure_until_it_comes() -> None:
    """A GPU that hangs answers nothing, wrong or right."""

    async def scenario() -> None:
        model = Model()
        model.may_answer.clear()
        canary = model.canary()
        model.now = 30.0
        canary.check()
        await settled()
        model.now = 90.5
        with pytest.raises(OperatorError, match="has not answered its self-test in 60 s"):
            canary.check()
        model.may_answer.set()
        await settled()
        canary.check()

    run(scenario())


def test_canary_doubts_a_model_that_failed_until_a_test_succeeds() -> None:
    """Wrong once, it is asked at every look, and not believed while it is asked."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        model.broken = True
        model.now = 30.0
        canary.check()
        await settled()
        await fails(canary, model, (31.0, 32.0))
        assert model.asked == 3
        model.broken = False
        with pytest.raises(SelfTestFailed):
            canary.check()
        await settled()
        canary.check()

    run(scenario())


def test_canary_gives_up_a_model_that_is_wrong_for_long() -> None:
    """Wrong for longer than that since it was first wrong; a right answer begins anew."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        model.broken = True
        model.now = 30.0
        canary.check()
        await settled()
        await fails(canary, model, range(31, 331, 5))
        model.broken = False
        with pytest.raises(SelfTestFailed):
            canary.check()
        await settled()
        model.broken = True
        model.now = 400.0
        canary.check()
        await settled()
        await fails(canary, model, range(405, 701, 5))
        model.now = 705.0
        with pytest.raises(Unrecoverable, match=r"for 300 s encoder m has failed .*other vectors"):
            canary.check()

    run(scenario())


def test_canary_does_not_count_what_a_frozen_process_slept_through() -> None:
    """One failure, and an hour of Ctrl-Z: the model is asked again, and not given up."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        model.broken = True
        model.now = 30.0
        canary.check()
        await settled()
        model.broken = False
        model.now = 3630.0
        with pytest.raises(SelfTestFailed):
            canary.check()
        await settled()
        canary.check()

    run(scenario())


def test_run_that_does_not_end_is_given_up() -> None:
    """The oldest one counts, whatever ends beside it; not what a frozen process slept through."""
    model = Model()
    runs = Runs(name="m", give_up_s=60, clock=lambda: model.now)
    with runs.under_way():
        for model.now in range(0, 61, 10):
            with runs.under_way():
                runs.check()
        model.now = 70.0
        with pytest.raises(Unrecoverable, match="for 60 s a run of encoder m has not ended"):
            runs.check()
    runs.check()
    with runs.under_way():
        model.now = 3670.0
        runs.check()


def test_canary_closes_with_a_test_under_way() -> None:
    """Nothing of it is left behind."""

    async def scenario() -> None:
        others = asyncio.all_tasks()
        model = Model()
        model.may_answer.clear()
        canary = model.canary()
        await canary.close()
        model.now = 30.0
        canary.check()
        await settled()
        await canary.close()
        assert model.asked == 1
        assert asyncio.all_tasks() == others

    run(scenario())


def test_model_that_fails_is_not_trusted_until_a_test_succeeds() -> None:
    """Its vectors are not stored; a test that is only under way, or late, says nothing yet."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        canary.trust()
        model.may_answer.clear()
        model.broken = True
        model.now = 30.0
        canary.check()
        await settled()
        canary.trust()
        model.may_answer.set()
        await settled()
        with pytest.raises(ServiceUnavailable) as told:
            canary.trust()
        assert told.value.message == "encoder m fails its self-test: other vectors"
        assert told.value.metadata["encoder"] == "m"
        model.broken = False
        with pytest.raises(SelfTestFailed):
            canary.check()
        await settled()
        canary.trust()

    run(scenario())


def test_canary_vouches_anew_from_when_the_answer_came() -> None:
    """The next test is due an interval after the last success, not after its beginning."""

    async def scenario() -> None:
        model = Model()
        model.may_answer.clear()
        canary = model.canary()
        model.now = 30.0
        canary.check()
        await settled()
        model.now = 50.0
        model.may_answer.set()
        await settled()
        for model.now, asked in ((79.0, 1), (80.0, 2)):
            canary.check()
            await settled()
            assert model.asked == asked

    run(scenario())


def test_failure_is_raised_again_and_again_without_growing() -> None:
    """Each look raises the same error, whose traceback is that of the look alone."""

    async def scenario() -> None:
        model = Model()
        canary = model.canary()
        model.broken = True
        model.now = 30.0
        canary.check()
        await settled()
        with pytest.raises(SelfTestFailed) as told:
            canary.check()
        model.may_answer.clear()  # the next look finds the same error
        depths = [len(told.traceback)]
        for _ in range(3):
            with pytest.raises(SelfTestFailed) as again:
                canary.check()
            assert again.value is told.value
            depths.append(len(again.traceback))
        assert set(depths) == {2}
        await canary.close()

    run(scenario())


def test_attended_time_counts_gaps_up_to_a_length() -> None:
    """A gap of that length counts in full, and a longer one counts as that."""
    now = 5.0
    attended = Attended(lambda: now)
    assert attended.now == 0
    for gap, total in ((1.0, 1.0), (LONGEST_GAP_S, 11.0), (1000.0, 21.0), (0.0, 21.0), (2.0, 23.0)):
        now += gap
        assert attended.look() == total
        assert attended.now == total
    assert LONGEST_GAP_S == 10


def test_runs_that_end_are_forgotten() -> None:
    """Also one that fails: only what is under way can hang, and none is no run that hangs."""
    now = 0.0
    runs = Runs(name="m", give_up_s=5, clock=lambda: now)
    with pytest.raises(KeyError), runs.under_way():
        raise KeyError
    for now in (4.0, 8.0, 12.0):  # noqa: B007 - the clock's
        runs.check()
    with runs.under_way():
        now = 17.0
        runs.check()
        with runs.under_way(), runs.under_way():
            now = 17.5
            with pytest.raises(Unrecoverable) as told:
                runs.check()
    assert told.value.metadata["encoder"] == "m"
