"""Writes ``docs/reference.md``: commands, options, environment names, metrics and error reasons.

python -m shoal.app.reference            write it
python -m shoal.app.reference --check    exit 1 if it is not what would be written

Everything is read from where it is declared: the command tree, the metrics' registry, the tree of
errors and the table of their gRPC codes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client import REGISTRY

from embedder.config import EmbedderConfig
from shoal import errors
from shoal.app.cli import main as shoal
from shoal.app.cli.cluster import Busy, Refused
from shoal.app.cli.options.derive import Options
from shoal.app.cli.options.option import EnvOption
from shoal.app.cli.options.target import Target
from shoal.app.cli.root import INTERRUPTED
from shoal.rpc.config import ServerConfig
from shoal.rpc.status import status_code

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference.md"
HEADER: Final = f"""\
<!-- Written by `make reference`; change what it is written from, and run that again. -->
# Reference

An option is given on the command line or as an environment variable: `SHOAL_` and its name in
capitals. The command line is above the environment. Of a repeatable option a variable has several
values with spaces between them, or colons where they are paths.

Exit status: 0 success; 1 an error, told in one line on stderr; 2 a wrong usage;
{Refused.exit_code} a plan that a gate refused; {Busy.exit_code} another run is under way;
{INTERRUPTED} Ctrl-C; 128 and its number another signal. Data goes to stdout, everything else to
stderr, control characters in texts from outside as escapes.
"""
METRICS: Final = """\
## Metrics

`GET /metrics` at `--metrics-address`, for Prometheus.
"""
REASONS: Final = """\
## Errors

A call that fails has a gRPC code, and the reason in `google.rpc.ErrorInfo` (domain `shoal.dev`);
an image of a batch that fails has the reason in its `ItemError`. A reason stands under the more
general one that it is a case of.
"""
GROUPS: Final[Mapping[str, Options[Any]]] = {
    "a client": Options(Target),
    "an embedder": Options(EmbedderConfig),
    "a server": Options(ServerConfig),
}
"""Options that several commands share, which are written once."""
INTERNAL: Final = "Something failed that no reason is for; the server's log says what."
SERVICES: Final = ("embedder.service", "clusterer.service", "search.service", "shoal.store.edge")
"""Modules whose import declares all metrics."""

Row = tuple[str, ...]


def page() -> str:
    """The whole page."""
    parts = [HEADER, "## Commands\n"]
    groups: dict[str, list[Row]] = {}
    for path, command in _commands(shoal, ("shoal",)):
        parts += _command(path, command, groups)
    for name, rows in groups.items():
        parts += [f"### Options of {name}\n", _options_table(rows)]
    parts += [METRICS, _table(("Metric", "Type", "Labels", "Meaning"), _metrics())]
    parts += [REASONS, _table(("Reason", "gRPC code", "Meaning"), _reasons(errors.ShoalError))]
    return "\n".join(parts)


def _commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands that do something, in the order of the help."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None:
            yield from _commands(found, (*path, name))


def _command(
    path: tuple[str, ...], command: click.Command, groups: dict[str, list[Row]]
) -> list[str]:
    """A command's section. Options of a group go to ``groups`` instead, in their first form."""
    context = click.Context(command, info_name=" ".join(path))
    rows = {
        each.opts[0]: _option(each, context)
        for each in command.params
        if isinstance(each, EnvOption)
    }
    shared = []
    for name, options in GROUPS.items():
        flags = [leaf.flags.partition("/")[0] for leaf in options.leaves]
        found = [rows[flag] for flag in flags if flag in rows]
        if len(found) == len(flags) and groups.setdefault(name, found) == found:
            shared.append(name)
            rows = {flag: row for flag, row in rows.items() if flag not in flags}
    text = (command.help or "").partition("\b")[0].strip().split("\n\n")
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"### {' '.join(path)}\n", f"`{usage}`\n", f"{' '.join(text[0].split())}\n"]
    if rows:
        parts.append(_options_table(list(rows.values())))
    if shared:
        links = [f"[{name}](#options-of-{name.replace(' ', '-')})" for name in shared]
        also = "And the" if rows else "The"
        parts.append(f"{also} options of {' and of '.join(links)}.\n")
    return parts


def _option(option: EnvOption, context: click.Context) -> Row:
    """The row of an option."""
    extra = option.get_help_extra(context)
    names, _ = option.get_help_record(context) or ("", "")
    default = "required" if option.required else extra.get("default", "")
    limits = f" ({extra['range']})" if "range" in extra else ""
    return (
        f"`{names}`",
        f"`{option.envvar}`",
        default and (default if option.required else f"`{default}`"),
        f"{option.help}{limits}",
    )


def _options_table(rows: Sequence[Row]) -> str:
    return _table(("Option", "Environment", "Default", "Meaning"), rows)


def _metrics() -> list[Row]:
    """The metrics of all services, by name."""
    for module in SERVICES:
        importlib.import_module(module)
    rows = []
    # What a metric's labels are, the registry tells only by samples, and there are none yet.
    for collector in set(REGISTRY._collector_to_names):  # noqa: SLF001 - as said
        for metric in collector.collect():
            if metric.name.startswith("shoal_"):
                labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
                suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
                name = f"`{metric.name}{suffix}`"
                rows.append((name, metric.type, labels, metric.documentation))
    return sorted(rows)


def _reasons(error: type[errors.ShoalError], depth: int = 0) -> Iterator[Row]:
    """The reasons of ``error`` and of those below it."""
    meaning = (error.__doc__ or "").partition("\n")[0] if depth else INTERNAL
    name = f"`{error.reason}`" if "reason" in vars(error) else error.__name__
    code = status_code(error.__new__(error)).name
    yield f"{'&emsp;' * depth}{name}", f"`{code}`", meaning
    for each in error.__subclasses__():
        if each.__module__ == error.__module__:
            yield from _reasons(each, depth + 1)


def _table(header: Row, rows: Sequence[Row] | Iterator[Row]) -> str:
    """A Markdown table."""
    lines = [header, tuple("-" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def main() -> int:
    """Exit status: 0 written or fresh, 1 stale."""
    parser = argparse.ArgumentParser(description="Write docs/reference.md.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    fresh = page()
    if not parser.parse_args().check:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == fresh:
        return 0
    sys.stderr.write(f"{PAGE.name} is stale; run `make reference`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
