"""Signals that stop a server: caught from before it starts, so that a start is never torn apart."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def catch_signals() -> Iterator[asyncio.Event]:
    """An event of the running loop that the first SIGTERM or SIGINT sets.

    Only the first one: then, as on leaving, the handlers that were there before are back, and a
    second signal does what it did before.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    previous = {number: signal.getsignal(number) for number in _STOPPING}

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            loop.remove_signal_handler(number)
            with contextlib.suppress(TypeError):  # None: not set from Python, nothing to restore
                signal.signal(number, handler)

    def caught() -> None:
        signalled.set()
        restore()

    for number in _STOPPING:
        loop.add_signal_handler(number, caught)
    try:
        yield signalled
    finally:
        restore()
