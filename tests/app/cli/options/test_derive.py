"""Options are derived from a config: their names, types, defaults, texts, and the config itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt
from click.testing import CliRunner
from option_tables import Command, changed
from pydantic import SecretStr

from shoal.app.cli.options.derive import Options, configured
from shoal.app.cli.options.docstrings import docstrings_of
from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    return name, value


@dataclass(frozen=True, slots=True)
class Inner:
    """A config inside."""

    size: Annotated[int, Ge(1), Setting("--inner-size")] = 3
    """The size."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A config that may be absent."""

    low_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    """The low one."""
    high_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    """The high one."""


@dataclass(frozen=True, slots=True)
class Config:
    """One field of each kind."""

    wait_s: Annotated[float, Gt(0)] = 1.5
    """Longest wait, of
    ``this`` command.

    The reason is for who reads the code.
    """
    tries: Annotated[int, Ge(1), Le(9)] = 2
    """Tries."""
    ratio: Annotated[float, Ge(0)] = 0.5
    """Ratio."""
    count: Annotated[int | Literal["auto"], Ge(1)] = "auto"
    """Count."""
    name: str = ""
    """Name."""
    mode: Literal["fast", "good"] = "good"
    """Mode."""
    shape: Literal["", "round"] = ""
    """Shape."""
    known: Annotated[Path | None, Setting(path="file", exists=True)] = None
    """Known."""
    quiet: bool = False
    """Quiet."""
    color: Annotated[bool, Setting("--color/--no-color")] = True
    """Color."""
    token: SecretStr | None = None
    """Token."""
    keys: Annotated[tuple[SecretStr, ...], Setting("--key", metavar="KEY")] = ()
    """Keys."""
    roots: Annotated[tuple[Path, ...], Setting("--root", path="directory")] = ()
    """Roots."""
    log: Annotated[Path | None, Setting(path="file")] = None
    """Log."""
    place: Path = Path("here")
    """Place."""
    below: Annotated[float, Lt(1)] = 0.0
    """Below."""
    facts: Annotated[Mapping[str, str], Setting("--fact", parse=pair)] = field(default_factory=dict)
    """Facts."""
    inner: Inner = field(default_factory=lambda: Inner(4))
    """Inner."""
    limits: Thresholds | None = None
    """Limits."""
    hidden: Annotated[int, INTERNAL] = 7
    """Hidden."""

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.fixture
def command() -> Command:
    """Made anew for each test, so that each runs the code that derives its options."""
    return Command(configured(Config, as_="config"), "config")


def test_nothing_given_is_the_default(command: Command) -> None:
    """A config inside has the default that the outer one gives it."""
    assert command.built() == Config()
    assert command.built().inner == Inner(4)
    assert command.built().limits is None


GIVEN: list[tuple[list[str], dict[str, str], dict[str, Any]]] = [
    (["--wait", "2"], {"SHOAL_WAIT": "2"}, {"wait_s": 2.0}),
    (["--tries", "9"], {"SHOAL_TRIES": "9"}, {"tries": 9}),
    (["--ratio", "0"], {"SHOAL_RATIO": "0"}, {"ratio": 0.0}),
    (["--count", "5"], {"SHOAL_COUNT": "5"}, {"count": 5}),
    (["--name", "x y"], {"SHOAL_NAME": "x y"}, {"name": "x y"}),
    (["--mode", "fast"], {"SHOAL_MODE": "fast"}, {"mode": "fast"}),
    (["--shape", "round"], {"SHOAL_SHAPE": "round"}, {"shape": "round"}),
    (["--known", __file__], {"SHOAL_KNOWN": __file__}, {"known": Path(__file__)}),
    (["--quiet"], {"SHOAL_QUIET": "true"}, {"quiet": True}),
    (["--no-color"], {"SHOAL_COLOR": "0"}, {"color": False}),
    (["--token", "t"], {"SHOAL_TOKEN": "t"}, {"token": "t"}),
    (["--key", "a", "--key", "b"], {"SHOAL_KEY": "a b"}, {"keys": ("a", "b")}),
    (["--root", "a", "--root", "b"], {"SHOAL_ROOT": "a:b"}, {"roots": (Path("a"), Path("b"))}),
    (["--log", "l"], {"SHOAL_LOG": "l"}, {"log": Path("l")}),
    (["--place", "p"], {"SHOAL_PLACE": "p"}, {"place": Path("p")}),
    (["--place", "/"], {"SHOAL_PLACE": "/"}, {"place": Path("/")}),
    (["--place", __file__], {"SHOAL_PLACE": __file__}, {"place": Path(__file__)}),
    (["--below", "0.9"], {"SHOAL_BELOW": "0.9"}, {"below": 0.9}),
    (
        ["--fact", "a=1", "--fact", "b=x=y"],
        {"SHOAL_FACT": "a=1 b=x=y"},
        {"facts": {"a": "1", "b": "x=y"}},
    ),
    (["--inner-size", "5"], {"SHOAL_INNER_SIZE": "5"}, {"inner.size": 5}),
]


