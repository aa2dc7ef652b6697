"""``shoal context``: addresses and other settings of deployments, kept under names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from shoal.app.cli.command import Command, Group
from shoal.app.cli.options.contexts import (
    ADDRESSES,
    ClientContext,
    contexts_file,
    read_contexts,
    write_contexts,
)
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.option import json_option
from shoal.app.cli.printing.output import print_json, print_table, talk


@click.group(cls=Group)
def context() -> None:
    """Keep addresses and other settings of deployments under names.

    A command takes from the current context what neither its options nor the environment say. An
    address that is given sets the current context aside; --context names one all the same. The
    file is contexts.json in $XDG_CONFIG_HOME/shoal, by default ~/.config/shoal.

    Example:
      shoal context set prod --search-address search:7803 --clusterer-address clusterer:7802
      shoal context use prod
      shoal clusters
    """


@context.command("list", cls=Command)
@json_option
def list_(*, as_json: bool) -> None:
    """List the contexts; a star marks the current one.

    Example:
      shoal context list
    """
    found = read_contexts()
    if as_json:
        print_json({"current": found.current, "contexts": sorted(found.contexts)})
        return
    rows = [
        ("*" if name == found.current else "", name, _addresses(found.contexts[name]))
        for name in sorted(found.contexts)
    ]
    print_table(("", "name", "addresses"), rows)


@context.command(cls=Command)
@click.argument("name")
def use(*, name: str) -> None:
    """Make a context the current one.

    Example:
      shoal context use prod
    """
    found = read_contexts()
    found.find(name)
    write_contexts(dataclasses.replace(found, current=name))
    talk(f"shoal: context {name} is the current one")


@context.command("set", cls=Command)
@click.argument("name")
@configured(ClientContext, as_="settings")
@click.pass_context
def set_(ctx: click.Context, *, name: str, settings: ClientContext) -> None:
    """Make a context, or change the settings that are given.

    Only what stands on the command line is kept, and nothing of the environment.

    Example:
      shoal context set prod --address shoal.example:7800 --tls --token-file ~/.shoal-token
    """
    changes = {
        each.name: _absolute(getattr(settings, each.name))
        for each in dataclasses.fields(settings)
        if ctx.get_parameter_source(each.name) is ParameterSource.COMMANDLINE
    }
    found = read_contexts()
    changed = dataclasses.replace(found.contexts.get(name, ClientContext()), **changes)
    write_contexts(dataclasses.replace(found, contexts={**found.contexts, name: changed}))
    talk(f"shoal: context {name} is in {contexts_file()}")


@context.command(cls=Command)
@click.argument("name", required=False, default="")
def show(*, name: str) -> None:
    """Show a context, or the current one, as JSON.

    Example:
      shoal context show prod
    """
    found = read_contexts()
    shown = found.find(name)
    settings = {key: value for key, value in dataclasses.asdict(shown).items() if value is not None}
    print_json({"name": name or found.current, **{k: _plain(v) for k, v in settings.items()}})


@context.command(cls=Command)
@click.argument("name")
def delete(*, name: str) -> None:
    """Forget a context.

    Example:
      shoal context delete prod
    """
    found = read_contexts()
    found.find(name)
    rest = {each: value for each, value in found.contexts.items() if each != name}
    current = "" if found.current == name else found.current
    write_contexts(dataclasses.replace(found, current=current, contexts=rest))
    talk(f"shoal: context {name} is forgotten")


def _addresses(settings: ClientContext) -> str:
    """The addresses of a context in one line."""
    words = []
    for name in ADDRESSES:
        if (address := getattr(settings, name)) is not None:
            service = name.removesuffix("_address")
            words.append(address if name == "address" else f"{service} {address}")
    return ", ".join(words)


def _absolute(value: Any) -> Any:
    """``value``; a path as it is from every directory."""
    return value.expanduser().absolute() if isinstance(value, Path) else value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
