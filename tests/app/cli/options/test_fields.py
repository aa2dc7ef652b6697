"""``NAME=VALUE`` of ``ingest --field`` and ``search --where``: a value or a refusal, always."""

from __future__ import annotations

import json
import math
from typing import Any

import click
import pytest
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.app.cli.options.fields import parse_fields
from shoal.app.cli.search import _test
from shoal.client import AnyOf, Empty

CONTEXT = click.Context(click.Command("x"))
OPTION = click.Option(["--field"])


def parse(*texts: str) -> dict[str, Any]:
    return parse_fields(CONTEXT, OPTION, texts)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=x y", "x y"),
        ('a="1"', "1"),
        ("a=[1, null]", [1, None]),
        ('a={"b": true}', {"b": True}),
        ("a=null", None),
        ("a=b=c", "b=c"),
        ("a=", ""),
        ("a=nan", "nan"),
        ("a=inf", "inf"),
        ('a="NaN"', "NaN"),
        ("a=" + "9" * 5000, "9" * 5000),
        ("a=" + "[" * 100_000, "[" * 100_000),
        ("写=é", "é"),
    ],
    ids=range(15),
)
def test_a_value_is_json_or_a_text(text: str, value: object) -> None:
    """What is no JSON is a text, whatever it looks like."""
    (found,) = parse(text).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '[{"b": [-1e999]}]'])
@pytest.mark.parametrize(
    "arguments",
    [("ingest", ".", "--field"), ("search", "x.jpg", "--where")],
    ids=["field", "where"],
)
def test_numbers_that_are_not_finite_are_a_wrong_usage(
    in_process: Any, arguments: tuple[str, ...], value: str
) -> None:
    """Once, before anything is read or sent; the message says how to write it as a text."""
    result = in_process(*arguments, f"speed={value}")
    assert result.code == 2
    assert f"speed: expected finite numbers, got {value!r}" in " ".join(result.stderr.split())
    assert result.stderr.count("expected") == 1


@pytest.mark.parametrize("text", ["a", "=1", "a==1", "a>=1", "a<=1", "a!=1", "a~=1", ""])
def test_what_is_meant_for_something_else_is_refused(text: str) -> None:
    """No name, no sign, or a comparison."""
    with pytest.raises(click.BadParameter, match="expected NAME=VALUE"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"n={2**53 + 1}", "whole numbers that a float64 holds"),
        ("n=" + "[" * 40 + "]" * 40, "levels"),
        ("n=" + "é" * 2**15, "at most 65,536 bytes as JSON, got 65,545"),
        ("source=x", "none of"),
    ],
)
def test_fields_that_no_image_can_have_are_a_wrong_usage(
    in_process: Any, value: str, expected: str
) -> None:
    """Refused of all images at once, and not of each."""
    result = in_process("ingest", ".", "--field", value)
    assert result.code == 2
    assert expected in " ".join(result.stderr.split())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@fuzz(300)
@given(name=st.text(max_size=6), value=JSON.map(json.dumps) | st.text(max_size=30))
@example(name="a", value="[" * 5000)
@example(name="a", value="\ud800")
def test_any_condition_is_a_test_or_a_refusal(name: str, value: str) -> None:
    """Nothing else is raised, and no number is lost in a test that means something else."""
    try:
        (found,) = parse(f"{name}={value}").values()
        test = _test(name, found)
    except click.UsageError:
        return
    if isinstance(test, AnyOf):
        assert list(test.values) == found
    elif isinstance(test, Empty):
        assert found is None
    else:
        assert isinstance(test, str | int | float)
        assert not isinstance(test, float) or math.isfinite(test)
