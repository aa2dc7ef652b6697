"""The gate and the turns. Pure asyncio."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.flow.admission import Capacity, Gate, Turns
from shoal.errors import Overloaded


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_gate_refuses_at_once_past_its_items_or_bytes() -> None:
    """What does not fit is refused with a delay to come back after; leaving makes room."""
    gate = Gate("embed", Capacity(max_items=3, max_bytes=100))
    with gate.admit(2, 50):
        with pytest.raises(Overloaded) as caught, gate.admit(2, 1):
            pass
        assert caught.value.retry_after_s > 0
        with pytest.raises(Overloaded), gate.admit(1, 51):
            pass
        with gate.admit(1, 50):
            assert (gate.items, gate.bytes) == (3, 100)
    assert (gate.items, gate.bytes) == (0, 0)


def test_gate_admits_anything_when_empty() -> None:
    """A call larger than the whole capacity is served alone; otherwise it never could be."""
    gate = Gate("embed", Capacity(max_items=3, max_bytes=100))
    with gate.admit(5, 1000), pytest.raises(Overloaded), gate.admit(1, 1):
        pass


def test_gate_lets_in_first_come_first_served() -> None:
    """A small item does not overtake a large one that waits."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=10, max_bytes=100))
        await gate.enter(60)
        order: list[int] = []

        async def enter(size: int) -> None:
            await gate.enter(size)
            order.append(size)

        async with asyncio.TaskGroup() as group:
            for size in (80, 10, 5):
                group.create_task(enter(size))
            await settled()
            assert order == []
            gate.leave(60)
        assert order == [80, 10, 5]

    asyncio.run(scenario())


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=20),
    cancels=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 30)), max_size=10),
)
def test_gate_is_empty_again_whatever_was_cancelled(
    sizes: list[int], cancels: list[tuple[int, int]]
) -> None:
    """Under cancels at any moment the bounds hold, nobody waits for ever, no room is lost."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=3, max_bytes=100))

        async def use(size: int) -> None:
            await gate.enter(size)
            try:
                assert gate.items <= 3
                assert gate.bytes <= 100
                await asyncio.sleep(0)
            finally:
                gate.leave(size)

        tasks = [asyncio.create_task(use(size)) for size in sizes]
        for step in range(31):
            for number, moment in cancels:
                if moment == step and number < len(tasks):
                    tasks[number].cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            answer is None or isinstance(answer, asyncio.CancelledError) for answer in answers
        )
        assert (gate.items, gate.bytes) == (0, 0)

    asyncio.run(scenario())


def test_turns_are_one_at_a_time_in_order_and_leave_nothing() -> None:
    """Holders of one key follow each other in order; another key is free; none is remembered."""

    async def scenario() -> None:
        turns = Turns()
        log: list[str] = []

        async def hold(key: str, name: str) -> None:
            async with turns.of(key):
                log.append(f"+{name}")
                await settled()
                log.append(f"-{name}")

        async with asyncio.TaskGroup() as group:
            first, second, third = (
                group.create_task(hold("a", name)) for name in ("one", "two", "three")
            )
            group.create_task(hold("b", "other"))
            await asyncio.sleep(0)
            second.cancel()
        assert [entry for entry in log if "other" not in entry] == [
            "+one",
            "-one",
            "+three",
            "-three",
        ]
        assert log.index("+other") < log.index("-one")
        assert len(turns) == 0
        assert first.done()
        assert third.done()

    asyncio.run(scenario())
