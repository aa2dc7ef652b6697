"""The work-conserving batcher: pure asyncio, knows neither images nor vectors.

The loop is text-embeddings-inference's: *reserve a free worker first, then take what is
waiting*. There is no timer, so an idle batcher adds no delay, and batches grow only under load.

Promises: each submitted item is answered exactly once, in its own slot; an item whose caller has
gone or whose deadline has passed never reaches ``run``; a failed batch is tried again item by
item, so that one poisonous item costs only itself; a worker never dies of what ``run`` does.
How much may wait is not decided here: see ``embedder.flow.admission``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Self, TypeAlias, TypeVar

from shoal.errors import ConfigError, DeadlineExceeded, ServiceUnavailable, TransientError

T = TypeVar("T")
R = TypeVar("R")

Run: TypeAlias = Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]
"""Answers a batch: one result or exception per item, in order. Raising fails the whole batch."""


class Lane(Enum):
    """Who waits. Lanes are served in turn, so that a bulk load cannot starve a single query."""

    CALL = "call"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Patience:
    """In which lane an item waits, and until when (the loop's time; None: for ever)."""

    lane: Lane = Lane.CALL
    deadline: float | None = None


FOR_EVER: Final = Patience()
"""That of a call without a deadline."""


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    """One item, and where its answer goes. ``deadline`` is in the loop's time."""

    item: T
    answer: asyncio.Future[R]
    deadline: float | None

    def settle(self, answer: R | Exception) -> None:
        if self.answer.done():  # the caller has gone
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


@dataclass(frozen=True, slots=True)
class Portion(Generic[T]):
    """How much of what waits one worker takes at once.

    Attributes:
        items: at most so many, at least 1.
        spread: share what waits among all workers, each of which has a core: whoever is free next
            finds some. Otherwise the first takes what it can: where all wait for one device or one
            store, two small batches cost more than a large one.
        weight: at most so much, but one item of any weight; 0 is no limit.
        weigh: the weight of an item.
    """

    items: int
    spread: bool = True
    weight: int = 0
    weigh: Callable[[T], int] = lambda _: 0


class Batcher(Generic[T, R]):
    """Gathers items that wait at the same time into batches for a few workers."""

    def __init__(self, run: Run[T, R], *, name: str, workers: int, portion: Portion[T]) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            run: Answers one batch. Called by up to ``workers`` tasks at the same time.
            name: What is batched, for messages.
            workers: How many batches may be under way, at least 1.
            portion: What one batch may be.

        Raises:
            ConfigError: there is no worker, or no item in a portion.
        """
        if workers < 1 or portion.items < 1:
            msg = (
                f"{name}: expected at least 1 worker and 1 item per batch, "
                f"got {workers} and {portion.items}"
            )
            raise ConfigError(msg, field=name)
        self._run = run
        self._name = name
        self._portion = portion
        self._count = workers
        self._free = workers
        self._lanes: dict[Lane, deque[_Entry[T, R]]] = {lane: deque() for lane in Lane}
        self._next = Lane.CALL
        self._wake = asyncio.Event()
        self._closing = False
        self._workers: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """How many items wait for a worker; those whose callers have gone may still count."""
        return sum(map(len, self._lanes.values()))

    def start(self) -> None:
        """Start the workers, as tasks of the running loop."""
        for number in range(self._count):
            name = f"{self._name}-{number}"
            self._workers.append(asyncio.create_task(self._work(), name=name))

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def submit(self, item: T, patience: Patience = FOR_EVER) -> R:
        """``run``'s answer for ``item``.

        Args:
            item: What to answer.
            patience: The queue to wait in, and until when.

        Raises:
            DeadlineExceeded: the deadline passed before a worker was free.
            ServiceUnavailable: the batcher is closed or was stopped by force.
            Exception: whatever ``run`` raised or returned for this item.
        """
        if self._closing:
            raise self._closed()
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._lanes[patience.lane].append(_Entry(item, answer, patience.deadline))
        self._wake.set()
        return await answer

    async def close(self) -> None:
        """Refuse new items, answer those that wait, and end the workers.

        If this is cancelled, whatever is still waiting is answered with ServiceUnavailable.
        """
        self._closing = True
        self._wake.set()
        try:
            await asyncio.gather(*self._workers)
        finally:
            for lane in self._lanes.values():
                while lane:
                    lane.popleft().settle(self._closed())

    def _closed(self) -> ServiceUnavailable:
        return ServiceUnavailable(f"{self._name}: shutting down, nothing new is accepted")

    async def _work(self) -> None:
        while True:
            while not len(self):
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
            batch = self._take()
            if batch:
                self._free -= 1
                try:
                    await self._serve(batch)
                finally:
                    self._free += 1
            del batch  # or its images are kept while this waits for the next

    def _take(self) -> list[_Entry[T, R]]:
        """This worker's portion of what waits."""
        portion = self._portion
        share = len(self)
        if portion.spread:  # those that are busy are halfway through as much, on average
            share = -(-2 * share // (self._count + self._free))
        batch: list[_Entry[T, R]] = []
        weight = 0
        now = asyncio.get_running_loop().time()
        while len(batch) < min(share, portion.items) and (lane := self._turn()):
            entry = self._lanes[lane][0]
            if entry.deadline is not None and entry.deadline <= now:
                msg = f"{self._name}: the deadline passed while the item was waiting"
                entry.settle(DeadlineExceeded(msg))
            elif not entry.answer.done():
                weight += portion.weigh(entry.item)
                if batch and 0 < portion.weight < weight:
                    break
                batch.append(entry)
            self._lanes[lane].popleft()
            self._next = Lane.STREAM if lane is Lane.CALL else Lane.CALL
        return batch

    def _turn(self) -> Lane | None:
        """The lane whose turn it is; another if nothing waits in that one."""
        waiting = [lane for lane in Lane if self._lanes[lane]]
        return self._next if self._next in waiting else next(iter(waiting), None)

    async def _serve(self, batch: list[_Entry[T, R]]) -> None:
        try:
            error = await self._attempt(batch)
            if error is None:
                return
            # What is transient is not an item's fault: asking again for each of them would only
            # multiply the wait for a store that is away.
            alone = len(batch) == 1 or isinstance(error, TransientError)
            for entry in batch:
                if entry.answer.done():
                    continue
                failure = error if alone else await self._attempt([entry])
                if failure is not None:
                    entry.settle(failure)
        finally:
            for entry in batch:  # only a worker that was cancelled leaves any
                entry.settle(self._closed())

    async def _attempt(self, batch: list[_Entry[T, R]]) -> Exception | None:
        """Settle a batch with ``run``'s answers; or return why there are none."""
        try:
            answers = await self._run([entry.item for entry in batch])
            if len(answers) != len(batch):
                msg = f"{self._name}: expected {len(batch)} answers, got {len(answers)}"
                return RuntimeError(msg)
        except Exception as exc:  # noqa: BLE001 - the callers get it; a worker must not die of it
            return exc
        for entry, answer in zip(batch, answers, strict=True):
            entry.settle(answer)
        return None
