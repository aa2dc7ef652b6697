"""The records of runs, brought up to date: a run may be another process's, or of a dead one."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable

from clusterer.runs import records
from clusterer.runs.task import RunProgress
from shoal.errors import InvalidArgument, NotFound
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.v1 import clusterer_pb2 as pb

_LEAST_PREFIX = 4

LiveProgress = Callable[[str], RunProgress | None]
"""Looks up the progress of a run under way in this process; None for any other run."""


class Runbook:
    """Reads and mends the records of the runs in one store. Thread-safe."""

    def __init__(self, store: Store, live: LiveProgress) -> None:
        self._store = store
        self._live = live

    def get(self, collection: str, run: str) -> pb.Run:
        """One run, by its id or by a beginning of the id that no other run has.

        Raises:
            NotFound: there is no such run, or no such collection.
            InvalidArgument: the beginning is too short or fits several.
        """
        clusterings = Clusterings(self._store, collection)
        try:
            record = clusterings.run(str(uuid.UUID(run)))
        except ValueError:
            record = clusterings.run(_complete(clusterings, run))
        message = records.from_record(record)
        return self._current(clusterings, message, clusterings.state(message.clustering))

    def runs(self, collection: str, clustering: str) -> list[pb.Run]:
        """The runs of ``collection``, newest first."""
        clusterings = Clusterings(self._store, collection)
        runs = [records.from_record(record) for record in clusterings.runs(clustering)]
        states = {run.clustering: clusterings.state(run.clustering) for run in runs}
        return [self._current(clusterings, run, states[run.clustering]) for run in runs]

    def _current(self, clusterings: Clusterings, run: pb.Run, state: State) -> pb.Run:
        """``run`` as it is now: with live progress, or ended if its process is gone."""
        progress = self._live(run.id)
        run.active = state.pointer.active_run == run.id
        if run.state != pb.RUN_STATE_RUNNING:
            return run
        if progress is not None:
            records.set_progress(run, progress)
        elif not (state.lease.run == run.id and state.lease.held(time.time())):
            # It may have ended since its record was read.
            run = records.from_record(clusterings.run(run.id))
            run.active = state.pointer.active_run == run.id
            if run.state == pb.RUN_STATE_RUNNING:
                run.state = _fate(run.id, state)
        return run

    def forget_old(self, clusterings: Clusterings, clustering: str, keep: int) -> None:
        """Drops the records of all runs of ``clustering`` but the newest ``keep``.

        The active run, the run before it and a run under way stay whatever their age.
        """
        old = [str(record["run"]) for record in clusterings.runs(clustering)[keep:]]
        state = clusterings.state(clustering)
        needed = {state.pointer.active_run, state.pointer.previous_run, state.lease.run}
        clusterings.drop_runs([run for run in old if run not in needed])

    def close_record(self, clusterings: Clusterings, run: str, state: State) -> None:
        """Writes into the record of ``run``, whose process is dead, how it ended.

        ``state`` is the clustering's, from before anybody else moved the pointer.
        """
        with contextlib.suppress(NotFound):  # a rollback's lease has no record
            message = records.from_record(clusterings.run(run))
            if message.state == pb.RUN_STATE_RUNNING:
                message.state = _fate(run, state)
                message.ended_at.CopyFrom(records.timestamp(time.time()))
                clusterings.put_run(run, records.to_record(message))


def _fate(run: str, state: State) -> pb.RunState:
    """The state of a run that ended without a word: the pointer tells whether it went live."""
    if run in (state.pointer.active_run, state.pointer.previous_run):
        return pb.RUN_STATE_SUCCEEDED
    return pb.RUN_STATE_INTERRUPTED


def _complete(clusterings: Clusterings, prefix: str) -> str:
    if len(prefix) < _LEAST_PREFIX:
        raise InvalidArgument(
            f"run {prefix!r}: expected an id, or at least its first {_LEAST_PREFIX} characters",
            field="run",
        )
    found = [str(r["run"]) for r in clusterings.runs() if str(r["run"]).startswith(prefix)]
    if not found:
        raise NotFound(f"collection {clusterings.collection!r} has no run {prefix!r}")
    if len(found) > 1:
        raise InvalidArgument(f"run {prefix!r} is ambiguous: {', '.join(found)}", field="run")
    return found[0]
