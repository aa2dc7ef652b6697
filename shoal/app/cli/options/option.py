"""An option, and the rule that each has an environment twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import click

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


class EnvOption(click.Option):
    """An option that ``SHOAL_<OPTION>`` sets too, which its help says."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **{"show_default": True, "show_envvar": True, **attributes})
        longest = max(self.opts, key=len)
        self.envvar = "SHOAL_" + longest.lstrip("-").replace("-", "_").upper()

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """``value`` as the option's type; an empty path is refused, not read as ``.``."""
        if isinstance(self.type, click.Path):
            given = value if isinstance(value, (list, tuple)) else (value,)
            if any(os.fspath(each) == "" for each in given if each is not None):
                msg = 'expected a path, got an empty text; "." is the current directory'
                raise click.BadParameter(msg, ctx=ctx, param=self)
        return super().type_cast_value(ctx, value)


def option(*declarations: str, **attributes: Any) -> Decorator:
    """``click.option`` with an environment twin."""
    return click.option(*declarations, cls=EnvOption, **attributes)


def decorate(command: Callable[..., Any], decorators: Sequence[Decorator]) -> Callable[..., Any]:
    """``command`` with ``decorators``, the first outermost, as if written above it."""
    for each in reversed(decorators):
        command = each(command)
    return command


json_option = option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
