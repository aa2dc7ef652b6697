"""Whether a model still gives the vectors that it gave when it was proven right. Pure asyncio.

The test waits behind the batches that are under way, and on a CPU one batch of a large model takes
longer than whoever asks for readiness waits. So nobody waits for a test: the last answer counts
until the next one is there, and a test that stays out too long counts as a failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from shoal.errors import OperatorError, ServiceUnavailable


class Canary:
    """Asks a model for its reference vectors from time to time, in the background."""

    def __init__(
        self,
        test: Callable[[], Awaitable[None]],
        *,
        name: str,
        interval_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare, vouching for the model from now on: it is proven right when it is opened.

        Args:
            test: Returns if the model gives its reference vectors, and raises if not.
            name: The model's, for messages.
            interval_s: How long a right answer vouches for the next.
            timeout_s: How long an answer may take.
            clock: Gives seconds.
        """
        self._test = test
        self._name = name
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._vouched_at = self._asked_at = clock()
        self._failure: Exception | None = None
        self._asking: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Return if the last answer was right and is not overdue; asks again when it is old.

        Raises:
            OperatorError: the model does not answer.
            Exception: why the last test failed, until one succeeds.
        """
        now = self._clock()
        doubted = self._failure is not None or now - self._vouched_at >= self._interval_s
        if self._asking is None and doubted:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(), name=f"canary-{self._name}")
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # raised again and again, it would grow
        if self._asking is not None and now - self._asked_at > self._timeout_s:
            msg = f"encoder {self._name} has not answered its self-test in {self._timeout_s:g} s"
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
            self._failure = exc
        else:
            self._failure = None
            self._vouched_at = self._clock()
        finally:
            self._asking = None
