from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.store.payloads import (
    MAX_DEPTH,
    clean_number,
    clean_payload,
    is_addressable,
    is_text,
    json_path,
)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_clean_number_moves_little_and_once(value: float) -> None:
    """A number stays what it is to 13 digits, and is the same when it comes back."""
    cleaned = clean_number(value, "x")
    assert cleaned == pytest.approx(value, rel=1e-13, abs=sys.float_info.min)
    assert clean_number(float(cleaned), "x") == cleaned


@given(st.decimals(-10_000_000_000, 10_000_000_000, places=4))
def test_clean_number_keeps_decimals_of_fifteen_digits(value: object) -> None:
    """A decimal of ordinary size with up to 15 significant digits is kept exactly."""
    assert clean_number(float(str(value)), "x") == float(str(value))


@pytest.mark.parametrize("value", [sys.float_info.max, -sys.float_info.max, 5e-324, 2.0**53 * 3])
def test_clean_number_takes_the_extremes(value: float) -> None:
    """The largest, the smallest and whole numbers that are no exact integers are kept."""
    assert clean_number(value, "x") == value


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (1762290169.4889703, 1),
        (3.8461944500848047e-28, -2),
        (7.536086568064374e-10, -4),
        (4.701865635853005e-29, 3),
        (-4.701865635853005e-29, 3),
        (1.2345678901234567e300, 1),
        (1.2447198642684283e17, 1),
        (4.14424518839105e-309, 1),
        (0.1, 0),
        (1.23456789012346e-310, 0),
        (sys.float_info.min, 0),
    ],
)
def test_clean_number_takes_the_nearest_float_that_lasts(value: float, steps: int) -> None:
    """A float that an engine misreads moves to the nearest that it reads as itself; a tie, up.

    The steps were found by this module; that engines read floats so is a test of the filters.
    """
    cleaned = clean_number(value, "x")
    toward = math.copysign(math.inf, steps)
    for _ in range(abs(steps)):
        value = math.nextafter(value, toward)
    assert cleaned == value


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (2.0, 2),
        (-0.0, 0),
        (-3.0, -3),
        (2.0**53, 2**53),
        (-(2.0**53), -(2**53)),
        (2.0**53 + 2, 2.0**53 + 2),
        (0.5, 0.5),
    ],
)
def test_clean_number_makes_integers_of_whole_floats(value: float, cleaned: float) -> None:
    """A whole float becomes an integer, up to 2**53; above, a float no longer names one."""
    found = clean_number(value, "x")
    assert (type(found), found) == (type(cleaned), cleaned)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_clean_number_refuses_what_is_no_number(value: float) -> None:
    """NaN and infinity are refused, with the field's name."""
    with pytest.raises(InvalidArgument) as refused:
        clean_number(value, "size")
    assert refused.value.message == f"size: expected a finite number, got {value}"
    assert refused.value.metadata == {"field": "size"}


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"a": None, "b": True, "c": False, "d": "", "e": "é", "f": [], "g": {}},
        {"low": -(2**63), "high": 2**63 - 1},
        {"deep": {"deeper": [{"x": [0.5, "y", None]}]}},
        {"a.b": {'"': 1}},
    ],
)
def test_clean_payload_keeps_json(payload: Any) -> None:
    """What is JSON stays as it is, in a copy."""
    cleaned = clean_payload(payload)
    assert cleaned == payload
    assert repr(cleaned) == repr(payload)
    assert cleaned is not payload


def test_clean_payload_cleans_numbers_at_any_depth() -> None:
    """Whole floats become integers wherever they are."""
    cleaned = clean_payload({"a": 2.0, "b": [3.0, {"c": 4.0}], "d": {"e": [5.0]}})
    assert repr(cleaned) == repr({"a": 2, "b": [3, {"c": 4}], "d": {"e": [5]}})


def test_clean_payload_makes_plain_integers() -> None:
    """A subclass of int or float, such as an enumeration's member, becomes the plain number."""

    class Kind(int):
        pass

    class Ratio(float):
        pass

    cleaned = clean_payload({"kind": Kind(3), "ratio": Ratio(0.5)})
    assert {name: type(value) for name, value in cleaned.items()} == {"kind": int, "ratio": float}


