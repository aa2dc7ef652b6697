"""The contract's filters as the store's: what each condition becomes, and which points it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from search.filters import to_filter
from shoal.errors import InvalidArgument
from shoal.store import Point, Scan, Store, StoreConfig, open_store, point_id
from shoal.store.model import AnyOf, Condition, Empty, Equals, Filter, Range
from shoal.v1 import common_pb2 as pb
from shoal.values import VectorInfo


def value(of: Any) -> Value:
    """``of`` as a Value: a bool, a number, a text or None."""
    match of:
        case None:
            return Value(null_value=0)  # type: ignore[arg-type]
        case bool():
            return Value(bool_value=of)
        case str():
            return Value(string_value=of)
        case _:
            return Value(number_value=of)


def equals(field: str, of: Any) -> pb.Condition:
    return pb.Condition(field=field, equals=value(of))


def any_of(field: str, *values: Any) -> pb.Condition:
    return pb.Condition(field=field, any_of=ListValue(values=[value(each) for each in values]))


def within(field: str, **bounds: float) -> pb.Condition:
    return pb.Condition(field=field, range=pb.Range(**bounds))


def empty(field: str, *, is_empty: bool = True) -> pb.Condition:
    return pb.Condition(field=field, empty=is_empty)


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        (equals("a", "x"), Equals("a", "x")),
        (equals("a", ""), Equals("a", "")),
        (equals("a", True), Equals("a", True)),
        (equals("a", False), Equals("a", False)),
        (equals("a", 3), Equals("a", 3)),
        (equals("a", 0), Equals("a", 0)),
        (equals("a", -2.5), Equals("a", -2.5)),
        (equals("camera.model", "x"), Equals("camera.model", "x")),
        (any_of("a", "x"), AnyOf("a", ("x",))),
        (any_of("a", "x", "", "y"), AnyOf("a", ("x", "", "y"))),
        (any_of("a", 3, 0, -1), AnyOf("a", (3, 0, -1))),
        (within("a", gte=1), Range("a", gte=1)),
        (within("a", gt=0), Range("a", gt=0)),
        (within("a", lte=0.5), Range("a", lte=0.5)),
        (within("a", lt=-1), Range("a", lt=-1)),
        (within("a", gte=0, lt=0), Range("a", gte=0, lt=0)),
        (within("a", gt=1, lte=2), Range("a", gt=1, lte=2)),
        (empty("a"), Empty("a")),
    ],
)
@pytest.mark.parametrize("part", ["must", "should", "must_not"])
def test_each_condition_keeps_its_place_field_type_and_value(
    message: pb.Condition, condition: Condition, part: str
) -> None:
    """In all three lists; whole numbers are integers, booleans are no numbers, 0 is a bound."""
    (found,) = getattr(to_filter(pb.Filter(**{part: [message]})), part)
    assert found == condition
    if isinstance(condition, Equals):
        assert type(found.value) is type(condition.value)
    if isinstance(condition, AnyOf):
        assert {type(each) for each in found.values} == {type(condition.values[0])}


def test_lists_stay_apart_and_in_order() -> None:
    """All of must, one of should, none of must_not: none is dropped, none changes its list."""
    found = to_filter(
        pb.Filter(
            must=[equals("a", 1), equals("b", 2)],
            should=[equals("c", 3), empty("d")],
            must_not=[equals("e", 5), within("f", lt=6)],
        )
    )
    assert found == Filter(
        must=(Equals("a", 1), Equals("b", 2)),
        should=(Equals("c", 3), Empty("d")),
        must_not=(Equals("e", 5), Range("f", lt=6)),
    )
    assert to_filter(pb.Filter()) == Filter()


def test_empty_false_is_the_negation_of_empty() -> None:
    """A field must have a value where it must not be empty, and the other way round."""
    found = to_filter(
        pb.Filter(
            must=[equals("a", 1), empty("b", is_empty=False)],
            must_not=[equals("c", 3), empty("d", is_empty=False)],
        )
    )
    assert found == Filter(must=(Equals("a", 1), Empty("d")), must_not=(Equals("c", 3), Empty("b")))


def test_empty_false_in_should_is_refused() -> None:
    """An alternative cannot be negated; the answer says where to put it."""
    with pytest.raises(
        InvalidArgument, match=r"^filter: empty = false is not possible in should: put empty = true"
    ) as caught:
        to_filter(pb.Filter(should=[empty("a", is_empty=False)]))
    assert caught.value.metadata == {"field": "filter"}


@pytest.mark.parametrize(
    ("condition", "field", "message"),
    [
        (equals("", 1), "filter", "filter: expected a field name, got an empty one"),
        (empty("", is_empty=False), "filter", "filter: expected a field name, got an empty one"),
        (empty(""), "filter", "filter: expected a field name, got an empty one"),
        (
            pb.Condition(field="a"),
            "a",
            "filter on 'a': expected equals, any_of, range or empty, got none",
        ),
        (within("a"), "a", "filter on 'a': expected at least one bound"),
        (
            equals("a", None),
            "a",
            "filter on 'a': expected a string, number or boolean, got null_value",
        ),
        (
            pb.Condition(field="a", equals=Value()),
            "a",
            "filter on 'a': expected a string, number or boolean, got none",
        ),
        (
            pb.Condition(field="a", equals=Value(list_value=ListValue())),
            "a",
            "filter on 'a': expected a string, number or boolean, got list_value",
        ),
        (
            pb.Condition(field="a", equals=Value(struct_value=Struct())),
            "a",
            "filter on 'a': expected a string, number or boolean, got struct_value",
        ),
        (any_of("a"), "a", "filter on 'a': expected 1 to 1000 values, got 0"),
        (any_of("a", *range(1001)), "a", "filter on 'a': expected 1 to 1000 values, got 1001"),
        (any_of("a", "x", 1), "a", "filter on 'a': expected all strings or all whole numbers"),
        (any_of("a", 1, "x"), "a", "filter on 'a': expected all strings or all whole numbers"),
        (any_of("a", 1, 1.5), "a", "filter on 'a': expected all strings or all whole numbers"),
        (any_of("a", True), "a", "filter on 'a': expected all strings or all whole numbers"),
        (any_of("a", 1, False), "a", "filter on 'a': expected all strings or all whole numbers"),
        (
            any_of("a", "x", None),
            "a",
            "filter on 'a': expected a string, number or boolean, got null_value",
        ),
    ],
)
@pytest.mark.parametrize("part", ["must", "should", "must_not"])
def test_incomplete_conditions_are_refused(
    condition: pb.Condition, field: str, message: str, part: str
) -> None:
    """In all three lists, by the name of the field, with what was expected."""
    with pytest.raises(InvalidArgument) as caught:
        to_filter(pb.Filter(**{part: [equals("b", 1), condition]}))
    assert caught.value.message == message
    assert caught.value.metadata == {"field": field}


def test_conditions_are_limited_over_all_lists() -> None:
    """100 in all are taken, 101 are not, however they are spread."""
    for must, should, must_not in ((100, 0, 0), (0, 100, 0), (0, 0, 100), (40, 30, 30)):
        lists = {
            "must": [equals("a", i) for i in range(must)],
            "should": [equals("b", i) for i in range(should)],
            "must_not": [equals("c", i) for i in range(must_not)],
        }
        found = to_filter(pb.Filter(**lists))
        assert [len(found.must), len(found.should), len(found.must_not)] == [must, should, must_not]
        for part, conditions in lists.items():
            more = pb.Filter(**{**lists, part: [*conditions, equals("d", 1)]})
            with pytest.raises(InvalidArgument, match="at most 100 conditions, got 101") as caught:
                to_filter(more)
            assert caught.value.metadata == {"field": "filter"}


def test_values_are_limited() -> None:
    """A list of 1000 values is taken as it is."""
    (found,) = to_filter(pb.Filter(must=[any_of("a", *range(1000))])).must
    assert found == AnyOf("a", tuple(range(1000)))


PAYLOADS: list[dict[str, Any]] = [
    {"n": n, "half": n / 2, "word": word, "even": n % 2 == 0, "camera": {"model": model}}
    | ({"tags": tags} if tags is not None else {})
    for n, (word, model, tags) in enumerate(
        [
            ("cat", "x1", ["a", "b"]),
            ("dog", "x2", []),
            ("cat", "x2", None),
            ("3", "x 3", ["b"]),
            ("", "x1", ["c"]),
            ("dog", "x1", ["a"]),
        ]
    )
]
"""Each point's payload; the first has the number 0."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with open_store(StoreConfig(in_memory=True)) as opened:
        opened.create_collection("toys", [VectorInfo("toy", 2, "f" * 64)])
        up = np.array([0, 1], np.float32)
        opened.upsert("toys", [Point(point_id(str(p["n"])), {"toy": up}, p) for p in PAYLOADS])
        yield opened


