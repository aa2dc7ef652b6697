from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from shoal.errors import InvalidArgument
from shoal.store import (
    EVERYWHERE,
    AnyOf,
    Condition,
    Empty,
    Equals,
    Filter,
    IdIn,
    Payload,
    Range,
    Scan,
    point_id,
)
from shoal.store.filters import to_filter

if TYPE_CHECKING:
    from tests.store.conftest import Room

PAYLOADS: list[Payload] = [
    {"n": 1, "s": "x", "ok": True, "camera": {"model": "A", "lens": {"mm": 35}}},
    {"n": 2.0, "s": "y", "ok": False, "camera": {"model": "B", "on": True}},
    {"n": 2.5, "s": "", "ok": 1, "tags": ["x", "y"]},
    {"n": -3, "s": "true", "ok": "true", "tags": []},
    {"n": None, "s": None, "ok": None, "tags": None, "camera": {}},
    {"n": [1, 7], "s": ["x"], "ok": [True, False], "camera": {"model": None}},
    {"n": "1", "s": 1, "ok": "\x00true", "odd name": 5, "größe": {"in mm": 7}},
    {"n": True, "s": True, "ok": 0, "a-b": "x", "clusters": {"default": {"a": 4, "b": -1}}},
    {"n": 2**53, "s": "X", "clusters": {"default": {"a": -1}}},
    {},
]