def nested(levels: int, kind: type) -> Any:
    """A value that is ``levels`` objects or lists, one in another, around a number."""
    value: Any = 1
    for _ in range(levels):
        value = {"x": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize("kind", [dict, list])
def test_clean_payload_takes_a_bounded_depth(kind: type) -> None:
    """The payload and what is in it are MAX_DEPTH levels at most."""
    assert MAX_DEPTH == 32
    deepest = {"x": nested(MAX_DEPTH - 1, kind)}
    assert clean_payload(deepest) == deepest
    with pytest.raises(InvalidArgument, match="x: expected at most 32 levels"):
        clean_payload({"x": nested(MAX_DEPTH, kind)})


@pytest.mark.parametrize(
    ("payload", "message", "field"),
    [
        ({"n": 2**63}, "n: expected an integer of 64 bits, got 9223372036854775808", "n"),
        ({"n": -(2**63) - 1}, "n: expected an integer of 64 bits, got -9223372036854775809", "n"),
        ({"n": {"m": math.inf}}, "m: expected a finite number, got inf", "m"),
        ({"n": [math.nan]}, "n: expected a finite number, got nan", "n"),
        ({"": 1}, "payload: expected non-empty names, got ''", "payload"),
        ({7: 1}, "payload: expected non-empty names, got 7", "payload"),
        ({"n": {"": 1}}, "n: expected non-empty names, got ''", "n"),
        ({"n": {None: 1}}, "n: expected non-empty names, got None", "n"),
        ({"n": "\ud800"}, "n: expected Unicode text, got a lone surrogate", "n"),
        ({"n": ["x", "\ud800"]}, "n: expected Unicode text, got a lone surrogate", "n"),
        ({"\ud800": 1}, "payload: expected Unicode text, got a lone surrogate", "payload"),
        ({"n": {"\ud800": 1}}, "n: expected Unicode text, got a lone surrogate", "n"),
        ({"n": (1, 2)}, "n: expected a JSON value, got tuple", "n"),
        ({"n": [{"m": b"x"}]}, "m: expected a JSON value, got bytes", "m"),
        (
            {"n": nested(MAX_DEPTH, list)},
            "n: expected at most 32 levels",
            "n",
        ),
        ({"n": {"m": nested(MAX_DEPTH - 1, list)}}, "m: expected at most 32 levels", "m"),
    ],
)
def test_clean_payload_refuses_the_rest(payload: Any, message: str, field: str) -> None:
    """What is not JSON is refused, and the message names the field that it is in."""
    with pytest.raises(InvalidArgument) as refused:
        clean_payload(payload)
    assert refused.value.message == message
    assert refused.value.metadata == {"field": field}


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("n", "n"),
        ("camera.model", "camera.model"),
        ("a-b.c_d.E9", "a-b.c_d.E9"),
        ("odd name", '"odd name"'),
        ("größe.in mm", '"größe"."in mm"'),
        ("a.b[0].c", 'a."b[0]".c'),
        ("plain\n", '"plain\n"'),
    ],
)
def test_json_path_quotes_odd_names(field: str, path: str) -> None:
    """Dots join names; a name of anything but ASCII letters, digits, - and _ is quoted."""
    assert json_path(field) == path


@pytest.mark.parametrize("field", ["", ".", "a.", ".a", "a..b", 'a"b', '"', "a.\ud800"])
def test_json_path_refuses_what_is_no_path(field: str) -> None:
    """An empty name, a quote and a lone surrogate are refused; the message repeats the field."""
    with pytest.raises(InvalidArgument) as refused:
        json_path(field)
    assert refused.value.message == (
        f'field {field!r}: expected names joined by ".", each non-empty and without quotes'
    )
    assert refused.value.metadata == {"field": "field"}


@pytest.mark.parametrize(
    ("name", "addressable"),
    [("X", True), ("odd name", True), ("ü", True), ("", False), ("a.b", False), ('a"b', False)],
)
def test_a_name_with_a_dot_or_a_quote_cannot_be_addressed(name: str, *, addressable: bool) -> None:
    """Neither can an empty one."""
    assert is_addressable(name) is addressable


@pytest.mark.parametrize(
    ("value", "text"),
    [("", True), ("a", True), ("ü🐟", True), ("\ud800", False), ("a\udfff", False)],
)
def test_text_has_no_lone_surrogates(value: str, *, text: bool) -> None:
    """What cannot be written as UTF-8 is no text."""
    assert is_text(value) is text
