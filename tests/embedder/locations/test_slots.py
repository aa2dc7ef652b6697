"""Slots: a number of reads at a time, each with a thread; what hangs keeps its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from places import until

from embedder.locations.slots import Slots
from shoal.errors import LocationUnavailable, ServiceUnavailable

LONG_S = 100.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


class Calls:
    """Blocking calls that go on when they may, and the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._may_end: dict[str, threading.Event] = {}

    def __call__(self, name: str) -> str:
        event = self._may_end.setdefault(name, threading.Event())
        self.begun.append(name)
        assert event.wait(30)
        return name

    def end(self, name: str) -> None:
        self._may_end.setdefault(name, threading.Event()).set()

    async def have_begun(self, *names: str) -> None:
        await until(lambda: set(names) <= set(self.begun))

    def task(self, slots: Slots, name: str) -> asyncio.Task[Any]:
        """A read of ``slots`` whose one call is ``name``."""

        async def read() -> Any:
            async with slots.take() as thread:
                return await asyncio.get_running_loop().run_in_executor(thread, self, name)

        return asyncio.create_task(read(), name=name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_slots_are_as_many_as_said_and_given_in_order() -> None:
    """The third waits for one of two, the fourth for the third."""

    async def scenario() -> None:
        slots, calls = Slots("k", 2, patience_s=LONG_S), Calls()
        tasks = [calls.task(slots, name) for name in "abcd"]
        await calls.have_begun("a", "b")
        await settled()
        assert len(calls.begun) == 2
        calls.end("b")
        await calls.have_begun("c")
        assert "d" not in calls.begun
        for name in "acd":
            calls.end(name)
        assert await asyncio.gather(*tasks) == ["a", "b", "c", "d"]
        assert calls.begun[2:] == ["c", "d"]
        slots.close()

    run(scenario())


def test_thread_is_kept_for_the_next_and_bears_the_kinds_name() -> None:
    """One after the other there is one thread; two at a time, two; none before the first call."""

    async def scenario() -> None:
        before = set(threading.enumerate())
        slots = Slots("k", 2, patience_s=LONG_S)
        assert set(threading.enumerate()) == before
        found: list[threading.Thread] = []
        loop = asyncio.get_running_loop()
        for _ in range(3):
            async with slots.take() as thread:
                calls = [loop.run_in_executor(thread, threading.current_thread) for _ in range(2)]
                found += await asyncio.gather(*calls)
        assert len(set(found)) == 1
        assert found[0].name == "shoal-read-k"
        assert found[0].daemon, "the end of the process does not wait for it"
        async with slots.take() as one, slots.take() as other:
            both = {
                await loop.run_in_executor(each, threading.current_thread) for each in (one, other)
            }
        assert len(both) == 2
        slots.close()
        await until(lambda: set(threading.enumerate()) <= before)

    run(scenario())


def test_exception_of_a_call_is_the_callers_and_ends_no_thread() -> None:
    """Whatever it is, also what ends a process elsewhere."""

    async def scenario() -> None:
        slots = Slots("k", 1, patience_s=LONG_S)
        loop = asyncio.get_running_loop()

        def fail(error: BaseException) -> None:
            raise error

        for error in (ValueError("bad"), KeyboardInterrupt()):
            async with slots.take() as thread:
                call = thread.submit(fail, error)
                await until(call.done)
                assert call.exception() is error
        async with slots.take() as thread:
            assert await loop.run_in_executor(thread, "still".upper) == "STILL"
        slots.close()

    run(scenario())


def test_call_that_was_cancelled_before_it_began_does_not_run() -> None:
    """Behind another of the same slot."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=LONG_S), Calls()
        async with slots.take() as thread:
            first, second = thread.submit(calls, "a"), thread.submit(calls, "b")
            assert second.cancel()
            calls.end("a")
            assert await asyncio.wrap_future(first) == "a"
            assert await asyncio.wrap_future(thread.submit(len, "xyz")) == 3
        assert calls.begun == ["a"]
        slots.close()

    run(scenario())


def test_who_gives_up_waiting_takes_no_slot() -> None:
    """The next in line gets it."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=LONG_S), Calls()
        first, gone, last = (calls.task(slots, name) for name in "abc")
        await calls.have_begun("a")
        await settled()
        gone.cancel()
        await asyncio.wait({gone})
        calls.end("a")
        calls.end("c")
        assert await asyncio.gather(first, last) == ["a", "c"]
        assert calls.begun == ["a", "c"]
        slots.close()

    run(scenario())


def test_who_gives_up_in_the_moment_of_the_turn_hands_the_slot_on() -> None:
    """It was given already when the cancel came: it is not lost."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=LONG_S), Calls()
        async with slots.take():
            gone = calls.task(slots, "gone")
            last = calls.task(slots, "last")
            await settled()
        gone.cancel()
        calls.end("last")
        assert await last == "last"
        assert gone.cancelled() or gone.cancelling()
        assert calls.begun == ["last"]
        async with slots.take():
            pass
        slots.close()

    run(scenario())


def test_call_that_nobody_waits_for_hangs_only_after_a_while() -> None:
    """Its slot is taken meanwhile, and whoever wants it waits; then they are told."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=0.3), Calls()
        left = calls.task(slots, "left")
        await calls.have_begun("left")
        left.cancel()
        await asyncio.wait({left})
        waiting = calls.task(slots, "waiting")
        await settled()
        assert not waiting.done()
        with pytest.raises(LocationUnavailable) as told:
            await waiting
        message = (
            "k: all 1 reads that may run at the same time hang, none has ended within 0.3 s; "
            "expected one to end before the next"
        )
        assert told.value.message == message
        with pytest.raises(LocationUnavailable):
            await calls.task(slots, "late")
        calls.end("left")
        calls.end("again")
        await until(lambda: bool(slots._idle))
        assert await calls.task(slots, "again") == "again"
        slots.close()

    run(scenario())


def test_call_that_ends_in_time_never_hangs() -> None:
    """Its patience runs out later, and means nothing then."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=0.05), Calls()
        left = calls.task(slots, "left")
        await calls.have_begun("left")
        left.cancel()
        await asyncio.wait({left})
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.06, over.set)
        calls.end("left")
        await until(lambda: bool(slots._idle))
        await over.wait()
        assert not slots._abandoned
        calls.end("again")
        assert await calls.task(slots, "again") == "again"
        slots.close()

    run(scenario())


def test_timeout_of_a_read_says_that_its_call_hangs() -> None:
    """At once, whatever the patience: the read has waited long enough."""

    async def scenario() -> None:
        slots, calls = Slots("k", 1, patience_s=LONG_S), Calls()

        async def timed_out() -> None:
            async with slots.take() as thread:
                thread.submit(calls, "hangs")
                raise TimeoutError

        with pytest.raises(TimeoutError):
            await timed_out()
        await settled()
        with pytest.raises(LocationUnavailable, match="all 1 reads"):
            await calls.task(slots, "next")
        calls.end("hangs")
        await until(lambda: bool(slots._idle))
        slots.close()

    run(scenario())


@pytest.mark.parametrize("busy", ["waited for", "left a moment ago"])
def test_nobody_is_told_that_all_hang_while_one_does_not(busy: str) -> None:
    """One of two hangs; the other is at work, or was left too short a time ago."""

    async def scenario() -> None:
        slots, calls = Slots("k", 2, patience_s=LONG_S), Calls()

        async def hang() -> None:
            async with slots.take() as thread:
                thread.submit(calls, "hangs")
                raise TimeoutError

        with pytest.raises(TimeoutError):
            await hang()
        other = calls.task(slots, "works")
        await calls.have_begun("works")
        if busy != "waited for":
            other.cancel()
            await asyncio.wait({other})
        waiting = calls.task(slots, "waits")
        await settled()
        assert not waiting.done()
        calls.end("works")
        calls.end("waits")
        assert await waiting == "waits"
        calls.end("hangs")
        await until(lambda: len(slots._idle) == 2)
        slots.close()

    run(scenario())


def test_closed_slots_are_given_to_nobody() -> None:
    """Who waits is told, and who comes; a call at work ends first, and its thread with it."""

    async def scenario() -> None:
        before = set(threading.enumerate())
        slots, calls = Slots("k", 1, patience_s=LONG_S), Calls()
        working, waiting = calls.task(slots, "works"), calls.task(slots, "waits")
        await calls.have_begun("works")
        await settled()
        slots.close()
        for task in (waiting, calls.task(slots, "late")):
            with pytest.raises(ServiceUnavailable, match=r"^the embedder is shutting down$"):
                await task
        calls.end("works")
        assert await working == "works"
        await until(lambda: set(threading.enumerate()) <= before)
        assert calls.begun == ["works"]

    run(scenario())


def test_call_that_ends_after_its_loop_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is left to hand its slot to, and nothing is said of it."""
    calls = Calls()

    async def scenario() -> None:
        slots = Slots("k", 1, patience_s=LONG_S)
        left = calls.task(slots, "left")
        await calls.have_begun("left")
        left.cancel()
        await asyncio.wait({left})
        slots.close()

    before = set(threading.enumerate())
    run(scenario())
    calls.end("left")
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
    assert not caplog.records
