"""Keeps track of a run: how far it is, and whether it may go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clusterer.runs.lease import Lease
from clusterer.runs.task import RunContext, RunProgress, Stage
from shoal.errors import Cancelled, StoreUnavailable
from shoal.store.patience import Patience


class Tracker:
    """Writes a run's progress, and stops the run when it is cancelled or its lease is lost."""

    def __init__(self, context: RunContext, lease: Lease) -> None:
        self._context = context
        self._lease = lease
        self.progress = RunProgress()
        self.patience = Patience(
            context.config.store_patience_s, stopped=context.cancelled, ready=self._going_on
        )

    def check(self) -> None:
        """Returns if the run may go on; waits while its time is up and the store is away.

        Raises:
            Cancelled: the run was told to stop.
            LeaseLost: another run has taken the lease.
            StoreUnavailable: the store was away for too long.
        """
        if not self._going_on():
            expired = StoreUnavailable("the lease could not be renewed")
            self.patience.pause(expired, since=self.patience.monotonic())

    def _going_on(self) -> bool:
        """Whether the lease is held; raises as ``check`` does."""
        if self._context.cancelled.is_set():
            raise Cancelled("told to stop, by a caller or because the server stops")
        return self._lease.held()

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """One stage of the run, timed; ``check`` comes before it."""
        self.check()
        self.progress.stage, self.progress.done, self.progress.total = name, 0, 0
        self._context.changed()
        began = time.monotonic()
        try:
            yield
        finally:
            self.progress.stage_s[name] = time.monotonic() - began

    def expect(self, total: int) -> None:
        """Sets how many units the stage has."""
        self.progress.total = total

    def advance(self, done: int) -> None:
        """Sets how many units of the stage are done; ``check`` comes first."""
        self.check()
        self.progress.done = done
        self._context.changed()
