"""The gate and the turns. Pure asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.flow.admission import Allowance, Capacity, Gate, Turns
from shoal.errors import Overloaded

pytestmark = pytest.mark.timeout(10)
"""A gate that lets nobody in is found in seconds."""


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
        assert caught.value.retry_after_s == 1.0
        assert caught.value.message == (
            "embed: 2 images (50 bytes) are in process, "
            "expected at most 3 (100 bytes) with the 2 (1 bytes) of this call"
        )
        with pytest.raises(Overloaded), gate.admit(1, 51):
            pass
        assert (gate.items, gate.bytes) == (2, 50)
        with gate.admit(1, 50):
            assert (gate.items, gate.bytes) == (3, 100)
    assert (gate.items, gate.bytes) == (0, 0)


def test_gate_admits_anything_when_empty() -> None:
    """A call larger than the whole capacity is served alone; otherwise it never could be."""
    gate = Gate("embed", Capacity(max_items=3, max_bytes=100))
    with gate.admit(5, 1000), pytest.raises(Overloaded), gate.admit(1, 1):
        pass
    assert (gate.items, gate.bytes) == (0, 0)


def test_gate_is_left_by_a_call_that_fails() -> None:
    """An error inside gives the room back."""
    gate = Gate("embed", Capacity(max_items=3, max_bytes=100))
    with pytest.raises(ValueError, match="broken"), gate.admit(2, 50):
        raise ValueError("broken")
    assert (gate.items, gate.bytes) == (0, 0)


def test_gate_says_what_it_counts_and_when_to_come_back() -> None:
    """Not only images: the slow ones are counted by their milliseconds."""
    gate = Gate("embed", Capacity(10, 100), unit="ms of slow decoding", retry_after_s=7)
    with gate.admit(8, 1), pytest.raises(Overloaded) as caught, gate.admit(3, 1):
        pass
    assert caught.value.message.startswith("embed: 8 ms of slow decoding (1 bytes) are in process")
    assert caught.value.retry_after_s == 7


def test_gate_takes_several_items_at_once_and_gives_all_of_them_back() -> None:
    """Who waits with several gets room for all of them; who is cancelled then has none."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=10, max_bytes=100))
        await gate.enter(5, items=8)
        waiting = asyncio.create_task(gate.enter(6, items=4))
        behind = asyncio.create_task(gate.enter(1, items=1))
        await settled()
        assert not waiting.done()
        assert not behind.done()
        gate.leave(5, items=8)
        waiting.cancel()  # let in and cancelled in the same moment
        await settled()
        assert behind.done()
        assert (gate.items, gate.bytes) == (1, 1)

    asyncio.run(scenario())


def test_allowance_is_spent_by_slow_images_and_then_refuses_them() -> None:
    """The first always has room; the refusal has the numbers; quick images cost nothing."""
    allowance = Allowance(1000)
    allowance.spend(5000)
    with pytest.raises(Overloaded) as caught:
        allowance.spend(1)
    assert "may take 1 s of a core to decode, those before this one take about 5.0 s" in (
        caught.value.message
    )
    assert caught.value.metadata == {"decode_ms": "1", "max_call_decode_ms": "1000"}
    allowance.spend(0)
    exact = Allowance(1000)
    for _ in range(2):
        exact.spend(500)
    assert exact.spent_ms == 1000
    with pytest.raises(Overloaded):
        exact.spend(0.5)


def test_gate_lets_in_what_fits_and_no_more() -> None:
    """Items enter without waiting up to either bound; each that leaves makes room for one."""

    async def scenario() -> None:
        for sizes, size in ((Capacity(max_items=3, max_bytes=100), 1), (Capacity(100, 30), 10)):
            gate = Gate("ingest", sizes)
            tasks = [asyncio.create_task(gate.enter(size)) for _ in range(5)]
            for inside in (3, 4, 5):
                await settled()
                assert [task.done() for task in tasks] == [True] * inside + [False] * (5 - inside)
                assert gate.items == 3
                assert gate.bytes == 3 * size
                gate.leave(size)
            gate.leave(size)
            gate.leave(size)
            assert (gate.items, gate.bytes) == (0, 0)

    asyncio.run(scenario())


