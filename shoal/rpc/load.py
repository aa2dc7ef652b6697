"""The calls that a server has in progress: how many it takes, and what it does once they are over.

An open stream costs a server about 10 KB, also if nothing is ever sent on it. glibc keeps what was
freed, so that a flood would leave its mark for as long as the process lives.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from shoal.errors import Overloaded

_LOG = logging.getLogger(__name__)

MOST_CALLS: Final = 4_096
"""The calls in progress from which on a connection may have hardly any more: 40 MB of open streams.
A few dozen calls keep any server busy."""
_SHARES: Final = ((0.5, 64), (1.0, 4))
"""How full the server is, and how many calls a connection may then have at most. Below the first,
HTTP/2's limit holds (``config``). Whoever comes with a new connection is always let in."""
_FLOOD: Final = 256
"""As many calls at once as leave memory behind that is worth giving back."""
LARGE_BYTES: Final = 8 * 2**20
"""A message of this size leaves memory behind that is worth giving back: gRPC copies it."""
GIVE_BACK_S: Final = 5.0
"""How often a server looks whether it has memory to give back."""


class Left(Enum):
    """What has left memory behind."""

    NOTHING = "nothing"
    LARGE_MESSAGES = "large messages"
    CALLS = "many calls"


class Load:
    """Counts the calls in progress, and remembers whether they may have left memory behind."""

    def __init__(self, *, most: int = MOST_CALLS) -> None:
        """Prepares; no call is in progress."""
        self._most = most
        self._calls: Counter[str] = Counter()
        self.total = 0
        self._peak = 0
        self._large = False

    @contextmanager
    def call(self, connection: str) -> Iterator[None]:
        """Counts a call of ``connection`` inside the block.

        Raises:
            Overloaded: the connection has too many calls for a server as full as this one.
        """
        own = self._calls[connection]
        for full, share in _SHARES:
            if self.total >= full * self._most and own >= share:
                msg = (
                    f"the server has {self.total} calls in progress, {own} of them of this "
                    f"connection: expected at most {share} of one connection then"
                )
                raise Overloaded(msg)
        self._calls[connection] += 1
        self.total += 1
        self._peak = max(self._peak, self.total)
        try:
            yield
        finally:
            self.total -= 1
            self._calls[connection] -= 1
            if not self._calls[connection]:
                del self._calls[connection]

    def note_large(self) -> None:
        """Remembers that a large message was read."""
        self._large = True

    def left(self) -> Left:
        """What may have left memory behind since this was last asked."""
        if self._peak >= _FLOOD and self.total <= self._peak // 4:
            left = Left.CALLS
        else:
            left = Left.LARGE_MESSAGES if self._large else Left.NOTHING
        if left is not Left.NOTHING:
            self._peak, self._large = self.total, False
        return left


async def give_back_regularly(load: Load, *, every_s: float = GIVE_BACK_S) -> None:
    """Gives memory back to the system after floods and large messages; never ends."""
    while True:
        await asyncio.sleep(every_s)
        left = load.left()
        if left is not Left.NOTHING:
            await asyncio.to_thread(give_back, left)


def give_back(left: Left) -> None:
    """Lets the system have the memory that nobody uses; where the C library is glibc."""
    if left is Left.CALLS:
        gc.collect()  # calls that were cancelled refer to each other in circles
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    trim(0)
    _LOG.debug("memory was given back", extra={"after": left.value})
