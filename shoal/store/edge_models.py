"""``qdrant_client`` models as ``qdrant_edge`` ones, and back.

This engine takes a boolean that is to be matched for an integer, so ``MatchValue(True)`` finds
nothing. Here a boolean is stored as a marked string, at any depth, and a match for it looks for
that string; a string that begins with the mark gets a second one. Callers see booleans throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from shoal.errors import Unsupported
from shoal.vectors import Vectors

_MARK = "\x00"
_TRUE = _MARK + "true"
_FALSE = _MARK + "false"

EdgeIndex: TypeAlias = edge.PayloadSchemaType | edge.KeywordIndexParams | edge.IntegerIndexParams

_INDEX_TYPES = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
    models.PayloadSchemaType.INTEGER: edge.PayloadSchemaType.Integer,
}
_HAS_MARKS = (str, dict, list)
"""The types of values in which there may be a mark."""
_UPDATE_MODES = {
    models.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}


SEARCH_THREADS = 1
"""Threads of a shard: it has one segment to search, and a thousand shards may be open."""


class EdgeRecord(NamedTuple):
    """A point as read. A ``models.Record`` has more fields, and takes 2 us to make."""

    id: str
    payload: dict[str, Any] | None
    vector: dict[str, Vectors] | None


def encode(value: Any) -> Any:
    """``value`` as it is stored, with marked strings for booleans."""
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    kind = type(value)
    if kind is str:
        return _MARK + value if value[:1] == _MARK else value
    if kind is dict:
        return {key: encode(item) for key, item in value.items()}
    if kind is list:
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """The value that ``encode`` was given. Changes a dict or list in place, which is cheaper."""
    kind = type(value)
    if kind is str:
        if value[:1] != _MARK:
            return value
        return value == _TRUE if value in (_TRUE, _FALSE) else value[1:]
    items: Iterable[tuple[Any, Any]] = ()
    if kind is dict:
        items = value.items()
    elif kind is list:
        items = enumerate(value)
    for key, item in items:
        if type(item) in _HAS_MARKS:
            value[key] = decode(item)
    return value


def to_config(vectors: Mapping[str, models.VectorParams]) -> edge.EdgeConfig:
    """The configuration of a new shard. Its write-ahead log makes writes survive a kill."""
    return edge.EdgeConfig(
        vectors={
            name: edge.EdgeVectorParams(size=params.size, distance=edge.Distance.Cosine)
            for name, params in vectors.items()
        },
        wal_enabled=True,
        max_search_threads=SEARCH_THREADS,
    )


def to_index(schema: object) -> EdgeIndex:
    """The engine's description of a payload index."""
    if isinstance(schema, models.IntegerIndexParams):
        return edge.IntegerIndexParams(lookup=schema.lookup, range=schema.range)
    if isinstance(schema, models.PayloadSchemaType) and schema in _INDEX_TYPES:
        return _INDEX_TYPES[schema]
    raise Unsupported(f"embedded engine: no payload index for {schema!r}")


def to_point(point: models.PointStruct) -> edge.Point:
    """A point to write."""
    vector: Any = point.vector  # names -> lists of floats: the gateway writes nothing else
    return edge.Point(str(point.id), vector, encode(point.payload or {}))


def to_update_mode(mode: models.UpdateMode) -> edge.UpdateMode:
    """Whether a write may insert, replace or both."""
    return _UPDATE_MODES[mode]


def to_filter(where: models.Filter) -> edge.Filter | None:
    """The engine's filter; None for one without conditions, which is faster."""
    if not (where.must or where.should or where.must_not):
        return None
    return edge.Filter(
        must=_conditions(where.must),
        should=_conditions(where.should),
        must_not=_conditions(where.must_not),
    )


def to_record(record: edge.Record) -> EdgeRecord:
    """A point as read."""
    return EdgeRecord(str(record.id), decode(record.payload), _packed(record.vector))


def to_scored(point: edge.ScoredPoint) -> models.ScoredPoint:
    """A search result."""
    return models.ScoredPoint.model_construct(
        id=str(point.id),
        version=point.version,
        score=point.score,
        payload=decode(point.payload),
        vector=_packed(point.vector),
    )


def _packed(vectors: object) -> dict[str, Vectors] | None:
    """Named vectors as read-only float32 arrays (D,); None if there are none.

    The engine gives lists with one object per number. Each point is packed as it comes, so that
    its objects are gone before the next point's are made: that halves the time of a block.
    """
    if not isinstance(vectors, dict):
        return None
    return {
        name: np.frombuffer(_floats(len(values)).pack(*values), np.float32)
        for name, values in vectors.items()
    }


@cache
def _floats(count: int) -> Struct:
    """The packer of ``count`` floats as float32: NumPy takes twice as long over a list."""
    return Struct(f"{count}f")


def _conditions(conditions: object) -> list[edge.ConditionType] | None:
    if not isinstance(conditions, Iterable):
        return None
    return [_condition(condition) for condition in conditions] or None


def _condition(condition: object) -> Any:
    if isinstance(condition, models.HasIdCondition):
        return edge.HasIdCondition({str(i) for i in condition.has_id})
    if isinstance(condition, models.IsEmptyCondition):
        return edge.IsEmptyCondition(condition.is_empty.key)
    if isinstance(condition, models.FieldCondition):
        if isinstance(condition.range, models.Range):
            return edge.FieldCondition(key=condition.key, range=_range(condition.range))
        if isinstance(condition.match, models.MatchValue):
            match = edge.MatchValue(encode(condition.match.value))
            return edge.FieldCondition(key=condition.key, match=match)
        if isinstance(condition.match, models.MatchAny):
            match_any = edge.MatchAny([encode(value) for value in condition.match.any])
            return edge.FieldCondition(key=condition.key, match=match_any)
    raise Unsupported(f"embedded engine: no filter condition for {type(condition).__name__}")


def _range(bounds: models.Range) -> edge.RangeFloat:
    return edge.RangeFloat(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)
