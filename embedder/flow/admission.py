"""Admission: a bound on the items in process, and one holder at a time per key. Pure asyncio.

A unary call that does not fit is refused at once. A stream waits its turn, and through flow control
its sender becomes as slow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from shoal.errors import Overloaded

RETRY_AFTER_S = 1.0
"""A refused caller is told to wait this long, and should find room then: a few hundred images take
about this long on a small machine."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most items, and the most bytes, that may be in process at the same time."""

    max_items: int
    max_bytes: int


class Gate:
    """Counts the items in process, and their bytes.

    An empty gate admits anything: otherwise it would refuse a very large call for ever.
    """

    def __init__(
        self,
        name: str,
        capacity: Capacity,
        *,
        unit: str = "images",
        retry_after_s: float = RETRY_AFTER_S,
    ) -> None:
        """Prepares an empty gate; ``name``, and ``unit`` of what is counted, are for messages."""
        self._name = name
        self._capacity = capacity
        self._unit = unit
        self._retry_after_s = retry_after_s
        self._waiting: deque[tuple[asyncio.Future[None], int, int]] = deque()
        self.items = 0
        self.bytes = 0

    @contextmanager
    def admit(self, items: int, size: int) -> Iterator[None]:
        """Holds room for ``items`` of ``size`` bytes in all; Overloaded if there is none now."""
        if not self._fits(items, size):
            limit = self._capacity
            msg = (
                f"{self._name}: {self.items} {self._unit} ({self.bytes} bytes) are in process, "
                f"expected at most {limit.max_items} ({limit.max_bytes} bytes) "
                f"with the {items} ({size} bytes) of this call"
            )
            raise Overloaded(msg, retry_after_s=self._retry_after_s)
        self._count(items, size)
        try:
            yield
        finally:
            self.leave(size, items=items)

    async def enter(self, size: int, *, items: int = 1) -> None:
        """Takes room for ``items`` of ``size`` bytes in all; first come, first served.

        A caller that has entered must ``leave`` with the same numbers. A caller whose wait is
        cancelled has not entered.
        """
        if not self._waiting and self._fits(items, size):
            self._count(items, size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, items, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and cancelled in the same moment
                self.leave(size, items=items)
            else:
                self._let_in()
            raise

    def leave(self, size: int, *, items: int = 1) -> None:
        """Gives the room back."""
        self._count(-items, -size)
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            turn, items, size = self._waiting[0]
            if not turn.done():
                if not self._fits(items, size):
                    return
                self._count(items, size)
                turn.set_result(None)
            self._waiting.popleft()

    def _count(self, items: int, size: int) -> None:
        self.items += items
        self.bytes += size

    def _fits(self, items: int, size: int) -> bool:
        fits_items = self.items + items <= self._capacity.max_items
        fits_bytes = self.bytes + size <= self._capacity.max_bytes
        return self.items == 0 or (fits_items and fits_bytes)


class Allowance:
    """What the slow images of one call may cost together, ms."""

    def __init__(self, most_ms: float) -> None:
        """Prepares; nothing is spent."""
        self._most_ms = most_ms
        self.spent_ms = 0.0

    def spend(self, ms: float) -> None:
        """Counts an image that takes ``ms``, 0 if it is not slow. The first one always has room.

        Raises:
            Overloaded: there is too little left for it.
        """
        if ms and self.spent_ms and self.spent_ms + ms > self._most_ms:
            msg = (
                f"image: the slow images of one call may take {self._most_ms / 1000:g} s of a core "
                f"to decode, those before this one take about {self.spent_ms / 1000:.1f} s and it "
                f"takes {ms / 1000:.1f} s: send it in another call"
            )
            raise Overloaded(msg, decode_ms=f"{ms:.0f}", max_call_decode_ms=f"{self._most_ms:.0f}")
        self.spent_ms += ms


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock
    users: int = 0


class Turns:
    """One holder at a time per key, first come first served; unused keys are forgotten."""

    def __init__(self) -> None:
        """Prepares; no key is in use."""
        self._turns: dict[Hashable, _Turn] = {}

    def __len__(self) -> int:
        """The number of keys in use."""
        return len(self._turns)

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Holds ``key`` alone inside the block."""
        turn = self._turns.setdefault(key, _Turn(asyncio.Lock()))
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[key]
