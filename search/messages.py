"""The search service's messages from and to its domain. Pure."""

from __future__ import annotations

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from search.filters import to_filter
from search.query import Found, Scope, Target
from search.snapshots import Snapshot
from shoal import vectors
from shoal.errors import InvalidArgument
from shoal.store.clusterings import ClusterRecord
from shoal.store.model import Collection, Hit, Payload, Record, check_clustering_name
from shoal.v1 import common_pb2
from shoal.v1 import search_pb2 as pb
from shoal.values import VectorInfo
from shoal.vectors import Vectors

_LIMIT, _MOST_HITS, _MOST_OFFSET = 10, 10_000, 100_000
_MOST_PAGE = 1000


def target(request: pb.SearchRequest, collection: Collection) -> Target:
    """What ``request`` asks of ``collection``, but for the query itself.

    Raises:
        InvalidArgument: a field is out of range.
    """
    limit = request.limit or _LIMIT
    if limit > _MOST_HITS:
        raise InvalidArgument(f"limit: expected 1 to {_MOST_HITS}, got {limit}", field="limit")
    if request.offset > _MOST_OFFSET:
        raise InvalidArgument(
            f"offset: expected 0 to {_MOST_OFFSET}, got {request.offset}", field="offset"
        )
    min_score = request.min_score if request.HasField("min_score") else None
    if min_score is not None and not -1 <= min_score <= 1:
        raise InvalidArgument(f"min_score: expected -1 to 1, got {min_score:g}", field="min_score")
    return Target(
        collection=collection,
        clustering=check_clustering_name(request.clustering),
        vector=collection.searchable(request.vector_name).name,
        within=_scope(request.within),
        where=to_filter(request.filter),
        limit=limit,
        offset=request.offset,
        min_score=min_score,
        with_vectors=request.with_vectors,
        approximate=request.approximate,
    )


def _scope(within: pb.Within) -> Scope:
    match within.WhichOneof("scope"):
        case "cluster":
            return within.cluster
        case "auto":
            return "auto" if within.auto else "any"
        case _:
            return "any"


def response(found: Found, spec: VectorInfo) -> pb.SearchResponse:
    """``found`` as a message."""
    return pb.SearchResponse(
        hits=[_hit(hit, found.view, spec) for hit in found.hits],
        run=found.view.state.active_run,
        cluster=found.cluster,
    )


def _hit(hit: Hit, view: Snapshot, spec: VectorInfo | None) -> pb.Hit:
    message = pb.Hit(
        id=hit.id,
        score=hit.score,
        cluster=view.cluster_of(hit.payload),
        payload=_payload(hit.payload),
    )
    if hit.vector is not None and spec is not None:
        message.vector.CopyFrom(_vector(hit.vector, spec))
    return message


def cluster(record: ClusterRecord, view: Snapshot, size: int, exemplars: list[Hit]) -> pb.Cluster:
    """One cluster as a message."""
    message = pb.Cluster(
        id=record.cluster,
        size=size,
        name=record.name,
        cohesion=record.cohesion,
        exemplars=[_hit(hit, view, None) for hit in exemplars],
        run=view.state.active_run,
    )
    kind = f"LINEAGE_KIND_{str(record.lineage.get('kind', 'unspecified')).upper()}"
    ParseDict(
        {
            "cluster": record.cluster,
            "kind": kind,
            "size": record.size,
            "related": record.lineage.get("related", []),
            "overlap": record.lineage.get("overlap", 0.0),
        },
        message.lineage,
    )
    return message


def point(record: Record, view: Snapshot, collection: Collection) -> pb.Point:
    """One stored point as a message."""
    message = pb.Point(
        id=record.id,
        cluster=view.cluster_of(record.payload),
        payload=_payload(record.payload),
    )
    for name, vector in record.vectors.items():
        message.vectors[name].CopyFrom(_vector(vector, collection.vector(name)))
    return message


def collection(value: Collection, points: int) -> pb.Collection:
    """One collection as a message."""
    created = Timestamp()
    created.FromNanoseconds(round(value.created_at * 1e9))
    return pb.Collection(
        name=value.name,
        points=points,
        vectors=[
            common_pb2.VectorInfo(name=s.name, dim=s.dim, fingerprint=s.fingerprint)
            for s in value.vectors
        ],
        clusterings=value.clusterings,
        created_at=created,
    )


def page_size(asked: int, default: int) -> int:
    """``asked``, ``default`` for 0, or InvalidArgument."""
    if asked > _MOST_PAGE:
        raise InvalidArgument(
            f"page_size: expected 1 to {_MOST_PAGE}, got {asked}", field="page_size"
        )
    return asked or default


def _vector(vector: Vectors, spec: VectorInfo) -> common_pb2.Vector:
    return common_pb2.Vector(
        values=vectors.encode(vector), dim=spec.dim, fingerprint=spec.fingerprint
    )


def _payload(payload: Payload) -> Struct:
    """What a reader sees: everything but the slots, whose meaning the pointer decides."""
    message = Struct()
    message.update({key: value for key, value in payload.items() if key != "clusters"})
    return message
