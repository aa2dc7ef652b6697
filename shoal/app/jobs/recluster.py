"""``shoal cluster --engine spark``: a reclustering run that this process drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.app.config import SparkChoice
from shoal.rpc.signals import note_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.client import Run
    from shoal.v1 import clusterer_pb2 as pb


class RunInterrupted(KeyboardInterrupt):
    """A signal came while a run was under way; ``run`` is its id, and it is told to stop."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


def recluster_in_spark(
    choice: SparkChoice,
    request: pb.CreateRunRequest,
    *,
    bisecting: bool,
    on_change: Callable[[Run], object],
) -> Run:
    """The run that ``request`` asks for, at its end.

    Raises:
        RunInterrupted: after Ctrl-C or SIGTERM; the run is cancelled.
        KeyboardInterrupt: the same, before there is a run.
        ShoalError: it could not begin.
    """
    from clusterer.config import ClustererConfig
    from clusterer.spark import plan_task, recluster
    from shoal.client.messages_runs import from_run
    from shoal.spark.cluster import open_spark
    from shoal.store import open_store

    config = ClustererConfig()
    name = f"shoal cluster {request.collection}/{request.clustering or 'default'}"
    with note_interrupts() as check, open_store(choice.store) as store:

        def tell(message: pb.Run) -> None:
            check()
            on_change(from_run(message))

        wanted = plan_task(request, store, config, bisecting=bisecting)
        try:
            with open_spark(choice.spark, name=name) as cluster:
                check()
                return from_run(
                    recluster(
                        wanted,
                        store,
                        cluster,
                        store_config=choice.store,
                        config=config,
                        on_change=tell,
                    )
                )
        except KeyboardInterrupt as exc:
            raise RunInterrupted(wanted.task.run) from exc
