"""A server's engine that fails when it is told to, and stores over it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from reclustering import DIM, VECTOR

from shoal.store import Store, engines
from shoal.values import VectorInfo


def make_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets those who wait for a store ask it again at once."""
    monkeypatch.setattr("shoal.store.patience.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("shoal.store.patience.LONGEST_PAUSE_S", 0.01)


class Faulty:
    """An engine that passes for a server's, and asks ``fault`` before and after each call."""

    def __init__(self) -> None:
        self._engine: Any = engines.open_memory().engine
        self._lock = threading.RLock()  # the engine in memory is for one thread at a time
        self.fault: Callable[[str], object] = lambda _: None

    def store(self) -> Store:
        """A store over it, with one empty collection of toy vectors."""
        opened = Store(engines.Backend("server", self, nullcontext()))  # type: ignore[arg-type]
        opened.create_collection("toys", [VectorInfo(VECTOR, DIM, "f" * 64)])
        return opened

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.fault(f"before {name}")
            with self._lock:
                result = getattr(self._engine, name)(*args, **kwargs)
            self.fault(f"after {name}")
            return result

        return call


class EachOnce:
    """A fault that lets each call fail once, before or after it was done."""

    def __init__(self, when: str) -> None:
        self._when = when
        self.failed: list[str] = []
        self._failing = False

    def __call__(self, moment: str) -> None:
        when, _, name = moment.partition(" ")
        if when == self._when:
            self._failing = not self._failing
            if self._failing:
                self.failed.append(name)
                raise OSError("connection reset")


def away_until(back: Callable[[], object]) -> Callable[[str], None]:
    """A fault that lasts from the first write of labels until ``back``."""
    gone: list[bool] = []

    def fault(moment: str) -> None:
        if moment == "before set_payload" and not gone:
            gone.append(True)
        if gone and not back():
            raise OSError("connection refused")

    return fault


def refuse(_: str) -> None:
    raise OSError("connection refused")
