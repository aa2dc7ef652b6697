"""The message of a run, which is also its stored form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from clusterer.fits.head import HeadFitOptions
from clusterer.runs.plan import Plan
from clusterer.runs.task import Outcome, RunProgress, Stage, Task
from shoal.store.model import Payload
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import LineageKind

_STAGE: Final[Mapping[Stage, pb.RunStage]] = {
    "sample": pb.RUN_STAGE_SAMPLE,
    "fit": pb.RUN_STAGE_FIT,
    "assign": pb.RUN_STAGE_ASSIGN,
    "plan": pb.RUN_STAGE_PLAN,
    "write": pb.RUN_STAGE_WRITE,
    "cutover": pb.RUN_STAGE_CUTOVER,
}
OUTCOME: Final[Mapping[Outcome, pb.RunState]] = {
    Outcome.SUCCEEDED: pb.RUN_STATE_SUCCEEDED,
    Outcome.PLANNED: pb.RUN_STATE_PLANNED,
    Outcome.REFUSED: pb.RUN_STATE_REFUSED,
}
_KIND: Final[Mapping[LineageKind, pb.LineageKind]] = {
    "continued": pb.LINEAGE_KIND_CONTINUED,
    "born": pb.LINEAGE_KIND_BORN,
    "split": pb.LINEAGE_KIND_SPLIT,
    "merged": pb.LINEAGE_KIND_MERGED,
    "retired": pb.LINEAGE_KIND_RETIRED,
}


def new_run(task: Task, config: pb.ClusteringConfig) -> pb.Run:
    """The message of a run of ``task``: its ``config`` as requested, defaults filled in."""
    run = pb.Run(
        id=task.run,
        collection=task.collection,
        clustering=task.clustering,
        config=config,
        noise_only=task.noise_only,
    )
    run.config.sample_size, run.config.vector = task.sample_size, task.vector
    if isinstance(task.fit_plan.options, HeadFitOptions):  # a name may mean another head tomorrow
        run.config.scp.head = task.fit_plan.options.head
    return run


def begun(run: pb.Run, now: float) -> pb.Run:
    """A copy of ``run`` that is under way since ``now`` (Unix seconds)."""
    copy = copied(run)
    copy.state = pb.RUN_STATE_RUNNING
    copy.created_at.CopyFrom(timestamp(now))
    return copy


def copied(run: pb.Run) -> pb.Run:
    """A copy of ``run``."""
    copy = pb.Run()
    copy.CopyFrom(run)
    return copy


def timestamp(seconds: float) -> Timestamp:
    """Unix ``seconds`` as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp


def set_progress(run: pb.Run, progress: RunProgress) -> None:
    """Copies ``progress`` into ``run``."""
    run.stage = _STAGE[progress.stage] if progress.stage else pb.RUN_STAGE_UNSPECIFIED
    run.stage_done, run.stage_total = progress.done, progress.total
    run.points_written, run.base_run = progress.points_written, progress.base_run
    del run.stage_times[:]
    for name, seconds in dict(progress.stage_s).items():  # a copy: the run adds to it
        run.stage_times.add(stage=_STAGE[name]).duration.FromNanoseconds(round(seconds * 1e9))
    if progress.plan is not None:
        run.plan.CopyFrom(_plan(progress.plan, progress.objections))
        _set_facts(run.plan, progress.facts)


def _plan(plan: Plan, objections: tuple[str, ...]) -> pb.Plan:
    """``plan`` as a message."""
    message = pb.Plan(
        points=plan.points,
        clusters=plan.clusters,
        moved=plan.moved,
        moved_share=plan.moved_share,
        to_write=plan.to_write,
        noise=plan.noise,
        silhouette=plan.quality.silhouette,
        agreement=plan.agreement,
        inertia=plan.quality.inertia,
        confidence=plan.quality.confidence,
        centroid_drift=plan.quality.centroid_drift,
        objections=objections,
    )
    for line in plan.lineage:
        message.lineage.add(
            cluster=line.cluster,
            kind=_KIND[line.kind],
            size=line.size,
            related=line.related,
            overlap=line.overlap,
        )
    return message


def _set_facts(plan: pb.Plan, facts: Mapping[str, Any]) -> None:
    """Copies the facts of a fit that the contract has a place for into ``plan``."""
    plan.duplicates = facts.get("duplicates", 0)
    plan.layers.extend(facts.get("layers", ()))
    plan.head = facts.get("head", "")
    count = facts.get("count")
    if count is not None:
        plan.votes_disagree = count["disagree"]
        for vote in count["votes"]:
            plan.votes.add(estimator=vote["estimator"], k=vote["k"])
        for k, inertia in count["elbow"]:
            plan.elbow.add(k=k, inertia=inertia)


def to_record(run: pb.Run) -> Payload:
    """``run`` as the payload of its record."""
    return {
        "clustering": run.clustering,
        "created_at": run.created_at.ToNanoseconds() / 1e9,
        "record": MessageToDict(run, preserving_proto_field_name=True),
    }


def from_record(payload: Payload) -> pb.Run:
    """The run in ``payload``; fields that a later version wrote are left out."""
    record: Any = payload["record"]
    return ParseDict(record, pb.Run(), ignore_unknown_fields=True)
