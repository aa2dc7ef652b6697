"""The contract's filters as the store's. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.struct_pb2 import Value

from shoal.errors import InvalidArgument
from shoal.store.model import AnyOf, Condition, Empty, Equals, Filter, Range
from shoal.v1 import common_pb2 as pb

_MOST_CONDITIONS = 100
_MOST_VALUES = 1000


def to_filter(message: pb.Filter) -> Filter:
    """``message`` as the store's filter.

    Raises:
        InvalidArgument: a condition is incomplete or of a type that cannot be compared.
    """
    count = len(message.must) + len(message.should) + len(message.must_not)
    if count > _MOST_CONDITIONS:
        raise InvalidArgument(
            f"filter: expected at most {_MOST_CONDITIONS} conditions, got {count}", field="filter"
        )
    must, must_have_value = _split(message.must)
    should, should_have_value = _split(message.should)
    must_not, must_not_have_value = _split(message.must_not)
    if should_have_value:
        raise InvalidArgument(
            "filter: empty = false is not possible in should: put empty = true into must_not",
            field="filter",
        )
    # The store knows only "is empty". "Has a value" is its negation, so it changes the list.
    return Filter((*must, *must_not_have_value), should, (*must_not, *must_have_value))


def _split(conditions: Sequence[pb.Condition]) -> tuple[tuple[Condition, ...], tuple[Empty, ...]]:
    """The ``conditions`` that the store knows, and the fields of those that say "has a value"."""
    known: list[Condition] = []
    have_value: list[Empty] = []
    for condition in conditions:
        if condition.WhichOneof("test") == "empty" and not condition.empty:
            have_value.append(Empty(_field(condition)))
        else:
            known.append(_condition(condition))
    return tuple(known), tuple(have_value)


def _field(condition: pb.Condition) -> str:
    if not condition.field:
        raise InvalidArgument("filter: expected a field name, got an empty one", field="filter")
    return condition.field


def _condition(condition: pb.Condition) -> Condition:
    field = _field(condition)
    match condition.WhichOneof("test"):
        case "equals":
            return Equals(field, _scalar(field, condition.equals))
        case "any_of":
            return _any_of(field, list(condition.any_of.values))
        case "range":
            bounds = {
                name: getattr(condition.range, name)
                for name in ("gte", "gt", "lte", "lt")
                if condition.range.HasField(name)
            }
            if not bounds:
                raise InvalidArgument(
                    f"filter on {field!r}: expected at least one bound", field=field
                )
            return Range(field, **bounds)
        case "empty":
            return Empty(field)
        case _:
            raise InvalidArgument(
                f"filter on {field!r}: expected equals, any_of, range or empty, got none",
                field=field,
            )


def _scalar(field: str, value: Value) -> str | int | float | bool:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case kind:
            raise InvalidArgument(
                f"filter on {field!r}: expected a string, number or boolean, got {kind or 'none'}",
                field=field,
            )


def _any_of(field: str, values: list[Value]) -> AnyOf:
    if not 1 <= len(values) <= _MOST_VALUES:
        raise InvalidArgument(
            f"filter on {field!r}: expected 1 to {_MOST_VALUES} values, got {len(values)}",
            field=field,
        )
    scalars = [_scalar(field, value) for value in values]
    strings = tuple(v for v in scalars if isinstance(v, str))
    integers = tuple(v for v in scalars if isinstance(v, int) and not isinstance(v, bool))
    if len(strings) == len(scalars):
        return AnyOf(field, strings)
    if len(integers) == len(scalars):
        return AnyOf(field, integers)
    raise InvalidArgument(
        f"filter on {field!r}: expected all strings or all whole numbers", field=field
    )
