"""SIGTERM and SIGINT: caught from before the start, so that a start is never torn apart."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def catch_signals() -> Iterator[asyncio.Event]:
    """An event of the running loop that the first SIGTERM or SIGINT sets.

    After the first one, as after leaving, the handlers of before are back.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    with _first_signal(lambda: loop.call_soon_threadsafe(signalled.set)):
        yield signalled


@contextlib.contextmanager
def catch_signals_in_thread() -> Iterator[threading.Event]:
    """As ``catch_signals``, for a program without a loop."""
    signalled = threading.Event()
    with _first_signal(signalled.set):
        yield signalled


@contextlib.contextmanager
def note_interrupts() -> Iterator[Callable[[], None]]:
    """A check that raises KeyboardInterrupt after a SIGINT or a SIGTERM (that of Kubernetes).

    The first signal raises nothing wherever the program happens to be, such as between taking a
    lease and knowing it. The second one does, for where nothing checks. In another thread than
    the main one no signal is noted.
    """
    noted = threading.Event()

    def check() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    def note() -> None:
        check()
        noted.set()

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    with _handling(note):
        yield check


@contextlib.contextmanager
def _first_signal(caught: Callable[[], object]) -> Iterator[None]:
    """Calls ``caught`` at the first signal, with the handlers of before back in place."""

    def first() -> None:
        restore()
        caught()

    with _handling(first) as restore:
        yield


@contextlib.contextmanager
def _handling(handle: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Calls ``handle`` at every signal; gives what puts the handlers of before back."""
    before = {number: signal.getsignal(number) for number in _STOPPING}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, nothing to put back
                signal.signal(number, handler)

    for number in _STOPPING:
        signal.signal(number, lambda _number, _frame: handle())
    try:
        yield restore
    finally:
        restore()
