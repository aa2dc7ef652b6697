"""Points between our values and ``qdrant_client`` models, checked on the way in.

Engines differ in what they refuse (one stores NaN, another stores half of a batch). All checks are
made here, before the call, so that all engines refuse the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from qdrant_client import models

from shoal.errors import InvalidArgument
from shoal.store.engines import EngineRecord
from shoal.store.model import (
    JOINT,
    Block,
    Collection,
    Hit,
    Payload,
    Point,
    Query,
    Record,
    VectorBlock,
    canonical_id,
    is_records_name,
)
from shoal.store.payloads import clean_payload
from shoal.values import VectorInfo
from shoal.vectors import UNIT_TOLERANCE, Vectors, check_unit, joined


def to_structs(collection: Collection, points: Sequence[Point]) -> list[models.PointStruct]:
    """``points`` as the engine takes them; of several points with one id, the last.

    Raises:
        InvalidArgument: an id that is not a UUID, an unknown vector, a vector that is not
            float32, of the collection's dim and of unit length, or a payload that is not JSON.
    """
    ids = [canonical_id(point.id) for point in points]
    specs = {spec.name: spec for spec in collection.vectors}
    rows: list[dict[str, list[float]]] = [{} for _ in points]
    for name in {name for point in points for name in point.vectors}:
        if name not in specs:
            known = ", ".join(specs)
            msg = f"collection {collection.name!r} has no vector {name!r}: expected one of {known}"
            raise InvalidArgument(msg, field="vector")
        chosen = [i for i, point in enumerate(points) if name in point.vectors]
        stacked = _stack([points[i].vectors[name] for i in chosen], specs[name])
        for i, values in zip(chosen, stacked.tolist(), strict=True):
            rows[i][name] = values
    if not all(rows) and not is_records_name(collection.name):
        bare = ids[rows.index({})]
        raise InvalidArgument(f"point {bare}: expected at least one vector, got none")
    structs = {
        # Validation by pydantic would cost more than the write: it tries each kind of vector.
        i: models.PointStruct.model_construct(
            id=i, vector=row, payload=clean_payload(point.payload)
        )
        for i, row, point in zip(ids, rows, points, strict=True)
    }
    return list(structs.values())


def _stack(vectors: Sequence[Vectors], spec: VectorInfo) -> Vectors:
    """``vectors`` as (B, D), each checked."""
    for vector in vectors:
        if (dtype := getattr(vector, "dtype", None)) != np.float32:
            got = dtype or type(vector).__name__
            raise InvalidArgument(f"vector {spec.name!r}: expected a float32 array, got {got}")
        if vector.shape != (spec.dim,):
            raise InvalidArgument(
                f"vector {spec.name!r}: expected shape ({spec.dim},), got {vector.shape}"
            )
    stacked = np.stack(vectors)
    lengths = np.sqrt(np.einsum("bd,bd->b", stacked, stacked, dtype=np.float64))
    wrong = ~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE)  # also true for NaN
    if wrong.any():
        raise InvalidArgument(
            f"vector {spec.name!r}: expected length 1, got {lengths[wrong][0]:.6g}",
            field="vector",
        )
    return stacked


def check_query(collection: Collection, query: Query) -> VectorInfo:
    """The vector that ``query`` runs on; InvalidArgument if it makes no sense there."""
    spec = collection.searchable(query.vector_name)
    check_unit(query.vector, spec.dim)
    if query.limit < 1 or query.offset < 0:
        raise InvalidArgument(
            f"search: expected a limit of 1 or more and an offset of 0 or more, "
            f"got {query.limit} and {query.offset}"
        )
    if query.min_score is not None and math.isnan(query.min_score):
        raise InvalidArgument("search: expected a number for min_score, got nan")
    return spec


def to_record(record: EngineRecord) -> Record:
    """A point as read."""
    return Record(str(record.id), record.payload or {}, _vectors(record.vector))


def with_vectors(record: Record, asked: Sequence[Sequence[VectorInfo]]) -> Record:
    """``record`` with the vectors that it has of those ``asked`` for, each given by its parts."""
    stored = record.vectors
    vectors = {
        JOINT.join(names): joined([stored[name] for name in names])
        for names in ([part.name for part in parts] for parts in asked)
        if all(name in stored for name in names)
    }
    return replace(record, vectors=vectors)


def to_hit(point: models.ScoredPoint, using: str, *, with_vector: bool) -> Hit:
    """A search result. Rounding may take a cosine past 1: the score is cut off there."""
    vector = _vectors(point.vector).get(using) if with_vector else None
    score = min(1.0, max(-1.0, float(point.score)))
    return Hit(str(point.id), score, point.payload or {}, vector)


def to_block(records: Sequence[EngineRecord]) -> Block:
    """Consecutive records of a scan."""
    return Block(
        [str(record.id) for record in records], [record.payload or {} for record in records]
    )


def to_vector_block(records: Sequence[EngineRecord], names: Sequence[str]) -> VectorBlock:
    """Consecutive records of a scan, without records that lack one of the vectors ``names``.

    The vectors of several names are joined.
    """
    ids: list[str] = []
    payloads: list[Payload] = []
    rows: list[list[object]] = []
    for record in records:
        vectors = record.vector if isinstance(record.vector, dict) else {}
        row = [vectors[name] for name in names if name in vectors]
        if len(row) == len(names):
            ids.append(str(record.id))
            payloads.append(record.payload or {})
            rows.append(row)
    columns = [np.array(column, dtype=np.float32) for column in zip(*rows, strict=True)]
    return VectorBlock(ids, payloads, joined(columns) if rows else np.empty((0, 0), np.float32))


def _vectors(vector: object) -> dict[str, Vectors]:
    if not isinstance(vector, Mapping):
        return {}
    return {str(name): np.array(values, dtype=np.float32) for name, values in vector.items()}
