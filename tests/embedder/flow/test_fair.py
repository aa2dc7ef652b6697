"""Turns of callers by what their items cost."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.flow import fair
from embedder.flow.fair import FairLine


def drained(line: FairLine[tuple[str, int]]) -> list[tuple[str, int]]:
    taken = []
    while len(line):
        head = line.head()
        assert line.pop() == head
        taken.append(head)
    return taken


def test_fair_line_of_one_caller_is_in_its_order() -> None:
    """Whatever the items cost."""
    line: FairLine[tuple[str, int]] = FairLine()
    for number, cost in enumerate((5.0, 1.0, 100.0, 1.0)):
        line.push("a", ("a", number), cost)
    assert len(line) == 4
    assert drained(line) == [("a", number) for number in range(4)]
    with pytest.raises(IndexError):
        line.pop()
    with pytest.raises(IndexError):
        line.head()


def test_fair_line_lets_a_single_item_pass_a_thousand() -> None:
    """One caller's many do not delay another's one; those who came first are first."""
    line: FairLine[tuple[str, int]] = FairLine()
    for number in range(1000):
        line.push("many", ("many", number), 1)
    assert line.pop() == ("many", 0)
    line.push("one", ("one", 0), 1)
    assert [line.pop(), line.pop()] == [("one", 0), ("many", 1)]


def test_fair_line_shares_by_cost_and_not_by_number() -> None:
    """A caller whose items cost ten times as much is served a tenth as often."""
    line: FairLine[tuple[str, int]] = FairLine()
    for number in range(200):
        line.push("slow", ("slow", number), 10)
        line.push("quick", ("quick", number), 1)
    counts = Counter(line.pop()[0] for _ in range(110))
    assert counts["slow"] in (10, 11)


def test_fair_line_counts_what_a_caller_had_that_sends_one_at_a_time() -> None:
    """Who waits for each answer before the next item pays for the last one all the same."""
    line: FairLine[tuple[str, int]] = FairLine()
    line.push("slow", ("slow", 0), 10)
    line.push("quick", ("quick", 0), 1)
    served = []
    for number in range(1, 112):
        caller = line.pop()[0]
        served.append(caller)
        line.push(caller, (caller, number), 10 if caller == "slow" else 1)
    assert Counter(served)["slow"] in (10, 11, 12)


def test_fair_line_gives_nothing_for_having_been_away() -> None:
    """A caller that comes late is not served for the past, and one that was alone owes nothing."""
    line: FairLine[tuple[str, int]] = FairLine()
    for number in range(100):
        line.push("old", ("old", number), 10)
        line.pop()
    for number in range(4):
        line.push("old", ("old", number), 10)
        line.push("new", ("new", number), 10)
    turns = "".join(caller[0] for caller, _ in drained(line))
    assert turns in ("nonon" + "ono", "onononon")


def test_fair_line_forgets_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million callers that come once do not stay in memory."""
    monkeypatch.setattr(fair, "_FORGET_AFTER", 8)
    line: FairLine[tuple[str, int]] = FairLine()
    for number in range(1000):
        line.push(number, ("x", number), 1)
        line.push("other", ("other", number), 1)
        line.pop()
        line.pop()
    assert len(line._clocks) <= 17
    assert not line._items


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.floats(0, 100, allow_subnormal=False)),
            st.none(),
        ),
        max_size=60,
    )
)
def test_fair_line_loses_and_swaps_nothing(steps: list[tuple[str, float] | None]) -> None:
    """Every item comes out once, in the order of its caller."""
    line: FairLine[tuple[str, int]] = FairLine()
    waiting: dict[str, deque[int]] = {name: deque() for name in "abc"}
    for number, step in enumerate((*steps, *[None] * len(steps))):
        if step is not None:
            line.push(step[0], (step[0], number), step[1])
            waiting[step[0]].append(number)
        elif len(line):
            caller, first = line.pop()
            assert waiting[caller].popleft() == first
        assert len(line) == sum(map(len, waiting.values()))
    assert len(line) == 0


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.lists(st.floats(1, 20), min_size=1, max_size=20), min_size=2, max_size=5))
def test_fair_line_never_lets_two_waiting_callers_drift_apart(costs: list[list[float]]) -> None:
    """While both wait, what they had differs by at most the dearest item of each."""
    line: FairLine[tuple[str, int]] = FairLine()
    for caller, items in enumerate(costs):
        for number, cost in enumerate(items):
            line.push(caller, (str(caller), number), cost)
    had = [0.0] * len(costs)
    left = [len(items) for items in costs]
    while len(line):
        name, number = line.pop()
        caller = int(name)
        had[caller] += costs[caller][number]
        left[caller] -= 1
        for other in range(len(costs)):
            if left[other] and left[caller]:
                most = max(costs[other]) + max(costs[caller])
                assert abs(had[other] - had[caller]) <= most + 1e-6
