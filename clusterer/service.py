"""The clusterer as a gRPC service: messages to the runner and back, and its own tasks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc.aio

from clusterer import messages
from clusterer.config import ClustererConfig
from clusterer.duplicates import DuplicateFinder
from clusterer.fits import Surroundings, choose_vector, plan_fit
from clusterer.fits.child import Fitter, fit_in_child
from clusterer.fits.lsh import DEFAULT_THRESHOLD
from clusterer.runs import records
from clusterer.runs.runner import Runner
from clusterer.runs.sampling import sampled_blocks
from clusterer.runs.task import RunRequest, Task, task_of
from clusterer.upkeep import ageing
from clusterer.upkeep import schedule as schedules
from clusterer.upkeep.upkeep import Upkeep
from shoal.errors import Cancelled, InvalidArgument, NotFound, ShoalError, StoreUnavailable
from shoal.rpc.pages import first_page, no_such_page, page_size
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.store.model import Empty, Filter, VectorScan, check_clustering_name
from shoal.v1 import clusterer_pb2 as pb
from shoal.v1 import clusterer_pb2_grpc

_LOG = logging.getLogger(__name__)
_PAGE = 50
_CALL_THREADS = 4
_SENT_ROWS = 256
"""Vectors of one message: 1.3 MB at 1280-d, under gRPC's default limit of 4 MB."""
_WATCH_S = 0.1
"""The least time between two messages of a watch: a run reports each block of a scan."""
_SCHEDULE_S = 1.0
"""How often schedules are looked at: a run that is due begins at most this late."""
_FOREIGN_WATCH_S = 1.0
"""How often a watch reads a run of another process."""

_R = TypeVar("_R")


