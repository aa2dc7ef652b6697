"""What the fields of a config say of themselves, and the check of their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt

from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Bounds, Field, Setting, check_ranges, fields_of

NAMED = Setting("--named")


@dataclass(frozen=True, slots=True)
class Inner:
    """A config inside."""

    size: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Outer:
    """One field of each kind."""

    given: str
    at_least: Annotated[int, Ge(2)] = 2
    above_s: Annotated[float, Gt(0)] = 1.0
    at_most: Annotated[int, Le(5)] = 5
    below: Annotated[float, Lt(1)] = 0.0
    share: Annotated[float, Interval(ge=0, le=1), NAMED] = 0.5
    maybe: Annotated[float, Ge(-1), Le(1)] | None = None
    word: Literal["a", "b"] = "a"
    count: Annotated[int | Literal["auto"], Ge(1)] = 1
    paths: tuple[Path, ...] = ()
    sizes: Annotated[tuple[int, ...], Ge(0)] = ()
    pairs: Mapping[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    hidden: Annotated[int, INTERNAL] = 0

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.fixture(autouse=True)
def read_anew() -> None:
    """Each test runs the code that takes annotations apart."""
    fields_of.cache_clear()


def test_fields_are_taken_apart() -> None:
    """Type, words, optional, many, bounds, default and setting of each field, in their order."""
    fields = fields_of(Outer)
    assert list(fields) == [
        Field("given", MISSING, str),
        Field("at_least", 2, int, bounds=Bounds(low=2)),
        Field("above_s", 1.0, float, bounds=Bounds(low=0, low_open=True)),
        Field("at_most", 5, int, bounds=Bounds(high=5)),
        Field("below", 0.0, float, bounds=Bounds(high=1, high_open=True)),
        Field("share", 0.5, float, bounds=Bounds(0, 1), setting=NAMED),
        Field("maybe", None, float, optional=True, bounds=Bounds(-1, 1)),
        Field("word", "a", words=("a", "b")),
        Field("count", 1, int, words=("auto",), bounds=Bounds(low=1)),
        Field("paths", (), Path, many=True),
        Field("sizes", (), int, many=True, bounds=Bounds(low=0)),
        Field("pairs", {}, str, many=True, mapping=True),
        Field("inner", Inner(), Inner),
        Field("hidden", 0, int, setting=INTERNAL),
    ]
    assert [each.name for each in fields if each.nested] == ["inner"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at_least", 2),
        ("above_s", 1e-9),
        ("above_s", math.inf),
        ("at_most", 5),
        ("below", math.nextafter(1, 0)),
        ("share", 0.0),
        ("share", 1.0),
        ("maybe", None),
        ("maybe", -1.0),
        ("word", "b"),
        ("count", "auto"),
        ("count", 1),
        ("sizes", (0, 7)),
        ("pairs", {"x": "y"}),
    ],
)
def test_values_inside_are_taken(name: str, value: Any) -> None:
    """Closed bounds themselves are inside; None is a value where the type says so."""
    assert getattr(Outer("x", **{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("at_least", 1, "at_least: expected at least 2, got 1"),
        ("above_s", 0, "above_s: expected more than 0 s, got 0"),
        ("above_s", math.nan, "above_s: expected more than 0 s, got nan"),
        ("at_most", 6, "at_most: expected at most 5, got 6"),
        ("below", 1.0, "below: expected less than 1, got 1.0"),
        ("below", math.nan, "below: expected less than 1, got nan"),
        ("share", -0.1, "share: expected 0 to 1, got -0.1"),
        ("share", 1.1, "share: expected 0 to 1, got 1.1"),
        ("maybe", -1.1, "maybe: expected -1 to 1, got -1.1"),
        ("word", "c", "word: expected one of a, b, got 'c'"),
        ("count", 0, "count: expected at least 1 or auto, got 0"),
        ("sizes", (1, -1), "sizes: expected at least 0, got -1"),
    ],
)
def test_value_outside_is_named(name: str, value: Any, said: str) -> None:
    """The message has the field, what was expected and what was got; so has the error."""
    with pytest.raises(ConfigError) as caught:
        Outer("x", **{name: value})
    assert caught.value.message == said
    assert caught.value.metadata == {"field": name}


def test_config_inside_checks_itself() -> None:
    """The outer one leaves it alone."""
    with pytest.raises(ConfigError, match="size: expected at least 1"):
        Inner(0)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (Bounds(0.5, 1), "0.5 to 1"),
        (Bounds(0, 1, low_open=True), "more than 0 and at most 1"),
        (Bounds(0, 1, high_open=True), "at least 0 and less than 1"),
    ],
)
def test_bounds_say_what_is_open(bounds: Bounds, said: str) -> None:
    """A range whose ends are not both inside is said in words."""
    assert str(bounds) == said