def lookup(payload: Any, field: str) -> Any:
    """The value at a path, None if there is none."""
    for part in field.split("."):
        payload = payload.get(part) if isinstance(payload, dict) else None
    return payload


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(value: Any, wanted: Any) -> bool:
    """Equality of JSON values: numbers by value, booleans apart from numbers."""
    if is_number(value) and is_number(wanted):
        return bool(value == wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def holds(condition: Condition, point: str, payload: Payload) -> bool:
    """The rule that every engine must follow, in plain Python."""
    if isinstance(condition, IdIn):
        return point in condition.ids
    value = lookup(payload, condition.field)
    if isinstance(condition, Empty):
        return value is None or value == []
    values = value if isinstance(value, list) else [value]
    if isinstance(condition, Equals):
        return any(same(v, condition.value) for v in values)
    if isinstance(condition, AnyOf):
        return any(same(v, wanted) for v in values for wanted in condition.values)
    return any(
        is_number(v)
        and (condition.gte is None or v >= condition.gte)
        and (condition.gt is None or v > condition.gt)
        and (condition.lte is None or v <= condition.lte)
        and (condition.lt is None or v < condition.lt)
        for v in values
    )


def matches(where: Filter, point: str, payload: Payload) -> bool:
    return (
        all(holds(c, point, payload) for c in where.must)
        and (not where.should or any(holds(c, point, payload) for c in where.should))
        and not any(holds(c, point, payload) for c in where.must_not)
    )


IDS = [point_id(str(i)) for i in range(len(PAYLOADS))]
CONDITIONS: list[Condition] = [
    Equals("n", 1),
    Equals("n", 1.0),
    Equals("n", 2),
    Equals("n", 2.5),
    Equals("n", -3),
    Equals("n", 2**53),
    Equals("n", 0.1),
    Equals("n", "1"),
    Equals("n", value=True),
    Equals("s", "x"),
    Equals("s", ""),
    Equals("s", "true"),
    Equals("s", value=True),
    Equals("ok", value=True),
    Equals("ok", value=False),
    Equals("ok", 1),
    Equals("ok", 0),
    Equals("ok", "true"),
    Equals("ok", "\x00true"),
    Equals("camera.model", "A"),
    Equals("camera.lens.mm", 35),
    Equals("camera.on", value=True),
    Equals("camera", "A"),
    Equals("tags", "y"),
    Equals("odd name", 5),
    Equals("größe.in mm", 7),
    Equals("a-b", "x"),
    Equals("clusters.default.a", 4),
    Equals("clusters.default.a", -1),
    Equals("nowhere.at.all", 1),
    AnyOf("n", (1, 7)),
    AnyOf("n", (2, -3, 99)),
    AnyOf("s", ("x", "y", "none")),
    AnyOf("tags", ("x", "z")),
    AnyOf("camera.model", ("B",)),
    AnyOf("ok", ("\x00true", "else")),
    AnyOf("clusters.default.a", (4, 5, 6)),
    Range("n", gte=1),
    Range("n", gt=1),
    Range("n", lte=2),
    Range("n", lt=2),
    Range("n", gt=1, lt=2.5),
    Range("n", gte=2.5, lte=2.5),
    Range("n", gte=5, lte=1),
    Range("ok", gte=0),
    Range("camera.lens.mm", gte=30, lt=36),
    Range("clusters.default.a", gte=-1, lte=4),
    Empty("n"),
    Empty("tags"),
    Empty("camera"),
    Empty("camera.model"),
    Empty("clusters.default.a"),
    Empty("clusters.default.b"),
    Empty("nowhere"),
    Empty("ok"),
    IdIn(()),
    IdIn((IDS[2], IDS[5], point_id("missing"))),
    IdIn(IDS),
]


def _check(room: Room, where: Filter) -> None:
    expected = {i for i, p in zip(IDS, PAYLOADS, strict=True) if matches(where, i, p)}
    found = {i for block in room.store.scan(room.name, Scan(where=where)) for i in block.ids}
    assert found == expected, where
    assert room.store.count(room.name, where) == len(expected)


def test_every_condition_selects_what_it_says(room: Room) -> None:
    """Each kind of condition follows one rule on all engines, alone and negated."""
    room.fill(PAYLOADS)
    for condition in CONDITIONS:
        _check(room, Filter(must=(condition,)))
        _check(room, Filter(must_not=(condition,)))
        _check(room, Filter(should=(condition,)))


def test_conditions_combine(room: Room) -> None:
    """All of must, one of should if there is any, none of must_not."""
    room.fill(PAYLOADS)
    _check(room, EVERYWHERE)
    for i, first in enumerate(CONDITIONS):
        second, third = CONDITIONS[(i * 7 + 3) % len(CONDITIONS)], CONDITIONS[i * 5 % 53]
        _check(room, Filter((first, second)))
        _check(room, Filter(should=(first, second)))
        _check(room, Filter((third,), (first, second)))
        _check(room, Filter((), (first, second), (third,)))
        _check(room, Filter(must_not=(first, second)))


def test_also_adds_to_must() -> None:
    """``also`` narrows a filter and keeps the rest of it."""
    one, two, three = CONDITIONS[:3]
    where = Filter((one,), (two,), (three,))
    assert where.also(two, three) == Filter((one, two, three), (two,), (three,))


def test_id_filter_takes_thousands(room: Room) -> None:
    """2,500 ids in one condition work, with the unknown among them ignored."""
    ids = room.fill([{"n": i} for i in range(20)])
    asked = [*(point_id(f"missing {i}") for i in range(2490)), *ids[5:15]]
    where = Filter((IdIn(asked),))
    assert room.store.count(room.name, where) == 10
    assert room.store.count(room.name, Filter(must_not=(IdIn(asked),))) == 10
    assert room.store.count(room.name, where.also(Range("n", lt=8))) == 3


def test_a_float_is_found_by_what_was_sent_and_by_what_is_read(room: Room) -> None:
    """A float is read as it is kept, and meets an equality and the bounds that it is equal to.

    Times of many digits and small probabilities: engines read some of those imprecisely.
    """
    rng = random.Random(5)
    times = [1.7e9 + rng.random() * 1e8 for _ in range(40)]
    sent = [*times, *(rng.random() * 10.0 ** -rng.randint(0, 30) for _ in range(60))]
    ids = room.fill([{"ingested_at": x, "x": x} for x in sent])
    room.store.flush()
    held = room.state()
    read = [float(held[point]["ingested_at"]) for point in ids]
    assert read == pytest.approx(sent, rel=1e-14, abs=0)
    count, total = room.store.count, len(sent)
    for name in ("ingested_at", "x"):  # with an index and without
        for values in (sent, read):
            equal = Filter(should=tuple(Equals(name, x) for x in values))
            assert count(room.name, equal) == total
        for x in {*sent, *read}:
            between = Filter((Range(name, lte=x, gte=x),))
            assert count(room.name, between) == 1, (name, x)
            beside = Filter(should=(Range(name, lt=x), Range(name, gt=x)))
            assert count(room.name, beside) == total - 1, (name, x)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Equals("n", 1), {"key": "n", "match": {"value": 1}}),
        (Equals("n", 2.0), {"key": "n", "match": {"value": 2}}),
        (Equals("n", 2**63 - 1), {"key": "n", "match": {"value": 2**63 - 1}}),
        (Equals("n", -(2**63)), {"key": "n", "match": {"value": -(2**63)}}),
        (Equals("n", 0.5), {"key": "n", "range": {"gte": 0.5, "lte": 0.5}}),
        (Equals("n", 2.0**60), {"key": "n", "range": {"gte": 2.0**60, "lte": 2.0**60}}),
        (Equals("odd name", "x"), {"key": '"odd name"', "match": {"value": "x"}}),
        (Equals("ok", value=True), {"key": "ok", "match": {"value": True}}),
        (AnyOf("a.b c", ("x", "y")), {"key": 'a."b c"', "match": {"any": ["x", "y"]}}),
        (AnyOf("n", (3, 1)), {"key": "n", "match": {"any": [3, 1]}}),
        (AnyOf("n", (3.0, 1)), {"key": "n", "match": {"any": [3, 1]}}),
        (Range("a b", gte=1, lt=3), {"key": '"a b"', "range": {"gte": 1.0, "lt": 3.0}}),
        (Range("n", gt=0, lte=2.5), {"key": "n", "range": {"gt": 0.0, "lte": 2.5}}),
        (
            Range("n", gt=1762290169.4889703),  # no engine reads this one as itself
            {"key": "n", "range": {"gt": 1762290169.4889705}},
        ),
        (Empty("a b"), {"is_empty": {"key": '"a b"'}}),
        (IdIn((IDS[0], IDS[1].upper())), {"has_id": [IDS[0], IDS[1]]}),
    ],
)
def test_condition_in_the_engines_words(condition: Condition, expected: dict[str, Any]) -> None:
    """Each condition becomes one of the engine's, in whichever part of the filter it is."""
    for part in ("must", "should", "must_not"):
        found = to_filter(Filter(**{part: (condition,)}))
        assert found.model_dump(exclude_none=True) == {part: [expected]}