def test_gate_that_empties_lets_in_several() -> None:
    """A large item that leaves makes room for all the small ones that fit instead."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=10, max_bytes=100))
        await gate.enter(1000)
        tasks = [asyncio.create_task(gate.enter(40)) for _ in range(3)]
        await settled()
        assert not any(task.done() for task in tasks)
        gate.leave(1000)
        await settled()
        assert [task.done() for task in tasks] == [True, True, False]
        assert (gate.items, gate.bytes) == (2, 80)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_gate_lets_the_next_in_when_the_first_in_line_gives_up() -> None:
    """A large item that waits holds up the small ones behind it only as long as it waits."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=10, max_bytes=100))
        await gate.enter(60)
        large, small, smaller = (asyncio.create_task(gate.enter(size)) for size in (80, 10, 5))
        await settled()
        assert not small.done()
        large.cancel()
        await settled()
        assert large.cancelled()
        assert small.done()
        assert smaller.done()
        assert (gate.items, gate.bytes) == (3, 75)

    asyncio.run(scenario())


def test_gate_forgets_whoever_gives_up_further_back() -> None:
    """An item whose wait was cancelled is passed over, and takes no room."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=2, max_bytes=100))
        await gate.enter(60)
        first, gone, last = (asyncio.create_task(gate.enter(size)) for size in (50, 30, 40))
        await settled()
        gone.cancel()
        await settled()
        assert (gate.items, gate.bytes) == (1, 60)
        gate.leave(60)
        await settled()
        assert first.done()
        assert last.done()
        assert (gate.items, gate.bytes) == (2, 90)

    asyncio.run(scenario())


def test_gate_takes_back_the_room_of_one_let_in_and_cancelled_at_once() -> None:
    """An item that is cancelled before it learns that it may enter has not entered."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=1, max_bytes=100))
        await gate.enter(60)
        unlucky, after = asyncio.create_task(gate.enter(50)), asyncio.create_task(gate.enter(40))
        await settled()
        gate.leave(60)
        assert (gate.items, gate.bytes) == (1, 50)
        unlucky.cancel()
        await settled()
        assert unlucky.cancelled()
        assert after.done()
        assert (gate.items, gate.bytes) == (1, 40)

    asyncio.run(scenario())


def test_gate_lets_in_first_come_first_served() -> None:
    """A small item does not overtake a large one that waits."""

    async def scenario() -> None:
        gate = Gate("ingest", Capacity(max_items=10, max_bytes=100))
        await gate.enter(60)
        order: list[int] = []

        async def enter(size: int) -> None:
            await gate.enter(size)
            order.append(size)

        tasks = [asyncio.create_task(enter(size)) for size in (80, 10, 5)]
        await settled()
        assert order == []
        gate.leave(60)
        await settled()
        assert order == [80, 10, 5]
        await asyncio.gather(*tasks)

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


def test_turns_keep_a_key_as_long_as_anybody_uses_it() -> None:
    """Whoever waits and gives up, or fails while it holds the key, changes nothing for others."""

    async def scenario() -> None:
        turns = Turns()
        inside: list[Hashable] = []
        go_on = asyncio.Event()

        async def hold(name: str) -> None:
            async with turns.of("key"):
                inside.append(name)
                await go_on.wait()
                raise ValueError(name)

        assert len(turns) == 0
        first, second = asyncio.create_task(hold("first")), asyncio.create_task(hold("second"))
        await settled()
        assert len(turns) == 1
        second.cancel()
        await settled()
        assert len(turns) == 1
        third = asyncio.create_task(hold("third"))
        await settled()
        assert inside == ["first"]
        go_on.set()
        answers = await asyncio.gather(first, third, return_exceptions=True)
        assert [str(answer) for answer in answers] == inside == ["first", "third"]
        assert len(turns) == 0

    asyncio.run(scenario())
