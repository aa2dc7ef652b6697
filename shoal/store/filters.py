"""Our conditions as ``qdrant_client`` filters.

Numbers are cleaned as in ``payloads``. A whole number matches as an integer, which an index
answers; any other number matches as the interval [x, x], because Qdrant has no exact match for
floats. Bounds move as stored floats do, so that a point meets a condition on the value it was sent
with.
"""

from __future__ import annotations

import math

from qdrant_client import models

from shoal.errors import InvalidArgument
from shoal.store.model import (
    AnyOf,
    Condition,
    Empty,
    Equals,
    Filter,
    IdIn,
    Range,
    canonical_id,
)
from shoal.store.payloads import clean_number, is_int64, is_text, json_path


def to_filter(where: Filter) -> models.Filter:
    """The filter that selects what ``where`` selects; an empty one selects every point.

    Raises:
        InvalidArgument: a condition means nothing (no bound, NaN, mixed values).
    """
    return models.Filter(
        must=[_condition(condition) for condition in where.must] or None,
        should=[_condition(condition) for condition in where.should] or None,
        must_not=[_condition(condition) for condition in where.must_not] or None,
    )


def _condition(condition: Condition) -> models.Condition:
    match condition:
        case Equals():
            return _equals(condition)
        case AnyOf():
            return _any_of(condition)
        case Range():
            return _range(condition)
        case Empty(field=field):
            return models.IsEmptyCondition(is_empty=models.PayloadField(key=json_path(field)))
        case IdIn(ids=ids):
            # Built without validation: pydantic tries three types for each of thousands of ids.
            return models.HasIdCondition.model_construct(has_id=[canonical_id(i) for i in ids])


def _equals(condition: Equals) -> models.Condition:
    key, value = json_path(condition.field), condition.value
    if isinstance(value, float):
        value = clean_number(value, condition.field)
    if isinstance(value, float):
        return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(
        key=key, match=models.MatchValue(value=_scalar(value, condition.field))
    )


def _any_of(condition: AnyOf) -> models.Condition:
    values = [
        clean_number(value, condition.field) if isinstance(value, float) else value
        for value in condition.values
    ]
    kinds = {type(value) for value in values}
    if kinds not in ({str}, {int}):
        raise InvalidArgument(
            f"field {condition.field!r}: expected one or more strings, or one or more whole "
            f"numbers, got {list(condition.values)!r}",
            field=condition.field,
        )
    for value in values:
        _scalar(value, condition.field)
    return models.FieldCondition(
        key=json_path(condition.field), match=models.MatchAny.model_construct(any=values)
    )


def _range(condition: Range) -> models.Condition:
    bounds = {
        name: bound
        for name in ("gte", "gt", "lte", "lt")
        if (bound := getattr(condition, name)) is not None
    }
    if not bounds or not all(math.isfinite(bound) for bound in bounds.values()):
        raise InvalidArgument(
            f"field {condition.field!r}: expected a range with one or more finite bounds, "
            f"got {bounds}",
            field=condition.field,
        )
    bounds = {name: clean_number(float(bound), condition.field) for name, bound in bounds.items()}
    return models.FieldCondition(key=json_path(condition.field), range=models.Range(**bounds))


def _scalar(value: str | float, field: str) -> str | int | bool:
    """``value`` if an exact match can hold it."""
    if isinstance(value, int) and is_int64(value):  # a boolean too
        return value
    if isinstance(value, str) and is_text(value):
        return value
    raise InvalidArgument(
        f"field {field!r}: expected a string, a boolean or a number of 64 bits, got {value!r}",
        field=field,
    )