@pytest.mark.parametrize(
    ("words", "environment", "expected"), GIVEN, ids=lambda each: str(each)[:9]
)
def test_option_and_twin_set_the_field_alone(
    command: Command, words: list[str], environment: dict[str, str], expected: dict[str, Any]
) -> None:
    """What the line says is what the field has; the environment says it as well."""
    assert changed(command.built(words), Config()) == expected
    assert changed(command.built([], environment), Config()) == expected


def test_the_line_is_above_the_environment(command: Command) -> None:
    """An option that is given counts, whatever its twin says."""
    assert command.built(["--tries", "3"], {"SHOAL_TRIES": "4"}).tries == 3


def test_secrets_stay_secret(command: Command) -> None:
    """They are of a type that does not print them."""
    built = command.built(["--token", "s3cr3t", "--key", "0ther"])
    assert (built.token, built.keys) == (SecretStr("s3cr3t"), (SecretStr("0ther"),))
    assert "s3cr3t" not in repr(built)
    assert "0ther" not in repr(built)


def test_config_that_may_be_absent_is_there_once_something_in_it_is(command: Command) -> None:
    """Of its options one is enough."""
    assert command.built(["--high-share", "0"]).limits == Thresholds(None, 0.0)
    assert command.built(["--low-share", "1"]).limits == Thresholds(1.0, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--wait", "0"], "0.0 is not in the range x>0"),
        (["--tries", "10"], "10 is not in the range 1<=x<=9"),
        (["--tries", "0"], "0 is not in the range 1<=x<=9"),
        (["--tries", "1.5"], "'1.5' is not a valid integer"),
        (["--ratio", "-0.1"], "-0.1 is not in the range x>=0"),
        (["--count", "0"], "0 is not in the range x>=1"),
        (["--below", "1"], "1.0 is not in the range x<1"),
        (["--count", "some"], "'some' is not a valid integer"),
        (["--mode", "slow"], "'slow' is not one of 'fast', 'good'"),
        (["--fact", "a"], "expected NAME=VALUE, got 'a'"),
        (["--root", __file__], "is a file"),
        (["--log", "/"], "is a directory"),
        (["--shape", ""], "'' is not 'round'"),
        (["--known", "gone"], "does not exist"),
        (["--hidden", "1"], "No such option '--hidden'"),
        (["--wit", "1"], "'--wait'?"),
    ],
)
def test_wrong_value_is_a_wrong_usage(command: Command, words: list[str], said: str) -> None:
    """It is refused with what was expected, before the config is made."""
    assert said in command.refused(*words)


def help_of(command: click.Command) -> str:
    """The help on one line."""
    return " ".join(CliRunner().invoke(command, ["--help"]).output.split())


@pytest.mark.parametrize(
    "line",
    [
        "--wait SECONDS Longest wait, of `this` command. [env var: SHOAL_WAIT; default: 1.5; x>0]",
        "--tries N Tries. [env var: SHOAL_TRIES; default: 2; 1<=x<=9]",
        "--ratio X Ratio. [env var: SHOAL_RATIO; default: 0.5; x>=0]",
        "--count N|auto Count. [env var: SHOAL_COUNT; default: auto]",
        "--mode [fast|good] Mode. [env var: SHOAL_MODE; default: good]",
        "--shape [round] Shape. [env var: SHOAL_SHAPE]",
        "--quiet Quiet. [env var: SHOAL_QUIET]",
        "--color / --no-color Color. [env var: SHOAL_COLOR; default: color]",
        "--token TEXT Token. [env var: SHOAL_TOKEN]",
        "--key KEY Keys. Repeatable. [env var: SHOAL_KEY]",
        "--root DIR Roots. Repeatable. [env var: SHOAL_ROOT]",
        "--log FILE Log. [env var: SHOAL_LOG]",
        "--place PATH Place. [env var: SHOAL_PLACE; default: here]",
        "--inner-size N The size. [env var: SHOAL_INNER_SIZE; default: 4; x>=1]",
        "--low-share SHARE The low one. [env var: SHOAL_LOW_SHARE; 0<=x<=1]",
    ],
)
def test_help_says_text_twin_default_and_range(command: Command, line: str) -> None:
    """The text is the first paragraph of the docstring under the field."""
    assert line in help_of(command.command)
    assert "reason" not in help_of(command.command)


