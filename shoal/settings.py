"""Settings: what the fields of a config say of themselves, and the check of their bounds. Pure.

A config is a frozen dataclass, and each of its fields is declared once::

    give_up_s: Annotated[float, Gt(0)] = 300.0
    '''End the process once a model has failed its self-test for this long.'''

The annotation has the type and the bounds (``annotated_types``), the default is the dataclass's,
and the first paragraph of the docstring under the field is the help. ``Setting`` adds what these
do not say. A field whose type is a dataclass is a config inside the config. The command line
makes its options of all this (``shoal.app.cli.options.derive``); nothing here knows it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from shoal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field is set from outside, where its name and type do not say it."""

    flag: str = ""
    """The option: ``--give-up``, or ``--require-gpu/--no-require-gpu``. Default: the field's name,
    without the ``_s`` of seconds."""
    metavar: str = ""
    """The name of the value in the help. Default: by the type."""
    path: Literal["", "file", "directory"] = ""
    """For a path: the one kind of thing that it may lead to, if it exists."""
    exists: bool = False
    """For a path: whether it must exist."""
    parse: Callable[[str], Any] | None = None
    """Makes a value, or one of several, of what is written; a ValueError has the reason."""
    internal: bool = False
    """True for a field that is not set from outside."""


INTERNAL: Final = Setting(internal=True)
"""Marks a field that only code sets: a composition root, or a test."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of numbers. None is no bound; an open bound is outside the range itself."""

    low: Any = None
    high: Any = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether ``value`` is in the range; a NaN is in no range that has a bound."""
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return above and below

    def __str__(self) -> str:
        """The range in words: ``0 to 1``, ``more than 0``."""
        if None not in (self.low, self.high) and not (self.low_open or self.high_open):
            return f"{self.low} to {self.high}"
        words = []
        if self.low is not None:
            words.append(f"{'more than' if self.low_open else 'at least'} {self.low}")
        if self.high is not None:
            words.append(f"{'less than' if self.high_open else 'at most'} {self.high}")
        return " and ".join(words)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a config, with its annotation taken apart."""

    name: str
    default: Any
    """MISSING where the field must be given."""
    kind: Any = None
    """The type of one value: int, float, bool, str, Path, SecretStr, a config; None where only
    ``words`` are."""
    words: tuple[str, ...] = ()
    """The words of a ``Literal``: all that may be said, or what may be said beside a number."""
    optional: bool = False
    """True where None is a value."""
    many: bool = False
    """True for several values: a tuple, or a mapping."""
    mapping: bool = False
    """True where the values are the pairs of a mapping."""
    bounds: Bounds = Bounds()
    setting: Setting = Setting()

    @property
    def nested(self) -> bool:
        """True for a config inside the config."""
        return isinstance(self.kind, type) and dataclasses.is_dataclass(self.kind)


@functools.cache
def fields_of(config: type) -> tuple[Field, ...]:
    """The fields of a config's class, in their order."""
    hints = get_type_hints(config, include_extras=True)
    return tuple(
        _taken_apart(Field(each.name, _default(each)), hints[each.name])
        for each in dataclasses.fields(config)
    )


def check_ranges(config: Any) -> None:
    """Checks the bounds and the words of a config's fields; for its ``__post_init__``.

    Raises:
        ConfigError: a value is outside; the message has the field, what was expected and got.
    """
    for field in fields_of(type(config)):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.nested or value is None:
            continue
        for each in value if field.many else (value,):
            if not _fits(field, each):
                expected = _expected(field)
                msg = f"{field.name}: expected {expected}, got {each!r}"
                raise ConfigError(msg, field=field.name)


def _fits(field: Field, value: Any) -> bool:
    if value in field.words:
        return True
    if field.kind in (int, float):
        return value in field.bounds
    return not field.words


def _expected(field: Field) -> str:
    """The values that are allowed, in words."""
    if field.kind not in (int, float):
        return f"one of {', '.join(field.words)}"
    unit = " s" if field.name.endswith("_s") else ""
    return " or ".join((f"{field.bounds}{unit}", *field.words))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _taken_apart(field: Field, hint: Any) -> Field:
    """``field`` with what ``hint`` adds to it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        field = _taken_apart(field, arguments[0])
        return functools.reduce(_with_metadata, arguments[1:], field)
    if origin in (Union, types.UnionType):
        if type(None) in arguments:
            field = dataclasses.replace(field, optional=True)
        for each in arguments:
            if each is not type(None):
                field = _taken_apart(field, each)
        return field
    if origin is Literal:
        return dataclasses.replace(field, words=(*field.words, *arguments))
    if origin is tuple:
        return _taken_apart(dataclasses.replace(field, many=True), arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dataclasses.replace(field, kind=arguments[1], many=True, mapping=True)
    return dataclasses.replace(field, kind=hint)


def _with_metadata(field: Field, found: Any) -> Field:
    """``field`` with one thing that its annotation says beside the type."""
    match found:
        case Setting():
            return dataclasses.replace(field, setting=found)
        case GroupedMetadata():
            return functools.reduce(_with_metadata, found, field)
        case Ge(low):
            bounds = dataclasses.replace(field.bounds, low=low, low_open=False)
        case Gt(low):
            bounds = dataclasses.replace(field.bounds, low=low, low_open=True)
        case Le(high):
            bounds = dataclasses.replace(field.bounds, high=high, high_open=False)
        case Lt(high):
            bounds = dataclasses.replace(field.bounds, high=high, high_open=True)
        case _:
            return field
    return dataclasses.replace(field, bounds=bounds)
