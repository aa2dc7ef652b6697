"""Options that are derived from a config: its fields, types, bounds, defaults and docstrings.

``@configured(EmbedderConfig, as_="embedder")`` gives a command an option for each field of the
config and of the configs inside it, and passes the config that their values make. A field
``give_up_s`` becomes ``--give-up SECONDS`` with the environment twin ``SHOAL_GIVE_UP``;
``shoal.settings.Setting`` says where it is otherwise. No setting is named in this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
from pydantic import SecretStr

from shoal.app.cli.options.docstrings import docstrings_of
from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.settings import Field, fields_of

Config = TypeVar("Config")

_UNITS = {"_s": "SECONDS", "_mib": "MIB", "_share": "SHARE", "_port": "PORT"}
"""The ends of fields' names that say what a value is called in the help."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that is an option, its default and its help."""

    field: Field
    default: Any
    help: str

    @property
    def flags(self) -> str:
        """The option as click declares it: ``--give-up``, or ``--on/--off``."""
        plain = self.field.name.removesuffix("_s").replace("_", "-")
        return self.field.setting.flag or f"--{plain}"

    @property
    def parameter(self) -> str:
        """The name under which click hands the value over."""
        return self.flags.partition("/")[0].lstrip("-").replace("-", "_")

    def option(self, *, required: bool) -> Decorator:
        """The option; ``required`` although it has a default."""
        field = self.field
        attributes: dict[str, Any] = {
            "help": f"{self.help} Repeatable." if field.many else self.help,
            "required": required or self.default is MISSING,
            "show_default": field.kind is not SecretStr,
        }
        if not required and self.default not in self._nothing:
            attributes["default"] = self._revealed
        if field.kind is bool:
            attributes["is_flag"] = True
            if self.default is None:  # else click takes an absent flag for False
                attributes["default"] = None
        else:
            attributes |= {"type": _type(field), "metavar": _metavar(field), "multiple": field.many}
        return option(self.flags, self.parameter, **attributes)

    @property
    def _nothing(self) -> tuple[Any, ...]:
        """Defaults that click is not told, and the help does not show."""
        return (MISSING, None, (), {}, "")

    @property
    def _revealed(self) -> Any:
        """The default as somebody would give it: secrets as texts."""
        if self.field.kind is not SecretStr:
            return self.default
        if self.field.many:
            return tuple(each.get_secret_value() for each in self.default)
        return self.default.get_secret_value()

    def value(self, given: Any) -> Any:
        """What the field becomes of what click hands over."""
        if self.field.mapping:
            return dict(given)
        if self.field.many:
            return tuple(map(self._one, given))
        if given is None and self.default in self._nothing and self.default is not MISSING:
            return self.default
        return self._one(given)

    def _one(self, given: Any) -> Any:
        secret = self.field.kind is SecretStr and given is not None
        return SecretStr(given) if secret else given


