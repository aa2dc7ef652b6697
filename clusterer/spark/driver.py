"""The process that drives a run in Spark: one run of the clusterer's runner, followed to its end.

It is not a service. It takes the lease in the store like any run, so it excludes the runs of
clusterer services over the same store, and they exclude it; its record is beside theirs.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from clusterer import messages
from clusterer.config import ClustererConfig
from clusterer.fits import plan_fit
from clusterer.fits.values import NO_DUPLICATES
from clusterer.runs import records
from clusterer.runs.runner import Runner
from clusterer.runs.task import RunProgress, Task, task_of
from clusterer.spark.engine import SparkEngine, SparkSettings
from clusterer.spark.fits import METHODS, check_plan
from shoal.errors import TransientError, Unsupported
from shoal.spark.cluster import SparkCluster
from shoal.store import Store, StoreConfig
from shoal.store.clusterings import Clusterings
from shoal.v1 import clusterer_pb2 as pb

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class SparkTask:
    """A request for a run, checked against its store; ``bisecting``: k-means bisects."""

    task: Task
    message: pb.Run
    bisecting: bool = False


def plan_task(
    request: pb.CreateRunRequest, store: Store, config: ClustererConfig, *, bisecting: bool
) -> SparkTask:
    """The task of ``request``, made before Spark is started.

    Raises:
        Unsupported: Spark's engine cannot do the task.
        InvalidArgument, NotFound: as the clusterer's service.
    """
    if store.kind != "server":
        raise Unsupported("--engine spark needs a Qdrant server, which all executors reach")
    method = request.config.WhichOneof("method") or "none"
    if method not in METHODS:
        raise Unsupported(f"--engine spark: expected method kmeans or gmm, got {method}")
    asked = messages.run_request(request)
    fit = plan_fit(asked.method, duplicate_cosine=asked.duplicate_cosine)
    if asked.duplicate_cosine is not None and fit.duplicate_cosine < 1:
        msg = "duplicate_cosine: --engine spark counts equal vectors once, and no near ones"
        raise Unsupported(f"{msg}: expected 1 or more, got {fit.duplicate_cosine:g}")
    if fit.duplicate_cosine > 1:
        fit = replace(fit, duplicate_cosine=NO_DUPLICATES)
    check_plan(fit, bisecting=bisecting)
    vector = store.collection(asked.collection).vector(asked.vector)
    size = max(asked.sample_size or config.sample_size, fit.least_points)
    task = task_of(asked, vector, fit, sample_size=size, default_gates=config.gates)
    return SparkTask(task, records.new_run(task, request.config), bisecting)


def recluster(  # noqa: PLR0913 - what, where, by whom, and whom to tell
    wanted: SparkTask,
    store: Store,
    cluster: SparkCluster,
    *,
    store_config: StoreConfig,
    config: ClustererConfig,
    on_change: Callable[[pb.Run], object],
) -> pb.Run:
    """Does the run; its message at its end. ``on_change`` gets the message now and then.

    If ``on_change`` or a signal raises, the Spark job is cancelled, the run ends, the lease is
    given back, and the exception passes on.

    Raises:
        LeaseHeld: another run is under way.
        NotEnoughPoints: the method needs more points than there are.
    """
    task, message = wanted.task, records.begun(wanted.message, time.time())
    clusterings = Clusterings(store, task.collection)

    def record(progress: RunProgress) -> None:
        now = records.from_record(clusterings.run(task.run))
        records.set_progress(now, progress)
        clusterings.put_run(task.run, records.to_record(now))

    settings = SparkSettings(cluster, store_config, wanted.bisecting, record)
    runner = Runner(store, config, make_engine=functools.partial(SparkEngine, settings))
    try:
        now = runner.start(task, message, once=False)
        while now.state == pb.RUN_STATE_RUNNING:
            on_change(now)
            time.sleep(_POLL_S)
            with contextlib.suppress(TransientError):  # the run itself ends with its lease
                now = runner.book.get(task.collection, task.run)
    finally:
        runner.close()
    return runner.book.get(task.collection, task.run)
