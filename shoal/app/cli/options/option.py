"""An option, and the rule that each has an environment twin."""

from __future__ import annotations

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


def option(*declarations: str, **attributes: Any) -> Decorator:
    """``click.option`` with an environment twin."""
    return click.option(*declarations, cls=EnvOption, **attributes)


def decorate(command: Callable[..., Any], decorators: Sequence[Decorator]) -> Callable[..., Any]:
    """``command`` with ``decorators``, the first outermost, as if written above it."""
    for each in reversed(decorators):
        command = each(command)
    return command


json_option = option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
