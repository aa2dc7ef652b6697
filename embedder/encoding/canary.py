"""Checks in the background that a model still gives its reference vectors. Pure asyncio.

The self-test waits behind the batches that are under way, and on a CPU one batch of a large model
can take longer than a readiness probe waits. So nobody waits for a self-test: the last result
counts until the next one is there, and a self-test that takes too long counts as a failure.

A GPU that failed once may fail until the process ends (CUDA's errors are sticky), and a run that
hangs cannot be stopped. So a model that fails for too long, or a run that does not end, is given
up: the process has to be replaced.
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
"""Gives seconds since any fixed moment."""

LONGEST_GAP_S: Final = 10.0
"""The longest gap between two looks at a model that counts in full; normally they are a second
apart."""


class Attended:
    """A clock that counts LONGEST_GAP_S at most from one look to the next.

    The time during which the process was frozen (Ctrl-Z, a paused container) does not count.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = clock()
        self.now = 0.0

    def look(self) -> float:
        """The time now, seconds."""
        seen = self._clock()
        self.now += min(seen - self._seen, LONGEST_GAP_S)
        self._seen = seen
        return self.now


class Runs:
    """The runs of a model that are under way, to notice one that hangs. Thread-safe."""

    def __init__(self, *, name: str, give_up_s: float, clock: Clock = time.monotonic) -> None:
        """Prepares; ``name`` is the model's, ``give_up_s`` is longer than any run takes."""
        self._name = name
        self._give_up_s = give_up_s
        self._time = Attended(clock)
        self._began: dict[object, float] = {}

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Counts one run as under way until the block ends."""
        run = object()
        self._began[run] = self._time.now
        try:
            yield
        finally:
            del self._began[run]

    def check(self) -> None:
        """Raises Unrecoverable if a run is under way for more than ``give_up_s``."""
        now = self._time.look()
        if now - min([*self._began.values()], default=now) > self._give_up_s:
            msg = f"for {self._give_up_s:g} s a run of encoder {self._name} has not ended"
            raise Unrecoverable(msg, encoder=self._name)


@dataclass(frozen=True, slots=True)
class Times:
    """The times of self-tests, all in seconds.

    Attributes:
        interval_s: how long after a success the next self-test begins.
        timeout_s: how long a self-test may take.
        give_up_s: how long self-tests may fail before the model is given up.
    """

    interval_s: float
    timeout_s: float
    give_up_s: float


class Canary:
    """Tests a model from time to time, in the background."""

    def __init__(
        self,
        test: Callable[[], Awaitable[None]],
        *,
        name: str,
        times: Times,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepares; the model counts as tested now, because opening it runs its self-test.

        Args:
            test: Returns if the model gives its reference vectors, and raises if not.
            name: The model's name, for messages.
            times: When to test, how long to wait, and when to give up.
            clock: Gives seconds.
        """
        self._test = test
        self._name = name
        self._times = times
        self._clock = clock
        self._passed_at = self._started_at = clock()
        self._failure: Exception | None = None
        self._time = Attended(clock)
        self._failing_since = 0.0
        self._testing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Returns if the last self-test succeeded and the one under way is not overdue.

        Starts the next self-test if the last success is old.

        Raises:
            OperatorError: the self-test under way takes too long.
            Unrecoverable: self-tests have failed for too long.
            Exception: the failure of the last self-test, until one succeeds.
        """
        now = self._clock()
        attended = self._time.look()
        due = self._failure is not None or now - self._passed_at >= self._times.interval_s
        if self._testing is None and due:
            self._started_at = now
            self._testing = asyncio.create_task(self._run_test(), name=f"canary-{self._name}")
        if self._failure is not None:
            if attended - self._failing_since > self._times.give_up_s:
                long = f"{self._times.give_up_s:g} s"
                msg = f"for {long} encoder {self._name} has failed its self-test: {self._failure}"
                raise Unrecoverable(msg, encoder=self._name)
            raise self._failure.with_traceback(None)  # each raise would make the traceback longer
        if self._testing is not None and now - self._started_at > self._times.timeout_s:
            waited = f"{self._times.timeout_s:g} s"
            msg = f"encoder {self._name} has not answered its self-test in {waited}"
            raise OperatorError(msg, encoder=self._name)

    def trust(self) -> None:
        """Returns unless the last self-test failed: the model's vectors must not be stored then.

        Raises:
            ServiceUnavailable: the last self-test failed; another process may do better.
        """
        if self._failure is not None:
            msg = f"encoder {self._name} fails its self-test: {self._failure}"
            raise ServiceUnavailable(msg, encoder=self._name)

    async def close(self) -> None:
        """Cancels a self-test that is under way."""
        if self._testing is not None:
            self._testing.cancel()
            await asyncio.gather(self._testing, return_exceptions=True)

    async def _run_test(self) -> None:
        try:
            await self._test()
        except Exception as exc:  # noqa: BLE001 - after any failure the model is not trusted
            if self._failure is None:
                self._failing_since = self._time.now
            self._failure = exc
        else:
            self._failure = None
            self._passed_at = self._clock()
        finally:
            self._testing = None
