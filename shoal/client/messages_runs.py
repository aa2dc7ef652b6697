"""The SDK's values about clusterings as messages of the contract, and back. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from shoal.client.messages import from_hit, from_timestamp
from shoal.client.methods import (
    EmbeddingVectors,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    Naming,
    RunOptions,
    ScpHead,
    TextCentroids,
)
from shoal.client.runs import (
    Cluster,
    Clustering,
    Duplicate,
    DuplicateGroup,
    Plan,
    Run,
    RunState,
    Schedule,
)
from shoal.v1 import clusterer_pb2
from shoal.values import Drift, Gates, Json, Lineage, LineageKind

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal

    from google.protobuf.timestamp_pb2 import Timestamp

    from shoal.v1 import search_pb2


def to_config(method: Method, options: RunOptions) -> clusterer_pb2.ClusteringConfig:
    """The method and its parameters as a message."""
    config = clusterer_pb2.ClusteringConfig(
        seed=options.seed,
        sample_size=options.sample_size,
        vector=options.vector,
        cold_start=options.cold_start,
        duplicate_cosine=options.duplicate_cosine,
    )
    match method:
        case KMeans(k, n_init, max_iterations, mini_batch):
            config.kmeans.n_init = n_init
            config.kmeans.max_iterations = max_iterations
            config.kmeans.mini_batch = mini_batch
            _set_count(config.kmeans, k, options)
        case Hdbscan():
            config.hdbscan.CopyFrom(
                clusterer_pb2.Hdbscan(
                    min_cluster_size=method.min_cluster_size,
                    min_samples=method.min_samples,
                    reduction=method.reduction,
                    reduced_dim=method.reduced_dim,
                    noise_threshold=method.noise_threshold,
                )
            )
        case GaussianMixture(k, reduced_dim):
            config.gmm.reduced_dim = reduced_dim
            _set_count(config.gmm, k, options)
        case ScpHead(head, retrain):
            config.scp.head, config.scp.retrain = head, retrain
        case TextCentroids(texts, fixed):
            config.text.CopyFrom(clusterer_pb2.TextCentroids(texts=texts, fixed=fixed))
        case EmbeddingVectors(layer, size):
            config.evoc.min_cluster_size = size
            if layer == "coarsest":
                config.evoc.coarsest = True
            elif layer is not None:
                config.evoc.layer = layer
    return config


def _set_count(
    message: clusterer_pb2.KMeans | clusterer_pb2.GaussianMixture,
    k: int | Literal["auto"],
    options: RunOptions,
) -> None:
    if k == "auto":
        message.auto.CopyFrom(clusterer_pb2.AutoCount(min=options.k_min, max=options.k_max))
    else:
        message.k = k


def to_gates(gates: Gates) -> clusterer_pb2.Gates:
    """Thresholds as a message."""
    return clusterer_pb2.Gates(
        max_moved_share=gates.max_moved_share,
        max_noise_share=gates.max_noise_share,
        min_agreement=gates.min_agreement,
        max_cluster_share=gates.max_cluster_share,
    )


def to_request(
    method: Method, collection: str, clustering: str, options: RunOptions
) -> clusterer_pb2.CreateRunRequest:
    """A request for a run, without an id."""
    return clusterer_pb2.CreateRunRequest(
        collection=collection,
        clustering=clustering,
        config=to_config(method, options),
        plan_only=options.plan_only,
        force=options.force,
        gates=to_gates(options.gates) if options.gates else None,
        noise_only=options.noise_only,
        naming=to_naming(options.naming) if options.naming else None,
    )


def to_naming(naming: Naming) -> clusterer_pb2.Naming:
    """The sources of clusters' names as a message."""
    message = clusterer_pb2.Naming(fields=naming.fields)
    for text, vector in naming.vocabulary.items():
        message.vocabulary.add(text=text, vector=vector.astype("<f4").tobytes())
    return message


def to_schedule(
    schedule: Schedule, request: clusterer_pb2.CreateRunRequest
) -> clusterer_pb2.Schedule:
    """A schedule as a message."""
    message = clusterer_pb2.Schedule(request=request, only_if_due=schedule.only_if_due)
    if schedule.cron:
        message.cron = schedule.cron
    else:
        message.interval.FromNanoseconds(round(schedule.interval_s * 1e9))
    return message


