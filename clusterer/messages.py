"""Messages to the clusterer's domain and back. The stored form of a run is its message."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from clusterer.fits import LEAVES_NOISE, FitPlan
from clusterer.runs.naming import NameSources
from clusterer.runs.plan import Report
from clusterer.runs.task import Outcome, Progress, Task
from shoal.errors import InvalidArgument
from shoal.store.model import Payload, VectorBlock, check_clustering_name
from shoal.v1 import clusterer_pb2 as pb
from shoal.v1 import common_pb2
from shoal.values import Drift, Gates, VectorInfo

STAGE = {
    "sample": pb.RUN_STAGE_SAMPLE,
    "fit": pb.RUN_STAGE_FIT,
    "assign": pb.RUN_STAGE_ASSIGN,
    "plan": pb.RUN_STAGE_PLAN,
    "write": pb.RUN_STAGE_WRITE,
    "cutover": pb.RUN_STAGE_CUTOVER,
}
OUTCOME = {
    Outcome.SUCCEEDED: pb.RUN_STATE_SUCCEEDED,
    Outcome.PLANNED: pb.RUN_STATE_PLANNED,
    Outcome.REFUSED: pb.RUN_STATE_REFUSED,
}
KIND = {
    "continued": pb.LINEAGE_KIND_CONTINUED,
    "born": pb.LINEAGE_KIND_BORN,
    "split": pb.LINEAGE_KIND_SPLIT,
    "merged": pb.LINEAGE_KIND_MERGED,
    "retired": pb.LINEAGE_KIND_RETIRED,
}
MOST_WORDS: Final = 10_000
"""Assigning words to clusters takes their product in memory: 80 MB with 1,000 clusters."""

_NAMESPACE = uuid.UUID("0b0c0a0e-93a7-5d0f-8f5b-3c1f2b7a9d11")


def run_id(request_id: str) -> str:
    """The id of the run that ``request_id`` asks for; a random one for an empty request id.

    Raises:
        InvalidArgument: not a UUID.
    """
    return str(uuid.uuid5(_NAMESPACE, check_request_id(request_id)) if request_id else uuid.uuid4())


def check_request_id(request_id: str) -> str:
    """``request_id`` in canonical form, or InvalidArgument unless it is empty or a UUID."""
    try:
        return str(uuid.UUID(request_id)) if request_id else ""
    except ValueError as exc:
        raise InvalidArgument(
            f"request_id: expected a UUID, got {request_id!r}", field="request_id"
        ) from exc


def gates(message: pb.Gates) -> Gates:
    """The thresholds in ``message``.

    Raises:
        InvalidArgument: one is out of range.
    """

    def given(name: str, least: float) -> float | None:
        if not message.HasField(name):
            return None
        value: float = getattr(message, name)
        if not least <= value <= 1:
            raise InvalidArgument(
                f"gates.{name}: expected {least:g} to 1, got {value:g}", field=f"gates.{name}"
            )
        return value

    return Gates(
        max_moved_share=given("max_moved_share", 0),
        max_noise_share=given("max_noise_share", 0),
        min_agreement=given("min_agreement", -1),
        max_cluster_share=given("max_cluster_share", 0),
    )


def timestamp(seconds: float) -> Timestamp:
    """Unix ``seconds`` as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp


def set_progress(run: pb.Run, progress: Progress) -> None:
    """Copies ``progress`` into ``run``."""
    run.stage = STAGE.get(progress.stage, pb.RUN_STAGE_UNSPECIFIED)
    run.stage_done, run.stage_total = progress.done, progress.total
    run.points_written, run.base_run = progress.points_written, progress.base_run
    del run.stage_times[:]
    for name, seconds in dict(progress.stage_s).items():  # a copy: the run adds to it
        run.stage_times.add(stage=STAGE[name]).duration.FromNanoseconds(round(seconds * 1e9))
    if progress.report is not None:
        run.plan.CopyFrom(plan(progress.report, progress.objections))
        _set_facts(run.plan, progress.facts)


def _set_facts(plan: pb.Plan, facts: Mapping[str, Any]) -> None:
    """What the fit had to say, as far as the contract has a place for it."""
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


