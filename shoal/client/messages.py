"""The SDK's values as messages of the embedder and the search service, and back.

Pure: no channel, no clock. ``messages_ingest`` does the same for the items of an ingestion,
``messages_runs`` for clusterings.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import numpy as np

from shoal import vectors
from shoal.client.values import (
    AnyOf,
    Collection,
    Embedding,
    Empty,
    EncoderInfo,
    Filter,
    Hit,
    Info,
    ItemFailure,
    Point,
    Query,
    Range,
    SearchOptions,
    SearchResult,
    StoredId,
    Test,
    Text,
    Vector,
)
from shoal.errors import InvalidArgument
from shoal.v1 import common_pb2, embedder_pb2, search_pb2
from shoal.values import Json, VectorInfo

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf import struct_pb2
    from google.protobuf.timestamp_pb2 import Timestamp


def from_struct(struct: struct_pb2.Struct) -> dict[str, Json]:
    """The object in ``struct``, whose whole numbers are int."""
    return {name: _from_value(value) for name, value in struct.fields.items()}


def _from_value(value: struct_pb2.Value) -> Json:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case _:
            return None


def to_vector(vector: Vector) -> common_pb2.Vector:
    """``vector`` (D,) as a message; InvalidArgument if it is not one row of unit length."""
    row = np.asarray(vector, dtype=np.float32)
    if row.ndim != 1:
        raise InvalidArgument(f"vector: expected shape (D,), got {row.shape}", field="vector")
    vectors.check_unit(row, row.shape[0])
    return common_pb2.Vector(values=vectors.encode(row), dim=row.shape[0])


def from_vector(message: common_pb2.Vector) -> Vector:
    """The vector (D,) float32 in ``message``."""
    return vectors.decode(message.values, message.dim)


def from_item_error(message: common_pb2.ItemError) -> ItemFailure:
    """The reason why an item has no result."""
    return ItemFailure(message.reason, message.message, dict(message.metadata), message.retryable)


def from_embed_result(message: embedder_pb2.EmbedResult) -> Embedding:
    """The answer for one image or text."""
    if message.WhichOneof("outcome") == "error":
        return Embedding(failure=from_item_error(message.error))
    return Embedding(from_vector(message.vector), message.vector.fingerprint)


def from_info(message: embedder_pb2.GetInfoResponse) -> Info:
    """The encoders and limits of the server."""
    encoders = tuple(
        EncoderInfo(
            name=each.name,
            dim=each.dim,
            fingerprint=each.fingerprint,
            provider=each.provider,
            has_text=each.has_text,
            license=each.license,
            source=each.source,
            loaded=each.loaded,
            parts=tuple(each.parts),
        )
        for each in message.encoders
    )
    return Info(
        encoders,
        message.version,
        message.max_image_bytes,
        message.max_image_pixels,
        message.max_batch_images,
        tuple(message.uri_schemes),
    )


def to_filter(where: Filter) -> common_pb2.Filter:
    """``where`` as a message."""
    return common_pb2.Filter(
        must=[_to_condition(name, test) for name, test in where.must],
        should=[_to_condition(name, test) for name, test in where.should],
        must_not=[_to_condition(name, test) for name, test in where.must_not],
    )


def _to_condition(name: str, test: Test) -> common_pb2.Condition:
    condition = common_pb2.Condition(field=name)
    match test:
        case AnyOf(values):
            condition.any_of.extend(list(values))
        case Range(gte, gt, lte, lt):
            condition.range.CopyFrom(common_pb2.Range(gte=gte, gt=gt, lte=lte, lt=lt))
        case Empty(empty):
            condition.empty = empty
        case bool():  # before numbers: a bool is an int
            condition.equals.bool_value = test
        case int() | float():
            condition.equals.number_value = test
        case str():
            condition.equals.string_value = test
    return condition


def to_within(within: str | int) -> search_pb2.Within:
    """``"any"``, ``"auto"`` or a cluster's id as a message; InvalidArgument for anything else."""
    match within:
        case "any":
            return search_pb2.Within(any=True)
        case "auto":
            return search_pb2.Within(auto=True)
        case int() if not isinstance(within, bool):
            return search_pb2.Within(cluster=within)
    msg = f'within: expected "any", "auto" or the number of a cluster, got {within!r}'
    raise InvalidArgument(msg, field="within")


def to_search_request(query: Query, options: SearchOptions) -> search_pb2.SearchRequest:
    """``query`` and ``options`` as a message; the caller sets collection, place and limit."""
    request = search_pb2.SearchRequest(
        filter=to_filter(options.where),
        offset=options.offset,
        min_score=options.min_score,
        clustering=options.clustering,
        vector_name=options.vector,
        with_vectors=options.with_vectors,
        approximate=options.approximate,
    )
    match query:
        case bytes():
            request.image.data = query
        case StoredId(id_):
            request.id = id_
        case Text(text):
            request.text = text
        case np.ndarray():
            request.vector.CopyFrom(to_vector(query))
    return request


def from_hit(message: search_pb2.Hit) -> Hit:
    """A stored image near to the query."""
    return Hit(
        id=message.id,
        score=message.score,
        cluster=message.cluster if message.HasField("cluster") else None,
        payload=from_struct(message.payload),
        vector=from_vector(message.vector) if message.HasField("vector") else None,
    )


def from_search_response(message: search_pb2.SearchResponse) -> SearchResult:
    """Hits, nearest first."""
    cluster = message.cluster if message.HasField("cluster") else None
    return SearchResult(message.run, cluster, tuple(from_hit(hit) for hit in message.hits))


def from_point(message: search_pb2.Point) -> Point:
    """A stored image."""
    return Point(
        id=message.id,
        cluster=message.cluster if message.HasField("cluster") else None,
        payload=from_struct(message.payload),
        vectors={name: from_vector(vector) for name, vector in message.vectors.items()},
    )


def from_collection(message: search_pb2.Collection) -> Collection:
    """A collection and the number of its points."""
    created = message.created_at if message.HasField("created_at") else None
    return Collection(
        name=message.name,
        points=message.points,
        vectors=tuple(VectorInfo(v.name, v.dim, v.fingerprint) for v in message.vectors),
        clusterings=tuple(message.clusterings),
        created_at=from_timestamp(created),
    )


def from_timestamp(message: Timestamp | None) -> datetime | None:
    """The time in UTC, timezone-aware; None for none."""
    return None if message is None else message.ToDatetime(tzinfo=UTC)
