"""Calls of a server that is away are made again, for whoever can wait: a run, not a caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.errors import Cancelled, Overloaded, StoreUnavailable, TransientError
from shoal.store.engines import Engine
from shoal.store.failures import engine_errors

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0
"""The pause doubles from try to try up to this: a server that is back is used within a second."""

MOST_DOUBLINGS: Final = 10
"""After as many the pause is at its longest; without a bound it would be too large for a number."""

MOST_RETRY_AFTER_S: Final = 30.0
"""The most that an overloaded server is believed when it says how long to wait."""

REPEATABLE: Final = frozenset(
    {
        "get_collections",
        "get_collection",
        "update_collection",  # merges the same keys again
        "create_payload_index",
        "upsert",  # the same whole points again
        "retrieve",
        "scroll",
        "query_points",
        "count",
        "facet",
        "set_payload",  # a condition that the first try ended is not met by the second
        "delete_payload",
        "delete",
    }
)
"""The methods of an engine that may take effect twice: not those that make and drop."""


def _always() -> bool:
    """Lets every call be made again."""
    return True


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call of a server that is away is made again.

    Attributes:
        limit_s: How many seconds after its first failure a call fails for good.
        stopped: Set when nobody waits any more.
        ready: Whether a call may be made again now; may raise.
        monotonic: The clock, in seconds.
        wait: Waits until an event is set, for some seconds at most.
    """

    limit_s: float
    stopped: threading.Event = field(default_factory=threading.Event)
    ready: Callable[[], bool] = _always
    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], object] = threading.Event.wait

    def pause(self, error: TransientError, *, since: float, tries: int = 1) -> None:
        """Waits until a call that failed ``tries`` times, first at ``since``, is to be made again.

        Raises:
            Cancelled: nobody waits any more.
            StoreUnavailable: the limit is reached.
        """
        pause_s = min(FIRST_PAUSE_S * 2 ** min(tries - 1, MOST_DOUBLINGS), LONGEST_PAUSE_S)
        if isinstance(error, Overloaded):
            pause_s = max(pause_s, min(error.retry_after_s, MOST_RETRY_AFTER_S))
        while True:
            if self.monotonic() - since >= self.limit_s:
                msg = f"the store was away for {self.limit_s:g} s: {error.message}"
                raise StoreUnavailable(msg) from error
            self.wait(self.stopped, pause_s)
            if self.stopped.is_set():
                raise Cancelled("told to stop while the store was away") from error
            if self.ready():
                return


class PatientEngine:
    """An engine whose repeatable calls about ``subject`` are made again, as ``patience`` says."""

    def __init__(self, engine: Engine, patience: Patience, subject: str) -> None:
        self._engine = engine
        self._patience = patience
        self._subject = subject

    def __getattr__(self, name: str) -> Any:
        """The engine's method of that name, which repeats itself if it may."""
        method: Callable[..., Any] = getattr(self._engine, name)
        if name not in REPEATABLE:
            return method

        def patient(*args: Any, **kwargs: Any) -> Any:
            since, tries = 0.0, 0
            while True:
                try:
                    with engine_errors(self._subject):
                        return method(*args, **kwargs)
                except (StoreUnavailable, Overloaded) as exc:
                    since = since if tries else self._patience.monotonic()
                    tries += 1
                    self._patience.pause(exc, since=since, tries=tries)

        return patient