def is_cat(p: dict[str, Any]) -> bool:
    return bool(p["word"] == "cat")


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        (pb.Filter(must=[equals("n", 0)]), lambda p: p["n"] == 0),
        (pb.Filter(must=[equals("half", 1.5)]), lambda p: p["half"] == 1.5),
        (pb.Filter(must=[equals("half", 2)]), lambda p: p["half"] == 2),
        (pb.Filter(must=[equals("even", False)]), lambda p: not p["even"]),
        (pb.Filter(must=[equals("word", "3")]), lambda p: p["word"] == "3"),
        (pb.Filter(must=[equals("word", "")]), lambda p: p["word"] == ""),
        (pb.Filter(must=[equals("word", 3)]), lambda _: False),
        (pb.Filter(must=[equals("tags", "a")]), lambda p: "a" in p.get("tags", [])),
        (pb.Filter(must=[equals("camera.model", "x 3")]), lambda p: p["camera"]["model"] == "x 3"),
        (pb.Filter(must=[any_of("word", "dog", "3")]), lambda p: p["word"] in ("dog", "3")),
        (pb.Filter(must=[any_of("n", 0, 4)]), lambda p: p["n"] in (0, 4)),
        (pb.Filter(must=[any_of("tags", "a", "c")]), lambda p: {"a", "c"} & {*p.get("tags", [])}),
        (pb.Filter(must=[within("n", gte=2)]), lambda p: p["n"] >= 2),
        (pb.Filter(must=[within("n", gt=2)]), lambda p: p["n"] > 2),
        (pb.Filter(must=[within("n", lte=2)]), lambda p: p["n"] <= 2),
        (pb.Filter(must=[within("n", lt=2)]), lambda p: p["n"] < 2),
        (pb.Filter(must=[within("half", gt=0.5, lte=2)]), lambda p: 0.5 < p["half"] <= 2),
        (pb.Filter(must=[within("half", gte=0.5, lt=2)]), lambda p: 0.5 <= p["half"] < 2),
        (pb.Filter(must=[empty("tags")]), lambda p: not p.get("tags")),
        (pb.Filter(must=[empty("tags", is_empty=False)]), lambda p: p.get("tags")),
        (pb.Filter(must_not=[empty("tags")]), lambda p: p.get("tags")),
        (pb.Filter(must_not=[empty("tags", is_empty=False)]), lambda p: not p.get("tags")),
        (pb.Filter(must=[empty("camera.lens")]), lambda _: True),
        (pb.Filter(should=[equals("n", 0), equals("n", 1)]), lambda p: p["n"] in (0, 1)),
        (
            pb.Filter(should=[equals("n", 0), empty("tags")]),
            lambda p: not (p["n"] and p.get("tags")),
        ),
        (
            pb.Filter(must_not=[equals("n", 0), equals("word", "dog")]),
            lambda p: p["n"] in (2, 3, 4),
        ),
        (
            pb.Filter(
                must=[within("n", lte=4)],
                should=[equals("word", "cat"), equals("word", "dog")],
                must_not=[equals("camera.model", "x2")],
            ),
            lambda p: p["n"] == 0,
        ),
        (pb.Filter(must=[equals("word", "cat"), equals("n", 2)]), lambda p: p["n"] == 2),
        (pb.Filter(must=[equals("word", "cat")]), is_cat),
        (pb.Filter(must_not=[equals("word", "cat")]), lambda p: not is_cat(p)),
        (pb.Filter(), lambda _: True),
    ],
)
def test_filter_selects_the_points_that_it_means(
    store: Store, message: pb.Filter, meant: Callable[[dict[str, Any]], object]
) -> None:
    """The store keeps the points for which the condition, read as Python, is true."""
    blocks = store.scan("toys", Scan(where=to_filter(message)))
    found = sorted(p["n"] for block in blocks for p in block.payloads)
    assert found == [p["n"] for p in PAYLOADS if meant(p)]
