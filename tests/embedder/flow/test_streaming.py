"""Streams answered concurrently. Pure asyncio, no images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import pytest

from embedder.flow.admission import Capacity, Gate
from embedder.flow.streaming import Flow, Room, answer_stream

pytestmark = pytest.mark.timeout(10)
"""A stream that reads nothing more is found in seconds."""


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


class Sender:
    """Sends numbers and counts those that were read."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = list(numbers)
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in self.numbers:
            self.read += 1
            yield number


def flow(*, max_items: int = 4, gate: Gate | None = None) -> Flow[int]:
    shared = gate or Gate("test", Capacity(100, 10_000))
    return Flow(max_items, lambda number: Room(shared, number), stop=asyncio.Event())


def test_stream_answers_each_request_once_as_it_finishes() -> None:
    """Every request has one response; a slow one does not hold up the others."""

    async def scenario() -> None:
        slow = asyncio.Event()

        async def answer(number: int) -> int:
            if number == 0:
                await slow.wait()
            return number * 10

        got: list[int] = []
        async with aclosing(answer_stream(aiter(Sender(range(9))), answer, flow=flow())) as stream:
            async for response in stream:
                got.append(response)
                if len(got) == 8:
                    slow.set()
        assert sorted(got) == [number * 10 for number in range(9)]
        assert got[-1] == 0

    asyncio.run(scenario())


def test_stream_reads_no_more_than_it_may_have_under_way() -> None:
    """Reading stops at the limit, and goes on only as responses are taken."""

    async def scenario() -> None:
        release = asyncio.Event()

        async def answer(number: int) -> int:
            await release.wait()
            return number

        sender = Sender(range(10))
        async with aclosing(answer_stream(aiter(sender), answer, flow=flow(max_items=3))) as stream:
            first = asyncio.create_task(anext(stream))
            await settled()
            assert sender.read == 3
            release.set()
            await first
            await settled()
            assert sender.read == 3  # answered, but not yet asked for the next
            await anext(stream)
            await settled()
            assert sender.read == 4

    asyncio.run(scenario())


def test_streams_share_a_gate() -> None:
    """What two streams have under way together stays within the gate; both get through."""

    async def scenario() -> None:
        gate = Gate("test", Capacity(max_items=3, max_bytes=10_000))
        most = 0

        async def answer(number: int) -> int:
            nonlocal most
            most = max(most, gate.items)
            await settled()
            return number

        async def consume() -> list[int]:
            requests = aiter(Sender(range(12)))
            async with aclosing(answer_stream(requests, answer, flow=flow(gate=gate))) as stream:
                return [response async for response in stream]

        got = await asyncio.gather(consume(), consume())
        assert [sorted(numbers) for numbers in got] == [list(range(12))] * 2
        assert most == 3
        assert (gate.items, gate.bytes) == (0, 0)

    asyncio.run(scenario())


def test_stream_weighs_its_requests_at_the_gate() -> None:
    """What is under way stays within the gate's bytes too; ``size`` says what a request weighs."""

    async def scenario() -> None:
        gate = Gate("test", Capacity(max_items=100, max_bytes=10))
        under_way: list[tuple[int, int]] = []

        async def answer(number: int) -> int:
            under_way.append((gate.items, gate.bytes))
            await settled()
            return number

        sender = Sender([4, 5, 3, 20, 1])
        async with aclosing(answer_stream(aiter(sender), answer, flow=flow(gate=gate))) as stream:
            assert sorted([response async for response in stream]) == [1, 3, 4, 5, 20]
        assert under_way == [(2, 9), (2, 9), (1, 3), (1, 20), (1, 1)]
        assert (gate.items, gate.bytes) == (0, 0)

    asyncio.run(scenario())