class ClustererService(clusterer_pb2_grpc.ClustererServiceServicer):
    """Runs, rollback, and the assignment of new points."""

    name = "shoal.v1.ClustererService"

    def __init__(
        self, config: ClustererConfig, store: Store, *, fit: Fitter = fit_in_child
    ) -> None:
        self._config = config
        self._store = store
        self._runner = Runner(store, config, fit=fit)
        self._threads = ThreadPoolExecutor(_CALL_THREADS, "clusterer")
        self._searching = ThreadPoolExecutor(1, "duplicates")
        self._upkeep = Upkeep(
            self._runner, store, config, start=self._create, check=self._check_running
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to ``server``."""
        clusterer_pb2_grpc.add_ClustererServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Frees the leases of a dead process, and starts the service's own tasks."""
        await self._in_thread(self._runner.recover)
        upkeep, pause_s = self._upkeep, self._config.assign_interval_s
        self._tasks = [
            asyncio.create_task(self._repeat(upkeep.assign_newcomers, pause_s, "newcomers")),
            asyncio.create_task(self._repeat(upkeep.keep_schedules, _SCHEDULE_S, "schedules")),
        ]

    async def ready(self) -> bool:
        """True when the store answers and the service's own tasks go on."""
        await self._in_thread(self._store.collections)
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def drain(self) -> None:
        """Cancels the runs under way, which ends their watches; active clusterings stay whole."""
        self._runner.cancel_all()

    async def stop(self, grace_s: float) -> None:
        """Waits for the runs, which end at their next step, and for the tasks."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._searching.shutdown)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._runner.close)

    async def _in_thread(self, call: Callable[..., _R], *args: object) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(call, *args))

    async def CreateRun(self, request: pb.CreateRunRequest, context: object) -> pb.Run:
        """Starts a run; the same request id returns the same run."""
        return await self._in_thread(self._create, request)

    def _create(self, request: pb.CreateRunRequest) -> pb.Run:
        asked = messages.run_request(request)
        task = self._task_of(asked)
        message = records.new_run(task, request.config)
        return self._runner.start(task, message, once=asked.repeatable)

    def _task_of(self, asked: RunRequest) -> Task:
        """The task that ``asked`` describes, checked against the store and the heads."""
        collection = self._store.collection(asked.collection)
        vector = choose_vector(asked.vector, asked.method, collection, self._config.heads)
        fit = plan_fit(
            asked.method,
            Surroundings(self._config.heads, vector),
            duplicate_cosine=asked.duplicate_cosine,
        )
        return task_of(
            asked,
            vector,
            fit,
            sample_size=self._sample_size(asked.sample_size, fit.least_points),
            default_gates=self._config.gates,
        )

    def _sample_size(self, asked: int, least: int, *, field: str = "config.sample_size") -> int:
        most = self._config.max_sample_size
        if max(asked, least) > most:
            name = field.rpartition(".")[2]
            raise InvalidArgument(
                f"{name}: expected at most {most}, got {max(asked, least)}", field=field
            )
        return max(asked or self._config.sample_size, least)

    async def GetRun(self, request: pb.GetRunRequest, context: object) -> pb.Run:
        """One run."""
        return await self._in_thread(self._runner.book.get, request.collection, request.run)

    async def ListRuns(self, request: pb.ListRunsRequest, context: object) -> pb.ListRunsResponse:
        """The runs, newest first; the page token is the last run of the page before."""
        runs = await self._in_thread(self._runner.book.runs, request.collection, request.clustering)
        size = page_size(request.page_size, _PAGE)
        first = 0
        if request.page_token:
            ids = [run.id for run in runs]
            if request.page_token not in ids:
                raise no_such_page(request.page_token)
            first = ids.index(request.page_token) + 1
        page, following = first_page(runs[first:], size, lambda run: run.id)
        return pb.ListRunsResponse(runs=page, next_page_token=following)

    async def WatchRun(self, request: pb.WatchRunRequest, context: object) -> AsyncIterator[pb.Run]:
        """The run as it is now and after each change, until it has ended."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        run = await self._in_thread(self._runner.book.get, request.collection, request.run)
        unwatch = self._runner.watch(run.id, lambda: loop.call_soon_threadsafe(changed.set))
        try:
            last, away_since = None, math.inf
            while True:
                changed.clear()
                try:
                    run = await self._in_thread(self._runner.book.get, request.collection, run.id)
                    away_since = math.inf
                except StoreUnavailable:  # the run waits for the store, and so does its watch
                    away_since = min(away_since, loop.time())
                    if loop.time() - away_since >= self._config.store_patience_s:
                        raise
                    await asyncio.sleep(_WATCH_S)
                    continue
                if run != last:
                    last = run
                    yield run
                if run.state != pb.RUN_STATE_RUNNING:
                    return
                await asyncio.sleep(_WATCH_S)
                try:
                    await asyncio.wait_for(changed.wait(), _FOREIGN_WATCH_S)
                except TimeoutError:
                    continue
        finally:
            unwatch()

    async def CancelRun(self, request: pb.CancelRunRequest, context: object) -> pb.Run:
        """Tells a run to stop."""
        return await self._in_thread(self._runner.cancel, request.collection, request.run)

    async def Rollback(self, request: pb.RollbackRequest, context: object) -> pb.Clustering:
        """Points readers back at the previous run."""
        return await self._in_thread(self._rollback, request)

    def _rollback(self, request: pb.RollbackRequest) -> pb.Clustering:
        asked = messages.check_request_id(request.request_id)
        state = self._runner.rollback(request.collection, request.clustering, asked)
        return self._clustering(request.collection, state)

    async def GetClustering(
        self, request: pb.GetClusteringRequest, context: object
    ) -> pb.Clustering:
        """The state of one clustering."""

        def read() -> pb.Clustering:
            state = Clusterings(self._store, request.collection).state(request.clustering)
            return self._clustering(request.collection, state)

        return await self._in_thread(read)

    async def ListClusterings(
        self, request: pb.ListClusteringsRequest, context: object
    ) -> pb.ListClusteringsResponse:
        """The clusterings of a collection."""

        def read() -> pb.ListClusteringsResponse:
            names = self._store.collection(request.collection).clusterings
            clusterings = Clusterings(self._store, request.collection)
            found = [self._clustering(request.collection, clusterings.state(n)) for n in names]
            return pb.ListClusteringsResponse(clusterings=found)

        return await self._in_thread(read)

    def _clustering(self, collection: str, state: State) -> pb.Clustering:
        total = self._store.count(collection)
        waiting = self._store.count(collection, Filter(must=(Empty(state.active_field),)))
        message = pb.Clustering(
            collection=collection,
            name=state.clustering,
            active_run=state.pointer.active_run,
            previous_run=state.pointer.previous_run,
            assigned=total - waiting,
            unassigned=waiting,
            running=state.lease.run if state.lease.held(time.time()) else "",
        )
        clusterings = Clusterings(self._store, collection)
        if state.pointer.active_run:
            message.clusters = clusterings.count_clusters(
                state.clustering, state.pointer.active_run
            )
            message.changed_at.CopyFrom(records.timestamp(state.pointer.changed_at))
            with contextlib.suppress(NotFound):  # the run's records are lost
                message.drift.CopyFrom(
                    messages.drift(ageing.measure(self._store, collection, state))
                )
        schedule = schedules.load(clusterings, state.clustering)
        if schedule is not None:
            message.schedule.CopyFrom(schedule.answer())
        return message

    async def SetSchedule(self, request: pb.SetScheduleRequest, context: object) -> pb.Clustering:
        """Sets or removes a clustering's schedule."""
        return await self._in_thread(self._set_schedule, request)

    def _set_schedule(self, request: pb.SetScheduleRequest) -> pb.Clustering:
        name = check_clustering_name(request.clustering)
        clusterings = Clusterings(self._store, request.collection)
        schedule = None
        if request.HasField("schedule"):
            schedule = schedules.from_message(request.schedule, time.time())
            asked = pb.CreateRunRequest()
            asked.CopyFrom(schedule.request)
            asked.collection, asked.clustering = request.collection, name
            self._task_of(messages.run_request(asked))  # refuses a request that could never run
            clusterings.ensure(name)
        schedules.save(clusterings, name, schedule)
        return self._clustering(request.collection, clusterings.state(name))

    async def SampleVectors(
        self, request: pb.SampleVectorsRequest, context: object
    ) -> AsyncIterator[pb.SampledVectors]:
        """A sample of the vectors, block by block."""
        collection = await self._in_thread(self._store.collection, request.collection)
        spec = collection.vector(request.vector)
        size = self._sample_size(request.size, 0, field="size")
        count = await self._in_thread(self._store.count, collection.name)
        size = min(size, count)  # points that come in meanwhile are left out
        yield pb.SampledVectors(vector=messages.vector_info(spec), total=size)
        options = VectorScan(
            vector=spec.name, fields=("uri",), block_size=min(self._config.block_size, _SENT_ROWS)
        )
        blocks = sampled_blocks(self._store, collection.name, options, size=size, seed=request.seed)
        while True:
            found = await self._in_thread(next, blocks, None)
            if found is None:
                return
            yield messages.sampled(*found)

    async def ListDuplicates(
        self, request: pb.ListDuplicatesRequest, context: object
    ) -> AsyncIterator[pb.DuplicateGroup]:
        """Groups of near-duplicates, largest first."""
        # A thread of its own: the search takes minutes, and calls that share threads take moments.
        loop = asyncio.get_running_loop()
        collection = await self._in_thread(self._store.collection, request.collection)
        vector = collection.vector(request.vector)
        cosine = request.min_cosine if request.HasField("min_cosine") else DEFAULT_THRESHOLD
        gone = threading.Event()

        def check() -> None:
            self._check_running()
            if gone.is_set():
                raise Cancelled("the caller has left")

        finder = DuplicateFinder(
            store=self._store,
            collection=request.collection,
            vector=vector.name,
            threshold=cosine,
            block_size=self._config.block_size,
            check=check,
        )
        groups = finder.groups()
        try:
            while True:
                group = await loop.run_in_executor(self._searching, next, groups, None)
                if group is None:
                    return
                yield messages.duplicate_group(group)
        finally:
            gone.set()

    async def _repeat(self, work: Callable[[], None], pause_s: float, name: str) -> None:
        """Does ``work`` again and again until the service stops.

        After a failure it goes on; failures of one reason in a row are logged once.
        """
        failing = ""
        while not self._stopping.is_set():
            try:
                await self._in_thread(work)
                failing = ""
            except ShoalError as exc:
                if exc.reason != failing:
                    _LOG.warning("%s: %s", name, exc.message)
                failing = exc.reason
            except Exception:  # noqa: BLE001 - a defect must not end the work for good
                _LOG.exception("%s", name)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except TimeoutError:
                continue

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise Cancelled("the clusterer is shutting down")