def from_run(message: clusterer_pb2.Run) -> Run:
    """A run as it is now."""
    return Run(
        id=message.id,
        collection=message.collection,
        clustering=message.clustering,
        state=RunState(_tail(clusterer_pb2.RunState.Name(message.state), "RUN_STATE_")),
        stage=_stage(message.stage),
        stage_done=message.stage_done,
        stage_total=message.stage_total,
        points_written=message.points_written,
        active=message.active,
        base_run=message.base_run,
        plan=_from_plan(message.plan) if message.HasField("plan") else None,
        error_reason=message.error_reason,
        error_message=message.error_message,
        created_at=_time(message.created_at, present=message.HasField("created_at")),
        ended_at=_time(message.ended_at, present=message.HasField("ended_at")),
        stage_seconds={
            _stage(each.stage): each.duration.ToTimedelta().total_seconds()
            for each in message.stage_times
        },
        config=_from_config(message.config),
        noise_only=message.noise_only,
    )


def _from_plan(message: clusterer_pb2.Plan) -> Plan:
    return Plan(
        points=message.points,
        clusters=message.clusters,
        moved=message.moved,
        moved_share=message.moved_share,
        to_write=message.to_write,
        noise=message.noise,
        silhouette=message.silhouette if message.HasField("silhouette") else None,
        agreement=message.agreement if message.HasField("agreement") else None,
        inertia=message.inertia,
        lineage=tuple(_from_lineage(each) for each in message.lineage),
        objections=tuple(message.objections),
        votes={vote.estimator: vote.k for vote in message.votes},
        votes_disagree=message.votes_disagree,
        elbow=tuple((point.k, point.inertia) for point in message.elbow),
        centroid_drift=message.centroid_drift if message.HasField("centroid_drift") else None,
        duplicates=message.duplicates,
        confidence=message.confidence,
        layers=tuple(message.layers),
        head=message.head,
    )


def _from_lineage(message: clusterer_pb2.Lineage) -> Lineage:
    return Lineage(
        cluster=message.cluster,
        kind=cast(
            "LineageKind", _tail(clusterer_pb2.LineageKind.Name(message.kind), "LINEAGE_KIND_")
        ),
        size=message.size,
        related=tuple(message.related),
        overlap=message.overlap,
    )


def _from_config(message: clusterer_pb2.ClusteringConfig) -> dict[str, Json]:
    """The method's name and parameters in one flat object; defaults are left out."""
    method = message.WhichOneof("method")
    config: dict[str, Json] = {"method": method, "seed": message.seed}
    inner = getattr(message, method) if method else None
    for fields in (inner.ListFields() if inner is not None else (), message.ListFields()):
        for descriptor, value in fields:
            if descriptor.name == "auto":
                config["k"] = "auto"
            elif isinstance(value, (int, float, str)):
                config[descriptor.name] = value
            elif descriptor.name == "texts":
                config["texts"] = list(value)
    return config


def from_clustering(message: clusterer_pb2.Clustering) -> Clustering:
    """The state of a clustering."""
    return Clustering(
        collection=message.collection,
        name=message.name,
        active_run=message.active_run,
        previous_run=message.previous_run,
        clusters=message.clusters,
        assigned=message.assigned,
        unassigned=message.unassigned,
        changed_at=_time(message.changed_at, present=message.HasField("changed_at")),
        running=message.running,
        drift=_from_drift(message.drift) if message.HasField("drift") else None,
        schedule=_from_schedule(message.schedule) if message.HasField("schedule") else None,
    )


def _from_drift(message: clusterer_pb2.Drift) -> Drift:
    return Drift(
        newcomers=message.newcomers,
        noise_share=message.noise_share,
        run_noise_share=message.run_noise_share,
        confidence=message.confidence,
        run_confidence=message.run_confidence,
        psi=message.psi,
        due=message.due,
        signs=tuple(message.signs),
    )


def _from_schedule(message: clusterer_pb2.Schedule) -> Schedule:
    return Schedule(
        cron=message.cron,
        interval_s=message.interval.ToNanoseconds() / 1e9,
        only_if_due=message.only_if_due,
        next_at=_time(message.next_at, present=message.HasField("next_at")),
        last_run=message.last_run,
    )


def from_duplicates(message: clusterer_pb2.DuplicateGroup) -> DuplicateGroup:
    """A group of near-duplicates."""
    members = tuple(Duplicate(m.id, m.key, m.uri, m.cosine) for m in message.members)
    return DuplicateGroup(members, message.size)


def from_cluster(message: search_pb2.Cluster) -> Cluster:
    """A cluster of the active run."""
    return Cluster(
        id=message.id,
        size=message.size,
        name=message.name,
        cohesion=message.cohesion,
        lineage=_from_lineage(message.lineage) if message.HasField("lineage") else None,
        exemplars=tuple(from_hit(hit) for hit in message.exemplars),
        run=message.run,
    )


def _time(message: Timestamp, *, present: bool) -> datetime | None:
    return from_timestamp(message if present else None)


def _stage(stage: clusterer_pb2.RunStage) -> str:
    return _tail(clusterer_pb2.RunStage.Name(stage), "RUN_STAGE_")


def _tail(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