def test_stream_starts_its_answers_in_the_order_of_the_requests() -> None:
    """Whoever takes turns by key relies on it, also when a request has to wait for room."""

    async def scenario() -> None:
        gate = Gate("test", Capacity(max_items=3, max_bytes=100))
        started: list[int] = []

        async def answer(number: int) -> int:
            started.append(number)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            return number

        numbers = [7, 3, 50, 60, 1, 90, 2, 5, 4]
        requests = aiter(Sender(numbers))
        async with aclosing(answer_stream(requests, answer, flow=flow(gate=gate))) as stream:
            assert sorted([response async for response in stream]) == sorted(numbers)
        assert started == numbers

    asyncio.run(scenario())


@pytest.mark.parametrize("slow", ["sender", "answer"])
def test_stream_closed_early_leaves_no_task_and_no_room_taken(slow: str) -> None:
    """Whoever closes the stream cancels all that is under way; nothing leaks."""

    async def scenario() -> None:
        gate = Gate("test", Capacity(100, 10_000))
        cancelled: list[int] = []

        async def answer(number: int) -> int:
            if number == 0:
                return number
            try:
                await asyncio.Event().wait()
            finally:
                if slow == "answer":  # what it has to put in order takes a while
                    await settled()
                cancelled.append(number)
            return number

        async def requests() -> AsyncIterator[int]:
            try:
                for number in range(4):
                    yield number
                await asyncio.Event().wait()
            finally:
                if slow == "sender":
                    await settled()
                cancelled.append(100)

        limits = flow(gate=gate, max_items=5)
        async with aclosing(answer_stream(requests(), answer, flow=limits)) as stream:
            assert await anext(stream) == 0
            await settled()
            assert gate.items == 3
        assert sorted(cancelled) == [1, 2, 3, 100]
        assert (gate.items, gate.bytes) == (0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_stream_stops_reading_when_told_and_answers_what_it_read() -> None:
    """After stop, the responses of what was read still come, and then the stream ends."""

    async def scenario() -> None:
        release = asyncio.Event()
        started: list[int] = []

        async def answer(number: int) -> int:
            started.append(number)
            await release.wait()
            return number

        async def endless() -> AsyncIterator[int]:
            yield 1
            yield 2
            await asyncio.Event().wait()

        limits = flow(max_items=8)
        async with aclosing(answer_stream(endless(), answer, flow=limits)) as stream:
            first = asyncio.create_task(anext(stream))
            await settled()
            limits.stop.set()
            await settled()
            release.set()
            got = [await first, *[response async for response in stream]]
        assert sorted(got) == started == [1, 2]

    asyncio.run(scenario())


def test_stream_that_stops_lets_nothing_more_in() -> None:
    """A request that waits for room when the stream is told to stop is not answered; others are."""

    async def scenario() -> None:
        release = asyncio.Event()
        gate = Gate("test", Capacity(max_items=2, max_bytes=100))

        async def answer(number: int) -> int:
            await release.wait()
            return number

        limits = flow(gate=gate)
        sender = Sender(range(10))
        async with aclosing(answer_stream(aiter(sender), answer, flow=limits)) as stream:
            first = asyncio.create_task(anext(stream))
            await settled()
            assert sender.read == 3
            limits.stop.set()
            await settled()
            release.set()
            got = [await first, *[response async for response in stream]]
        assert sorted(got) == [0, 1]
        assert sender.read == 3
        assert (gate.items, gate.bytes) == (0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


@pytest.mark.parametrize("culprit", ["sender", "answer"])
def test_stream_raises_what_breaks_it(culprit: str) -> None:
    """An error of the sender's stream, or of an answer, ends the stream and all its tasks."""

    async def scenario() -> None:
        async def answer(number: int) -> int:
            if culprit == "answer" and number == 1:
                msg = "broken answer"
                raise ValueError(msg)
            await asyncio.Event().wait()
            return number

        async def requests() -> AsyncIterator[int]:
            yield 0
            yield 1
            if culprit == "sender":
                msg = "broken sender"
                raise ValueError(msg)

        gate = Gate("test", Capacity(100, 100))
        async with aclosing(answer_stream(requests(), answer, flow=flow(gate=gate))) as stream:
            with pytest.raises(ValueError, match=f"broken {culprit}"):
                await anext(stream)
        await settled()
        assert (gate.items, gate.bytes) == (0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