def task_of(
    request: pb.CreateRunRequest,
    vector: VectorInfo,
    fit: FitPlan,
    *,
    sample_size: int,
    default_gates: Gates,
) -> tuple[Task, pb.Run]:
    """What ``request`` asks for, and the message of its run, defaults filled in.

    Raises:
        InvalidArgument: something is malformed, or noise_only is not for the method.
    """
    if request.noise_only and fit.method not in LEAVES_NOISE:
        msg = f"noise_only: expected method {' or '.join(LEAVES_NOISE)}, got {fit.method}"
        raise InvalidArgument(msg, field="noise_only")
    task = Task(
        run=run_id(request.request_id),
        collection=request.collection,
        clustering=check_clustering_name(request.clustering),
        vector=vector.name,
        fit=fit,
        sample_size=sample_size,
        seed=request.config.seed,
        warm_start=not request.config.cold_start,
        plan_only=request.plan_only,
        force=request.force,
        gates=gates(request.gates) if request.HasField("gates") else default_gates,
        noise_only=request.noise_only,
        naming=naming(request.naming, vector.dim),
    )
    message = pb.Run(
        id=task.run,
        collection=task.collection,
        clustering=task.clustering,
        config=request.config,
        noise_only=task.noise_only,
    )
    message.config.sample_size, message.config.vector = sample_size, vector.name
    if "head" in fit.options:  # a name may mean another head tomorrow
        message.config.scp.head = fit.options["head"]
    return task, message


def naming(message: pb.Naming, dim: int) -> NameSources:
    """What ``message`` asks for; InvalidArgument for a word without a vector of ``dim`` numbers."""
    if len(message.vocabulary) > MOST_WORDS:
        msg = (
            f"naming.vocabulary: expected at most {MOST_WORDS} words, got {len(message.vocabulary)}"
        )
        raise InvalidArgument(msg, field="naming.vocabulary")
    vectors = np.zeros((len(message.vocabulary), dim), np.float32)
    for row, word in enumerate(message.vocabulary):
        vector = np.frombuffer(word.vector, np.dtype("<f4")) if len(word.vector) % 4 == 0 else ()
        if len(vector) != dim or not np.isfinite(vector).all():
            msg = (
                f"naming.vocabulary: {word.text!r}: expected a vector of {dim} finite float32, "
                f"got {len(word.vector)} bytes"
            )
            raise InvalidArgument(msg, field="naming.vocabulary")
        vectors[row] = vector
    words = tuple(word.text for word in message.vocabulary)
    return NameSources(tuple(message.fields), words, vectors)


def drift(found: Drift) -> pb.Drift:
    """``found`` as a message."""
    return pb.Drift(
        newcomers=found.newcomers,
        noise_share=found.noise_share,
        run_noise_share=found.run_noise_share,
        confidence=found.confidence,
        run_confidence=found.run_confidence,
        psi=found.psi,
        due=found.due,
        signs=found.signs,
    )


def plan(report: Report, objections: tuple[str, ...]) -> pb.Plan:
    """``report`` as a message."""
    message = pb.Plan(
        points=report.points,
        clusters=report.clusters,
        moved=report.moved,
        moved_share=report.moved_share,
        to_write=report.to_write,
        noise=report.noise,
        silhouette=report.quality.silhouette,
        agreement=report.agreement,
        inertia=report.quality.inertia,
        confidence=report.quality.confidence,
        centroid_drift=report.quality.centroid_drift,
        objections=objections,
    )
    for line in report.lineage:
        message.lineage.add(
            cluster=line.cluster,
            kind=KIND[line.kind],
            size=line.size,
            related=line.related,
            overlap=line.overlap,
        )
    return message


def vector_info(spec: VectorInfo) -> common_pb2.VectorInfo:
    """``spec`` as a message."""
    return common_pb2.VectorInfo(name=spec.name, dim=spec.dim, fingerprint=spec.fingerprint)


def sampled(block: VectorBlock, count: int) -> pb.SampledVectors:
    """The first ``count`` points of ``block`` as a message."""
    return pb.SampledVectors(
        ids=block.ids[:count],
        vectors=block.vectors[:count].astype("<f4").tobytes(),
        uris=[str(payload.get("uri") or "") for payload in block.payloads[:count]],
    )


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
