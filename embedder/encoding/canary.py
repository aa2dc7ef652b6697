"""Whether a model still gives the vectors that it gave when it was proven right. Pure asyncio.

The test waits behind the batches that are under way, and on a CPU one batch of a large model takes
longer than whoever asks for readiness waits. So nobody waits for a test: the last answer counts
until the next one is there, and a test that stays out too long counts as a failure.

A GPU that failed once may fail for as long as the process lives (CUDA's errors are sticky), and a
run that hangs cannot be stopped: after a while, what is wrong or does not end is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from shoal.errors import OperatorError, ServiceUnavailable, Unrecoverable

Clock: TypeAlias = Callable[[], float]
"""Gives seconds, from any beginning."""

LONGEST_GAP_S: Final = 10.0
"""Between two looks at a model, which are a second apart."""


class Attended:
    """Time as far as somebody looked: from one look to the next, LONGEST_GAP_S at most.

    A process that was frozen (Ctrl-Z, a paused container) has not waited for anything meanwhile.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = clock()
        self.now = 0.0

    def look(self) -> float:
        """The time now."""
        seen = self._clock()
        self.now += min(seen - self._seen, LONGEST_GAP_S)
        self._seen = seen
        return self.now


class Runs:
    """The runs of a model that are under way, to tell one that hangs. Thread-safe."""

    def __init__(self, *, name: str, give_up_s: float, clock: Clock = time.monotonic) -> None:
        """Prepare; ``name`` is the model's, ``give_up_s`` more than any run takes."""
        self._name = name
        self._give_up_s = give_up_s
        self._time = Attended(clock)
        self._began: dict[object, float] = {}

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """One run, as long as the block."""
        run = object()
        self._began[run] = self._time.now
        try:
            yield
        finally:
            del self._began[run]

    def check(self) -> None:
        """Unrecoverable if a run is under way for too long."""
        now = self._time.look()
        if now - min([*self._began.values()], default=now) > self._give_up_s:
            msg = f"for {self._give_up_s:g} s a run of encoder {self._name} has not ended"
            raise Unrecoverable(msg, encoder=self._name)


@dataclass(frozen=True, slots=True)
class Times:
    """How long a model is trusted, waited for and put up with, all in seconds.

    Attributes:
        interval_s: how long a right answer vouches for the next.
        timeout_s: how long an answer may take.
        give_up_s: after how long of nothing but failures there is no hope.
    """

    interval_s: float
    timeout_s: float
    give_up_s: float


class Canary:
    """Asks a model for its reference vectors from time to time, in the background."""

    def __init__(
        self,
        test: Callable[[], Awaitable[None]],
        *,
        name: str,
        times: Times,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepare, vouching for the model from now on: it is proven right when it is opened.

        Args:
            test: Returns if the model gives its reference vectors, and raises if not.
            name: The model's, for messages.
            times: How long to trust, to wait, and to go on.
            clock: Gives seconds.
        """
        self._test = test
        self._name = name
        self._times = times
        self._clock = clock
        self._vouched_at = self._asked_at = clock()
        self._failure: Exception | None = None
        self._time = Attended(clock)
        self._failed_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Return if the last answer was right and is not overdue; asks again when it is old.

        Raises:
            OperatorError: the model does not answer.
            Unrecoverable: it has failed for too long.
            Exception: why the last test failed, until one succeeds.
        """
        now = self._clock()
        attended = self._time.look()
        doubted = self._failure is not None or now - self._vouched_at >= self._times.interval_s
        if self._asking is None and doubted:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(), name=f"canary-{self._name}")
        if self._failure is not None:
            if attended - self._failed_at > self._times.give_up_s:
                long = f"{self._times.give_up_s:g} s"
                msg = f"for {long} encoder {self._name} has failed its self-test: {self._failure}"
                raise Unrecoverable(msg, encoder=self._name)
            raise self._failure.with_traceback(None)  # raised again and again, it would grow
        if self._asking is not None and now - self._asked_at > self._times.timeout_s:
            waited = f"{self._times.timeout_s:g} s"
            msg = f"encoder {self._name} has not answered its self-test in {waited}"
            raise OperatorError(msg, encoder=self._name)

    def trust(self) -> None:
        """Return unless the model has gone wrong: its vectors are better not stored.

        Raises:
            ServiceUnavailable: the last test failed; another process may do better.
        """
        if self._failure is not None:
            msg = f"encoder {self._name} fails its self-test: {self._failure}"
            raise ServiceUnavailable(msg, encoder=self._name)

    async def close(self) -> None:
        """Give up a test that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            await self._test()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the model is not to be trusted
            if self._failure is None:
                self._failed_at = self._time.now
            self._failure = exc
        else:
            self._failure = None
            self._vouched_at = self._clock()
        finally:
            self._asking = None
