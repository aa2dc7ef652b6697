"""The classes of all commands: they keep the line breaks of a help's Example."""

from __future__ import annotations

import inspect
from typing import Any

import click

_EXAMPLE = "\nExample:\n"


def _keep_example(help_: str | None) -> str | None:
    """``help_`` with click's mark (a backspace) for a paragraph that is not to be rewrapped."""
    return help_ and inspect.cleandoc(help_).replace(_EXAMPLE, f"\n\b{_EXAMPLE}")


class Command(click.Command):
    """A command whose help has an Example."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        attributes["help"] = _keep_example(attributes.get("help"))
        super().__init__(*args, **attributes)


class Group(click.Group):
    """A group whose help has an Example; its commands are ``Command``.

    A name that it does not know it compares with all that it lists, imported or not.
    """

    command_class = Command

    def __init__(self, *args: Any, **attributes: Any) -> None:
        attributes["help"] = _keep_example(attributes.get("help"))
        super().__init__(*args, **attributes)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` begin with; suggests near ones where there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as exc:
            known = self.list_commands(ctx)
            raise click.NoSuchCommand(exc.command_name, possibilities=known, ctx=ctx) from exc
