"""Starts, cancels and ends runs, and rolls back. Blocking; each run has a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram

from clusterer.config import ClustererConfig
from clusterer.fits.child import Fitter, fit_in_child
from clusterer.runs import records
from clusterer.runs.engine import MakeEngine
from clusterer.runs.in_memory import InMemoryEngine
from clusterer.runs.lease import Holder, Lease, acquire, break_lease
from clusterer.runs.run import Reclustering
from clusterer.runs.runbook import Runbook
from clusterer.runs.task import RunContext, RunProgress, Task, not_enough
from shoal.errors import Cancelled, Conflict, NotFound, NothingToRollBack, ShoalError
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.store.model import Payload
from shoal.store.patience import Patience
from shoal.v1 import clusterer_pb2 as pb

_LOG = logging.getLogger(__name__)
_RUNS = Counter("shoal_clusterer_runs", "Runs that ended, by state.", ["state"])
_STAGE_S = Histogram(
    "shoal_clusterer_stage_seconds",
    "Time that runs spent in each stage.",
    ["stage"],
    buckets=(0.1, 1, 10, 60, 600, 3600),
)
_WRITTEN = Counter("shoal_clusterer_points_written", "Points whose payload runs wrote.")


@dataclass(slots=True)
class _Live:
    """A run under way in this process."""

    message: pb.Run
    run: Reclustering
    cancelled: threading.Event
    thread: threading.Thread | None = None
    watchers: set[Callable[[], object]] = field(default_factory=set)


class Runner:
    """The runs of one process. Thread-safe."""

    def __init__(
        self,
        store: Store,
        config: ClustererConfig,
        *,
        fit: Fitter = fit_in_child,
        make_engine: MakeEngine = InMemoryEngine,
    ) -> None:
        self._store = store
        self._config = config
        self._fit = fit
        self._make_engine = make_engine
        self._live: dict[str, _Live] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self.book = Runbook(store, self._progress)

    def cutover_lock(self, collection: str, clustering: str) -> threading.Lock:
        """The lock that keeps new points from being assigned while the pointer flips."""
        with self._guard:
            return self._locks[collection, clustering]

    def recover(self) -> None:
        """Frees the leases of a process that is certain to have died.

        The embedded store has one owner, so every earlier holder of a lease is gone. On a server a
        lease expires by itself; so does one that cannot be freed now, as on a full disk.
        """
        if self._store.kind == "server":
            return
        for collection in self._store.collections():
            clusterings = Clusterings(self._store, collection.name)
            for name in collection.clusterings:
                try:
                    self._free(clusterings, clusterings.state(name))
                except ShoalError as exc:
                    _LOG.warning("collection %s, clustering %s: %s", collection.name, name, exc)

    def _free(self, clusterings: Clusterings, state: State) -> None:
        """Closes the record of the run that holds the lease in ``state``, and frees the lease."""
        if state.lease.run:
            _LOG.warning("run %s was interrupted", state.lease.run)
            self.book.close_record(clusterings, state.lease.run, state)
            break_lease(clusterings, state)

    def start(self, task: Task, message: pb.Run, *, once: bool) -> pb.Run:
        """Starts a run.

        Args:
            task: what to run.
            message: the run's message; the run keeps a copy.
            once: whether a run of this id that is known already is returned instead.

        Returns:
            The message of the run, which has begun.

        Raises:
            NotEnoughPoints: the method needs more points than there are.
            LeaseHeld: another run is under way.
        """
        with self._starting:
            if once:
                with contextlib.suppress(NotFound):
                    return self.book.get(task.collection, task.run)
            if self._closing.is_set():
                raise Cancelled("the clusterer is shutting down")
            clusterings = Clusterings(self._store, task.collection)
            points = self._store.count(task.collection)
            if points < task.fit_plan.least_points:
                raise not_enough(task.fit_plan, points, task.collection)
            lease, before = acquire(clusterings, self._holder(task.clustering, task.run))
            try:
                if before.lease.run:
                    self.book.close_record(clusterings, before.lease.run, before)
                run = records.begun(message, time.time())
                clusterings.put_run(task.run, records.to_record(run))
                self._launch(task, run, lease)
            except BaseException:
                lease.release()
                raise
        return self.book.get(task.collection, task.run)

    def _holder(self, clustering: str, run: str) -> Holder:
        """A holder with an owner of its own: of two requests for one run only one may win."""
        return Holder(clustering, str(uuid.uuid4()), run, self._config.lease_ttl_s)

    def _launch(self, task: Task, message: pb.Run, lease: Lease) -> None:
        cancelled = threading.Event()
        context = RunContext(
            store=self._store,
            config=self._config,
            cutover_lock=self.cutover_lock(task.collection, task.clustering),
            cancelled=cancelled,
            changed=lambda: self._tell(task.run),
            fit=self._fit,
        )
        run = Reclustering(task, context, lease, self._make_engine)
        live = _Live(message, run, cancelled)
        live.thread = threading.Thread(
            target=self._execute, args=(task, live, lease), name=f"run-{task.run}"
        )
        with self._guard:
            self._live[task.run] = live
        live.thread.start()

    def _execute(self, task: Task, live: _Live, lease: Lease) -> None:
        message = records.copied(live.message)
        try:
            message.state = records.OUTCOME[live.run.execute()]
        except ShoalError as exc:
            cancelled = isinstance(exc, Cancelled)
            message.state = pb.RUN_STATE_CANCELLED if cancelled else pb.RUN_STATE_FAILED
            message.error_reason, message.error_message = exc.reason, exc.message
        except Exception as exc:  # noqa: BLE001 - a defect: the run must not look alive for ever
            _LOG.exception("run %s failed", task.run)
            message.state, message.error_reason = pb.RUN_STATE_FAILED, ShoalError.reason
            message.error_message = f"{type(exc).__name__}: {exc}"
        self._finish(task, live, message, lease)

    def _finish(self, task: Task, live: _Live, message: pb.Run, lease: Lease) -> None:
        # While the store is away nobody can read the run: it ends when its end is recorded.
        store = self._store.patient(Patience(math.inf, stopped=self._closing))
        clusterings = Clusterings(store, task.collection)
        records.set_progress(message, live.run.progress)
        message.ended_at.CopyFrom(records.timestamp(time.time()))
        try:
            # Whatever failed after the flip, readers see the run: the pointer is the truth.
            if clusterings.state(task.clustering).pointer.active_run == task.run:
                message.state = pb.RUN_STATE_SUCCEEDED
                message.error_reason = message.error_message = ""
            # First the lease, then the record: whoever sees the end may start another run.
            lease.release(through=clusterings)
            clusterings.put_run(task.run, records.to_record(message))
            self.book.forget_old(clusterings, task.clustering, self._config.kept_runs)
        except ShoalError as exc:
            # The lease expires by itself, and a run without one is read as ended. Old records are
            # dropped after the next run.
            _LOG.warning("run %s: its end was not recorded: %s", task.run, exc.message)
        self._report(task, message, live.run.progress)
        with self._guard:
            del self._live[task.run]
        for watcher in tuple(live.watchers):
            watcher()

    def _report(self, task: Task, message: pb.Run, progress: RunProgress) -> None:
        state = pb.RunState.Name(message.state).removeprefix("RUN_STATE_").lower()
        _RUNS.labels(state).inc()
        _WRITTEN.inc(message.points_written)
        for name, seconds in progress.stage_s.items():
            _STAGE_S.labels(name).observe(seconds)
        _LOG.info(
            "run %s of %s/%s %s",
            task.run,
            task.collection,
            task.clustering,
            state,
            extra={"run": task.run, "state": state, "error": message.error_message},
        )

    def _progress(self, run: str) -> RunProgress | None:
        with self._guard:
            live = self._live.get(run)
        return live.run.progress if live else None

    def _tell(self, run: str) -> None:
        with self._guard:
            live = self._live.get(run)
        for watcher in tuple(live.watchers) if live else ():
            watcher()

    def watch(self, run: str, watcher: Callable[[], object]) -> Callable[[], None]:
        """Calls ``watcher``, from any thread, when ``run`` changes; the result stops that."""
        with self._guard:
            live = self._live.get(run)
        if live is None:
            return lambda: None
        live.watchers.add(watcher)
        return lambda: live.watchers.discard(watcher)

    def cancel(self, collection: str, run: str) -> pb.Run:
        """Tells a run to stop.

        Returns:
            The message of the run.

        Raises:
            Conflict: it belongs to another process.
        """
        message = self.book.get(collection, run)
        with self._guard:
            live = self._live.get(message.id)
        if live is not None:
            live.cancelled.set()
        elif message.state == pb.RUN_STATE_RUNNING:
            raise Conflict(f"run {message.id} is under way in another process: cancel it there")
        return message

    def rollback(self, collection: str, clustering: str, request_id: str) -> State:
        """Points readers back at the previous run.

        Raises:
            NothingToRollBack: there is no previous run, or its assignment is no longer whole.
            LeaseHeld: a run is under way.
        """
        clusterings = Clusterings(self._store, collection)
        state = clusterings.state(clustering)
        if request_id and state.pointer.rollback_request == request_id:
            return state
        if not state.pointer.active_run:
            raise _nothing_before(collection, state)
        lease, before = acquire(
            clusterings, self._holder(state.clustering, f"rollback-{uuid.uuid4()}")
        )
        if before.lease.run:
            self.book.close_record(clusterings, before.lease.run, before)
        with lease, self.cutover_lock(collection, state.clustering):
            state = clusterings.state(clustering)
            if not state.pointer.previous_run:
                raise _nothing_before(collection, state)
            changes: Payload = {
                "active_slot": state.pointer.inactive_slot,
                "active_run": state.pointer.previous_run,
                "previous_run": state.pointer.active_run,
                "changed_at": time.time(),
                "rollback_request": request_id,
                "run_noise": state.drift.previous_noise,
                "run_confidence": state.drift.previous_confidence,
                "previous_noise": state.drift.run_noise,
                "previous_confidence": state.drift.run_confidence,
                "newcomers_clustered": 0,
                "newcomers_confidence": 0.0,
            }
            lease.update(changes)
            self._store.flush()
        return clusterings.state(clustering)

    def cancel_all(self) -> None:
        """Tells every run under way to stop, and lets none begin."""
        with self._guard:
            self._closing.set()
            live = list(self._live.values())
        for run in live:
            run.cancelled.set()

    def close(self) -> None:
        """Cancels the runs under way and waits for them."""
        self.cancel_all()
        with self._starting:  # a run that was about to start is under way by now
            self.cancel_all()
        with self._guard:
            threads = [run.thread for run in self._live.values() if run.thread is not None]
        for thread in threads:
            thread.join()


def _nothing_before(collection: str, state: State) -> NothingToRollBack:
    return NothingToRollBack(
        f"clustering {state.clustering!r} of {collection!r} has no earlier assignment to return "
        "to: expected a run that succeeded before the active one, with no run begun since"
    )
