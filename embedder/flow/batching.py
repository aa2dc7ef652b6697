"""The work-conserving batcher: pure asyncio, knows neither images nor vectors.

The loop is text-embeddings-inference's: *reserve a free worker first, then take what is
waiting*. There is no timer, so an idle batcher adds no delay, and batches grow only under load.

Promises: each submitted item is answered exactly once, in its own slot; a failed batch is tried
again item by item, so that one poisonous item costs only itself; an item whose caller has gone or
whose deadline has passed is not given to ``run``, neither in a batch nor alone; a worker never
dies of what ``run`` does; the callers of a lane take turns by what their items weigh. How much may
wait is decided in ``embedder.flow.admission``, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Generic, Self, TypeAlias, TypeVar

from embedder.flow.fair import FairLine
from shoal.errors import ConfigError, DeadlineExceeded, ServiceUnavailable, TransientError

T = TypeVar("T")
R = TypeVar("R")

Run: TypeAlias = Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]
"""Answers a batch: one result or exception per item, in order. Raising fails the whole batch."""

Watch: TypeAlias = Callable[[Sequence[float], int], None]
"""Is told of each batch that a worker takes: how long each of its items waited, in seconds, and
how many items wait on."""


class Lane(Enum):
    """The lines of a batcher, served in turn: a bulk load cannot starve a single query."""

    CALL = auto()
    STREAM = auto()


@dataclass(frozen=True, slots=True)
class Patience:
    """In which lane an item waits, until when (the loop's time; None: for ever), and for whom.

    The callers of a lane take turns.
    """

    lane: Lane = Lane.CALL
    deadline: float | None = None
    caller: Hashable = None


FOR_EVER: Final = Patience()
"""The patience of a call without a deadline."""


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    """One item, and where its answer goes. Times are the loop's."""

    item: T
    answer: asyncio.Future[R]
    since: float
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
    """How much one worker takes at once of the items that wait.

    Attributes:
        items: the most items of one batch, at least 1.
        spread: share the waiting items among all workers, each of which has a core, so that the
            next free worker finds some. Without it, the first worker takes all that it may: where
            the workers share one device or one store, two small batches cost more than a large
            one.
        weight: the most that one batch weighs, unless a single item weighs more; 0 is no limit.
        weigh: the weight of an item. Callers take turns by what their items weigh.
    """

    items: int
    spread: bool = True
    weight: float = 0
    weigh: Callable[[T], float] = lambda _: 1


def _unwatched(_waited_s: Sequence[float], _left: int) -> None:
    """Nobody is told."""


class Batcher(Generic[T, R]):
    """Gathers items that wait at the same time into batches for a few workers."""

    def __init__(
        self,
        run: Run[T, R],
        *,
        name: str,
        workers: int,
        portion: Portion[T],
        watch: Watch = _unwatched,
    ) -> None:
        """Prepares; nothing runs before ``start``.

        Args:
            run: Answers one batch. Called by up to ``workers`` tasks at the same time.
            name: Names the work in messages.
            workers: How many batches may be under way, at least 1.
            portion: What one batch may be.
            watch: Is told of each batch that a worker takes.

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
        self._watch = watch
        self._count = workers
        self._free = workers
        self._lanes: dict[Lane, FairLine[_Entry[T, R]]] = {lane: FairLine() for lane in Lane}
        self._line = list(Lane)
        self._wake = asyncio.Event()
        self._closing = False
        self._workers: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """How many items wait for a worker; an item whose caller has gone may still count."""
        return sum(map(len, self._lanes.values()))

    def start(self) -> None:
        """Starts the workers, as tasks of the running loop."""
        for number in range(self._count):
            name = f"{self._name}-{number}"
            self._workers.append(asyncio.create_task(self._work(), name=name))

    async def __aenter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes."""
        await self.close()

    async def submit(self, item: T, patience: Patience = FOR_EVER) -> R:
        """``run``'s answer for ``item``.

        Args:
            item: What to answer.
            patience: The queue to wait in, and until when.

        Raises:
            DeadlineExceeded: the deadline passed before ``run`` was given the item, or before it
                was to be given the item once more.
            ServiceUnavailable: the batcher is closed or was stopped by force.
            Exception: whatever ``run`` raised or returned for this item.
        """
        if self._closing:
            raise self._closed()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        entry = _Entry(item, answer, loop.time(), patience.deadline)
        self._lanes[patience.lane].push(patience.caller, entry, self._portion.weigh(item))
        self._wake.set()
        return await answer

    async def close(self) -> None:
        """Refuses new items, answers those that wait, and ends the workers.

        If this is cancelled, the items that still wait are answered with ServiceUnavailable.
        """
        self._closing = True
        self._wake.set()
        try:
            await asyncio.gather(*self._workers)
        finally:
            for lane in self._lanes.values():
                while lane:
                    lane.pop().settle(self._closed())

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
        """This worker's portion of the items that wait."""
        portion = self._portion
        share = len(self)
        if portion.spread:
            # A busy worker counts half: on average it is halfway through its batch.
            share = -(-2 * share // (self._count + self._free))
        batch: list[_Entry[T, R]] = []
        weight = 0.0
        now = asyncio.get_running_loop().time()
        while len(batch) < min(share, portion.items) and (lane := self._turn()):
            entry = self._lanes[lane].head()
            if self._is_wanted(entry, now):
                weight += portion.weigh(entry.item)
                if batch and 0 < portion.weight < weight:
                    break
                batch.append(entry)
                self._line.remove(lane)
                self._line.append(lane)
            self._lanes[lane].pop()
        if batch:
            self._watch([now - entry.since for entry in batch], len(self))
        return batch

    def _is_wanted(self, entry: _Entry[T, R], now: float) -> bool:
        """Whether a caller still waits for the item; one whose deadline has passed is told so."""
        if entry.deadline is not None and entry.deadline <= now:
            msg = f"{self._name}: the deadline passed while the item was waiting"
            entry.settle(DeadlineExceeded(msg))
        return not entry.answer.done()

    def _turn(self) -> Lane | None:
        """The first lane in line that is not empty, or None; a lane that is served goes last."""
        return next((lane for lane in self._line if self._lanes[lane]), None)

    async def _serve(self, batch: list[_Entry[T, R]]) -> None:
        try:
            error = await self._attempt(batch)
            if error is None:
                return
            # A transient error is no item's fault: trying each item again would only multiply the
            # wait for a store that is away.
            if len(batch) == 1 or isinstance(error, TransientError):
                for entry in batch:
                    entry.settle(error)
                return
            loop = asyncio.get_running_loop()
            for entry in batch:
                if self._is_wanted(entry, loop.time()):
                    failure = await self._attempt([entry])
                    if failure is not None:
                        entry.settle(failure)
        finally:
            for entry in batch:  # only a cancelled worker leaves items without an answer
                entry.settle(self._closed())

    async def _attempt(self, batch: list[_Entry[T, R]]) -> Exception | None:
        """Settles a batch with ``run``'s answers, or gives back why there are none."""
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
