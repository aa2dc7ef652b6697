"""SIGTERM, SIGINT, SIGHUP: caught from before the start, so that a start is never torn apart.

A SIGHUP (a terminal that goes away) that is ignored stays so: ``nohup`` asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def catch_signals() -> Iterator[asyncio.Event]:
    """An event of the running loop that the first SIGTERM, SIGINT or SIGHUP sets.

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
    """A check that raises KeyboardInterrupt after a SIGINT, SIGHUP or SIGTERM (of Kubernetes).

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
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, as SIGINT does, with their number.

    In another thread than the main one no signal is caught.
    """

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) not in {signal.SIG_IGN, None}
    }
    if threading.current_thread() is not threading.main_thread():
        before = {}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, nothing to put back
                signal.signal(number, handler)

    for number in before:
        signal.signal(number, lambda _number, _frame: handle())
    try:
        yield restore
    finally:
        restore()
