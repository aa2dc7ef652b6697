"""A line of items in which callers take turns by what their items cost. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), which is deficit round robin without rounds:
each caller has a clock that runs by the cost of its served items, and the caller whose clock is
furthest behind is next. So a caller with a thousand items waits no less than one with a single
item, and one with slow images gets as much of the machine as the others, not as many turns.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_FORGET_AFTER = 256
"""As many callers without items are remembered at least; then those are forgotten that are not
ahead of the others."""


class FairLine(Generic[T]):
    """Items of several callers; those of one caller stay in their order."""

    def __init__(self) -> None:
        """Prepares an empty line."""
        self._items: dict[Hashable, deque[tuple[T, float]]] = {}
        self._turns: list[tuple[float, int, Hashable]] = []
        self._clocks: dict[Hashable, float] = {}
        """The clocks of the callers that have been served and have no items now."""
        self._now = 0.0
        self._count = 0
        self._length = 0
        self._forget_at = _FORGET_AFTER

    def __len__(self) -> int:
        """How many items wait."""
        return self._length

    def push(self, caller: Hashable, item: T, cost: float) -> None:
        """Puts ``item``, which costs ``cost``, behind the other items of ``caller``."""
        self._length += 1
        items = self._items.get(caller)
        if items is not None:
            items.append((item, cost))
            return
        self._items[caller] = deque([(item, cost)])
        # A caller that was away saves nothing up: its clock goes on from now.
        self._wait(caller, max(self._now, self._clocks.pop(caller, 0.0)))

    def head(self) -> T:
        """The next item; IndexError if there is none."""
        return self._items[self._turns[0][2]][0][0]

    def pop(self) -> T:
        """Takes the next item; IndexError if there is none."""
        clock, _, caller = heapq.heappop(self._turns)
        items = self._items[caller]
        item, cost = items.popleft()
        self._length -= 1
        self._now = clock
        if items:
            self._wait(caller, clock + cost)
        else:
            del self._items[caller]
            self._clocks[caller] = clock + cost
            self._forget()
        return item

    def _wait(self, caller: Hashable, clock: float) -> None:
        self._count += 1  # of equal clocks, the one that came first
        heapq.heappush(self._turns, (clock, self._count, caller))

    def _forget(self) -> None:
        """Forgets the callers that have no items and whose clocks are not ahead of the others."""
        if len(self._clocks) >= self._forget_at:
            now = self._now
            self._clocks = {each: clock for each, clock in self._clocks.items() if clock > now}
            self._forget_at = max(_FORGET_AFTER, 2 * len(self._clocks))