def test_default_may_be_another_than_the_fields() -> None:
    """Then it is what no option gives, what the help shows, and what internal fields have."""
    default = Config(
        wait_s=9.0, token=SecretStr("t"), keys=(SecretStr("k"),), inner=Inner(8), hidden=1
    )
    command = Command(configured(Config, as_="config", default=default), "config")
    assert command.built() == default
    assert changed(command.built(["--tries", "5"]), default) == {"tries": 5}
    assert "default: 9.0" in help_of(command.command)
    assert "default: k" not in help_of(command.command)
    assert "default: t" not in help_of(command.command)


def test_fields_can_be_chosen_and_required() -> None:
    """What is not chosen has its default, inside too; what is required is missed."""
    command = Command(
        configured(Config, as_="config", required=("name",), only=("name", "wait_s")), "config"
    )
    assert "Missing option '--name'" in command.refused()
    assert "No such option '--tries'" in command.refused("--name", "x", "--tries", "1")
    assert "No such option '--inner-size'" in command.refused("--name", "x", "--inner-size", "1")
    assert command.flags == {"--wait", "--name"}
    assert changed(command.built(["--name", "x"]), Config()) == {"name": "x"}
    inner = Command(configured(Config, as_="config", only=("size",)), "config")
    assert changed(inner.built(["--inner-size", "9"]), Config()) == {"inner.size": 9}


def test_fields_can_be_left_out() -> None:
    """Configs inside, too; they have their defaults."""
    command = Command(configured(Config, as_="config", without=("tries", "inner")), "config")
    assert "No such option '--tries'" in command.refused("--tries", "1")
    assert "No such option '--inner-size'" in command.refused("--inner-size", "1")
    assert changed(command.built(["--name", "x"]), Config()) == {"name": "x"}


def test_texts_can_begin_with_what_the_options_are_for() -> None:
    """Where the options of several kinds meet in one command."""

    @click.command()
    @Options(Bare, prefix="With --big: ").give
    def command(**_: Any) -> None:
        """Nothing."""

    assert "--size N With --big: The size. [env var" in help_of(command)


@dataclass(frozen=True)
class Bare:
    """A field without a default."""

    size: int
    """The size."""


def test_field_without_a_default_is_required() -> None:
    """As the config itself requires it."""
    command = Command(configured(Bare, as_="bare"), "bare")
    assert "Missing option '--size'" in command.refused()
    assert command.built(["--size", "3"]) == Bare(3)


@dataclass(frozen=True)
class Doubled(Bare):
    """A config that checks more than ranges."""

    other: int = 0
    """The other."""

    def __post_init__(self) -> None:
        if self.other == self.size:
            raise ConfigError("other: expected another than size")


def test_error_of_the_config_itself_comes_through() -> None:
    """It is an operator's error, not a wrong usage; texts of a base class count."""
    command = Command(configured(Doubled, as_="config"), "config")
    assert "--size N The size." in help_of(command.command)
    with pytest.raises(ConfigError, match="expected another than size"):
        command.built(["--size", "1", "--other", "1"])


def test_options_take_their_values_and_leave_the_others() -> None:
    """A command may have options of its own beside those of several configs."""
    values = {"size": 1, "json": True}
    assert Options(Bare).take(values) == Bare(1)
    assert values == {"json": True}


def test_class_without_source_has_no_docstrings() -> None:
    """It still has options, only without texts."""
    made = dataclass(type("Made", (), {"__annotations__": {"a": int}, "__module__": "builtins"}))
    assert docstrings_of(made) == {}
