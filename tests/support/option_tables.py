"""Commands with nothing but the options of a config, and tables of what each option is to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from click.testing import CliRunner


class Row(NamedTuple):
    """An option: its flag, the field that it sets, the field's default, and one value."""

    flag: str
    field: str
    """The path of the field: ``runtime.provider``."""
    default: Any
    given: Sequence[str]
    """The flag's value on the command line; several for a repeatable one, none for a switch."""
    expected: Any
    variable: str = ""
    """What the environment twin has; default: the words, with spaces between them."""

    @property
    def twin(self) -> str:
        """The name of the environment variable."""
        return f"SHOAL_{self.flag.removeprefix('--').replace('-', '_').upper()}"

    def words(self) -> list[str]:
        """The option on the command line."""
        return [w for given in self.given for w in (self.flag, given)] or [self.flag]

    def environment(self) -> dict[str, str]:
        """The option in the environment."""
        return {self.twin: self.variable or " ".join(self.given) or "1"}


class Command:
    """A command that keeps the config that its options make."""

    def __init__(self, decorator: Callable[..., Any], keyword: str) -> None:
        made: list[Any] = []

        @click.command()
        @decorator
        def command(**values: Any) -> None:
            assert list(values) == [keyword]
            made.append(values[keyword])

        self.command = command
        self._made = made

    def built(self, words: Sequence[str] = (), environment: Mapping[str, str] = {}) -> Any:
        """The config; fails where the command line is refused."""
        result = CliRunner().invoke(
            self.command, list(words), env=dict(environment), catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return self._made.pop()

    def refused(self, *words: str) -> str:
        """What is said of a wrong usage."""
        result = CliRunner().invoke(self.command, words)
        assert result.exit_code == 2
        return result.stderr

    @property
    def flags(self) -> set[str]:
        """All options."""
        return {max(each.opts, key=len) for each in self.command.params}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config's fields, and of configs inside, by their paths; secrets revealed."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = _revealed(value)
    return found


def _revealed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_revealed, value))
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def changed(config: Any, default: Any) -> dict[str, Any]:
    """The fields in which ``config`` differs from ``default``."""
    before = flat(default)
    return {path: value for path, value in flat(config).items() if before.get(path) != value}