class Options(Generic[Config]):
    """The options of a config, and the way from their values back to it."""

    def __init__(
        self,
        config: type[Config],
        *,
        default: Config | None = None,
        required: Collection[str] = (),
        only: Collection[str] = (),
        without: Collection[str] = (),
        prefix: str = "",
    ) -> None:
        """Derive them.

        Args:
            config: The config's class.
            default: The config of a command line without options; None for the fields' defaults.
            required: Names of fields that must be given although they have a default.
            only: Names of the fields that are options here; none for all.
            without: Names of fields, of whole configs too, that are no options here.
            prefix: What each help begins with.
        """
        self._config = config
        self._default = default
        self._required = required
        self._only = only
        self._without = without
        self._prefix = prefix

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The fields that are options, in their order."""
        return tuple(self._leaves(self._config, self._default))

    def give(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """``command`` with the options."""
        required = self._required
        given = [leaf.option(required=leaf.field.name in required) for leaf in self.leaves]
        return decorate(command, given)

    def take(self, values: dict[str, Any]) -> Config:
        """The config that the options' ``values`` make; they are taken out.

        Raises:
            ConfigError: a value is out of range, or contradicts another.
        """
        taken = {leaf.parameter: leaf.value(values.pop(leaf.parameter)) for leaf in self.leaves}
        built: Config = self._built(self._config, self._default, taken)
        return built

    def _leaves(self, config: type, default: Any) -> Iterator[Leaf]:
        texts = docstrings_of(config)
        for field in self._settable(config):
            here = _default_of(field, default)
            if field.nested:
                yield from self._leaves(field.kind, here)
            else:
                yield Leaf(field, here, self._prefix + texts.get(field.name, ""))

    def _built(self, config: type, default: Any, taken: Mapping[str, Any]) -> Any:
        arguments = {
            field.name: value
            for field in fields_of(config)
            if (value := _default_of(field, default)) is not MISSING
        }
        for field in self._settable(config):
            here = _default_of(field, default)
            if field.nested:
                arguments[field.name] = self._nested(field, here, taken)
            else:
                arguments[field.name] = taken[Leaf(field, here, "").parameter]
        return config(**arguments)

    def _nested(self, field: Field, default: Any, taken: Mapping[str, Any]) -> Any:
        """A config inside; None where that is the default and nothing in it is given."""
        leaves = self._leaves(field.kind, default)
        if default is None and all(taken[leaf.parameter] == leaf.default for leaf in leaves):
            return None
        return self._built(field.kind, default, taken)

    def _settable(self, config: type) -> Iterator[Field]:
        for field in fields_of(config):
            left_out = field.setting.internal or field.name in self._without
            if not left_out and (field.nested or not self._only or field.name in self._only):
                yield field


def configured(
    config: type[Config],
    *,
    as_: str,
    default: Config | None = None,
    required: Collection[str] = (),
    only: Collection[str] = (),
    without: Collection[str] = (),
) -> Decorator:
    """Gives a command the options of ``config``; it gets the config as the keyword ``as_``.

    The rest as for ``Options``.
    """
    options = Options(config, default=default, required=required, only=only, without=without)

    def give(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            built = options.take(values)
            return function(*args, **values, **{as_: built})

        return options.give(command)

    return give


class NumberOrWord(click.ParamType[Any]):
    """A number, or one of some words."""

    def __init__(self, number: click.ParamType[Any], words: tuple[str, ...]) -> None:
        self.name = "|".join(("number", *words))
        self._number = number
        self._words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float | str:
        """The number or the word."""
        if value in self._words:
            return str(value)
        number: int | float = self._number.convert(value, param, ctx)
        return number


class Parsed(click.ParamType[Any]):
    """A value with a parser of its own."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value."""
        if not isinstance(value, str):  # a default
            return value
        try:
            return self._parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def _default_of(field: Field, default: Any) -> Any:
    """The field's default: that of ``default``, a config, if there is one."""
    if default is None or default is MISSING:
        return field.default
    return getattr(default, field.name)


def _type(field: Field) -> click.ParamType[Any]:
    if field.setting.parse is not None:
        return Parsed(field.setting.parse)
    if field.kind in (int, float):
        number = _number(field)
        return NumberOrWord(number, field.words) if field.words else number
    if field.words:
        return click.Choice([word for word in field.words if word])
    if field.kind is Path:
        only = field.setting.path
        return click.Path(
            path_type=Path,
            exists=field.setting.exists,
            file_okay=only != "directory",
            dir_okay=only != "file",
        )
    return click.STRING


def _number(field: Field) -> click.ParamType[Any]:
    bounds = field.bounds
    range_: type[click.IntRange | click.FloatRange] = (
        click.IntRange if field.kind is int else click.FloatRange
    )
    return range_(bounds.low, bounds.high, min_open=bounds.low_open, max_open=bounds.high_open)


def _metavar(field: Field) -> str | None:
    """The name of the value in the help; None where click lists the choices."""
    if field.setting.metavar:
        return field.setting.metavar
    for end, unit in _UNITS.items():
        if field.name.endswith(end):
            return unit
    if field.kind in (int, float):
        return "|".join(("N" if field.kind is int else "X", *field.words))
    if field.kind is Path:
        return {"file": "FILE", "directory": "DIR", "": "PATH"}[field.setting.path]
    return None
