"""The search service's messages to its values and back. Pure."""

from __future__ import annotations

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from search.filters import to_filter
from search.query import Found, Scope, Target
from search.snapshots import Snapshot
from shoal import vectors
from shoal.errors import EncoderMismatch, InvalidArgument
from shoal.rpc.pages import AnswerRoom
from shoal.store.clusterings import ClusterRecord
from shoal.store.model import Collection, Hit, Payload, Record, check_clustering_name
from shoal.v1 import common_pb2
from shoal.v1 import search_pb2 as pb
from shoal.values import VectorInfo
from shoal.vectors import Vectors

_LIMIT, _MOST_HITS, _MOST_OFFSET = 10, 10_000, 100_000


def target(request: pb.SearchRequest, collection: Collection) -> Target:
    """Where and how ``request`` searches ``collection``.

    Raises:
        InvalidArgument: a field is out of range, or the request has no query.
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
    checked = Target(
        collection=collection,
        clustering=check_clustering_name(request.clustering),
        vector=collection.searchable(request.vector_name),
        within=_scope(request.within),
        where=to_filter(request.filter),
        limit=limit,
        offset=request.offset,
        min_score=min_score,
        with_vectors=request.with_vectors,
        approximate=request.approximate,
    )
    if request.WhichOneof("query") is None:
        raise InvalidArgument("query: expected an image, id, vector or text, got none")
    return checked


def _scope(within: pb.Within) -> Scope:
    match within.WhichOneof("scope"):
        case "cluster":
            return within.cluster
        case "auto":
            return "auto" if within.auto else "any"
        case _:
            return "any"


def query_vector(message: common_pb2.Vector, target: Target) -> Vectors:
    """The query vector in ``message``, float32 (D,), scaled to length 1 exactly.

    Raises:
        EncoderMismatch: another encoder made it than the one that made the collection's.
        InvalidArgument: it has another dimension, or its length is not 1 within the tolerance.
    """
    expected = target.vector
    if message.fingerprint and message.fingerprint != expected.fingerprint:
        raise EncoderMismatch(
            f"collection {target.collection.name!r} was made with encoder {expected.name!r} "
            f"({expected.fingerprint[:12]}), the query with another ({message.fingerprint[:12]})"
        )
    decoded = vectors.decode(message.values, message.dim)
    return vectors.unit(vectors.check_unit(decoded, expected.dim))


def response(found: Found, target: Target) -> pb.SearchResponse:
    """``found`` as a message; InvalidArgument if that is too large."""
    message = pb.SearchResponse(run=found.snapshot.state.pointer.active_run, cluster=found.cluster)
    room = AnswerRoom()
    for hit in found.hits:
        message.hits.append(_hit(hit, found.snapshot, target.vector))
        room.take(message.hits[-1].ByteSize())
    return message


def _hit(hit: Hit, snapshot: Snapshot, info: VectorInfo | None) -> pb.Hit:
    message = pb.Hit(
        id=hit.id,
        score=hit.score,
        cluster=snapshot.cluster_of(hit.payload),
        payload=_payload(hit.payload),
    )
    if hit.vector is not None and info is not None:
        message.vector.CopyFrom(_vector(hit.vector, info))
    return message


def cluster(
    record: ClusterRecord, snapshot: Snapshot, size: int, exemplars: list[Hit]
) -> pb.Cluster:
    """One cluster as a message."""
    message = pb.Cluster(
        id=record.cluster,
        size=size,
        name=record.name,
        cohesion=record.cohesion,
        exemplars=[_hit(hit, snapshot, None) for hit in exemplars],
        run=snapshot.state.pointer.active_run,
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


def point(record: Record, snapshot: Snapshot, collection: Collection) -> pb.Point:
    """One stored point as a message."""
    message = pb.Point(
        id=record.id,
        cluster=snapshot.cluster_of(record.payload),
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
            common_pb2.VectorInfo(name=each.name, dim=each.dim, fingerprint=each.fingerprint)
            for each in value.vectors
        ],
        clusterings=value.clusterings,
        created_at=created,
    )


def _vector(vector: Vectors, info: VectorInfo) -> common_pb2.Vector:
    return common_pb2.Vector(
        values=vectors.encode(vector), dim=info.dim, fingerprint=info.fingerprint
    )


def _payload(payload: Payload) -> Struct:
    """The payload as readers see it: without the slots, which mean nothing without the pointer."""
    message = Struct()
    message.update({key: value for key, value in payload.items() if key != "clusters"})
    return message