def test_condition_keeps_the_kind_of_a_value() -> None:
    """1 and True are equal in Python and not in a store."""
    (one,) = to_filter(Filter((Equals("n", 1),))).must
    (true,) = to_filter(Filter((Equals("n", value=True),))).must
    assert (type(one.match.value), type(true.match.value)) == (int, bool)


def test_filter_without_conditions_is_empty() -> None:
    """No part is an empty list, which would mean that nothing matches."""
    assert to_filter(EVERYWHERE).model_dump() == {
        "must": None,
        "should": None,
        "must_not": None,
        "min_should": None,
    }


_NUMBERS = "expected one or more strings, or one or more whole numbers"
_SCALAR = "expected a string, a boolean or a number of 64 bits"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Equals("n", math.nan), "n: expected a finite number, got nan"),
        (Equals("n", math.inf), "n: expected a finite number, got inf"),
        (Equals("n", 2**63), f"field 'n': {_SCALAR}, got {2**63}"),
        (Equals("n", -(2**63) - 1), f"field 'n': {_SCALAR}, got {-(2**63) - 1}"),
        (Equals("n", "\ud800"), f"field 'n': {_SCALAR}, got '\\ud800'"),
        (Equals("n", None), f"field 'n': {_SCALAR}, got None"),
        (Equals("n", [1]), f"field 'n': {_SCALAR}, got [1]"),
        (Equals("n", {}), f"field 'n': {_SCALAR}, got {{}}"),
        (AnyOf("n", ()), f"field 'n': {_NUMBERS}, got []"),
        (AnyOf("n", (1, "x")), f"field 'n': {_NUMBERS}, got [1, 'x']"),
        (AnyOf("n", (1.5,)), f"field 'n': {_NUMBERS}, got [1.5]"),
        (AnyOf("n", (True,)), f"field 'n': {_NUMBERS}, got [True]"),
        (AnyOf("n", (2**63,)), f"field 'n': {_SCALAR}, got {2**63}"),
        (AnyOf("n", ("x", "\ud800")), f"field 'n': {_SCALAR}, got '\\ud800'"),
        (AnyOf("n", (None,)), f"field 'n': {_NUMBERS}, got [None]"),
        (AnyOf("n", (1, math.nan)), "n: expected a finite number, got nan"),
        (Range("n"), "field 'n': expected a range with one or more finite bounds, got {}"),
        (
            Range("n", gt=0, gte=math.nan),
            "field 'n': expected a range with one or more finite bounds, got {'gte': nan, 'gt': 0}",
        ),
        (
            Range("n", lt=math.inf),
            "field 'n': expected a range with one or more finite bounds, got {'lt': inf}",
        ),
    ],
)
def test_meaningless_conditions_are_refused(condition: Condition, message: str) -> None:
    """A condition that no point could sensibly meet is an error that names the field."""
    for where in (Filter((condition,)), Filter((), (condition,)), Filter((), (), (condition,))):
        with pytest.raises(InvalidArgument) as refused:
            to_filter(where)
        assert refused.value.message == message
        assert refused.value.metadata == {"field": "n"}


@pytest.mark.parametrize(
    "condition",
    [Equals("a..b", 1), AnyOf("a..b", (1,)), Range("a..b", lt=1), Empty("a..b"), IdIn(("x",))],
)
def test_conditions_on_nothing_are_refused(room: Room, condition: Condition) -> None:
    """A field that is no path, and an id that is none, are errors of every operation."""
    where = Filter((condition,))
    for call in (
        lambda: room.store.count(room.name, where),
        lambda: room.store.delete(room.name, where),
        lambda: room.store.scan(room.name, Scan(where=where)),
        lambda: room.store.set_payload(room.name, {"x": 1}, where=where),
        lambda: room.store.delete_fields(room.name, ["x"], where=where),
        lambda: room.store.facet(room.name, "source", where),
    ):
        with pytest.raises(InvalidArgument):
            call()
