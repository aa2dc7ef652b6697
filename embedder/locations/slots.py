"""Slots for reads that run at the same time, each with a thread for blocking calls.

A call that hangs in a thread cannot be ended, only left alone. Its slot stays taken until the call
ends, so threads never pile up. Each kind of place has slots of its own, so a place that hangs
holds up its own kind only.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from shoal.errors import LocationUnavailable, ServiceUnavailable

P = ParamSpec("P")
T = TypeVar("T")


class Slots:
    """Slots for the reads of one kind, taken first come first served."""

    def __init__(self, kind: str, count: int, *, patience_s: float) -> None:
        """Makes ``count`` slots; ``kind`` is for messages.

        ``patience_s``: after this time a call whose read was cancelled counts as hanging.
        """
        self._kind = kind
        self._count = count
        self._patience_s = patience_s
        self._idle = [_Thread(f"shoal-read-{kind}") for _ in range(count)]
        # Threads busy with calls that nobody waits for, and whether the call counts as hanging.
        self._abandoned: dict[_Thread, bool] = {}
        self._waiting: deque[asyncio.Future[_Thread]] = deque()
        self._closed = False

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Executor]:
        """Waits for a free slot; gives its thread, for one call after the other.

        If the block ends with a TimeoutError, the call under way counts as hanging at once.

        Raises:
            LocationUnavailable: all slots are taken by calls that hang.
            ServiceUnavailable: the slots are closed.
        """
        thread = await self._next()
        patience_s = self._patience_s
        try:
            yield thread
        except TimeoutError:
            patience_s = 0
            raise
        finally:
            self._leave(thread, patience_s)

    def close(self) -> None:
        """Ends the threads, busy ones after their call. Whoever waits for a slot gets an error."""
        self._closed = True
        for thread in (*self._idle, *self._abandoned):
            thread.end()
        self._fail_waiting(_shutting_down)

    async def _next(self) -> _Thread:
        if self._closed:
            raise _shutting_down()
        if self._idle:
            return self._idle.pop()
        if self._all_hang():
            raise self._hanging()
        turn: asyncio.Future[_Thread] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(turn.result(), 0)  # the slot came at the moment of the cancel
            raise

    def _leave(self, thread: _Thread, patience_s: float) -> None:
        if self._closed:
            thread.end()
        elif thread.call is None or thread.call.done():
            self._give(thread)
        else:
            loop = asyncio.get_running_loop()
            self._abandoned[thread] = False
            timer = loop.call_later(patience_s, self._give_up, thread)

            def ended(_: Future[Any]) -> None:
                with suppress(RuntimeError):  # the loop is closed, so nobody waits for a slot
                    loop.call_soon_threadsafe(self._take_back, thread, timer)

            thread.call.add_done_callback(ended)

    def _give_up(self, thread: _Thread) -> None:
        self._abandoned[thread] = True
        if self._all_hang():
            self._fail_waiting(self._hanging)

    def _take_back(self, thread: _Thread, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        del self._abandoned[thread]
        self._give(thread)

    def _give(self, thread: _Thread) -> None:
        thread.call = None  # it may hold an image
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thread)
                return
        self._idle.append(thread)

    def _fail_waiting(self, error: Callable[[], Exception]) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error())

    def _all_hang(self) -> bool:
        return len(self._abandoned) == self._count and all(self._abandoned.values())

    def _hanging(self) -> LocationUnavailable:
        return LocationUnavailable(
            f"{self._kind}: all {self._count} reads that may run at the same time hang, none has "
            f"ended within {self._patience_s:g} s; expected one to end before the next"
        )


class _Thread(Executor):
    """One thread, started for its first call.

    It is a daemon, unlike the threads of ThreadPoolExecutor: the process can end while it hangs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = False
        self.call: Future[Any] | None = None
        """The latest call."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if not self._started:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._started = True
        call = Future[T]()
        self._calls.put((call, partial(fn, *args, **kwargs)))
        self.call = call
        return call

    def end(self) -> None:
        """Ends the thread after the calls that were submitted."""
        self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, work = given
            if call.set_running_or_notify_cancel():
                try:
                    call.set_result(work())
                except BaseException as exc:  # noqa: BLE001 - the caller gets it
                    call.set_exception(exc)
            del given, call, work  # an image is up to 20 MiB


def _shutting_down() -> ServiceUnavailable:
    return ServiceUnavailable("the embedder is shutting down")
