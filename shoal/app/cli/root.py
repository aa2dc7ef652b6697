"""The ``shoal`` command: the table of commands, and what every failure looks like."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from importlib import metadata
from typing import IO, Any

import click

from shoal.app.cli.command import Group
from shoal.app.cli.streams import mend_streams
from shoal.app.packages import check_packages
from shoal.errors import ShoalError
from shoal.printable import printable

# gRPC's C core writes lines of its own on stderr, between ours, for every failed handshake. It
# reads this once, when it is first imported, which is after this.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# OpenMP's threads spin while they wait for each other: beside one busy process a training took six
# times as long. OpenMP reads this once, when PyTorch or scikit-learn loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "up": ("shoal.app.cli.up:up", "Run all of Shoal in one process, over a directory."),
    "demo": ("shoal.app.cli.demo:demo", "See Shoal work, offline: ingest, cluster, search."),
    "ingest": ("shoal.app.cli.ingest:ingest", "Store images: files, directories, tars, manifests."),
    "cluster": ("shoal.app.cli.cluster:cluster", "Group the stored images; ids stay stable."),
    "clusters": ("shoal.app.cli.clusters:clusters", "List the clusters, or show one."),
    "search": ("shoal.app.cli.search:search", "Find the stored images nearest to one."),
    "runs": ("shoal.app.cli.runs:runs", "List the clustering runs, or show or cancel one."),
    "rollback": ("shoal.app.cli.runs:rollback", "Go back to the clustering before the last run."),
    "schedule": (
        "shoal.app.cli.schedule:schedule",
        "Let the service make a clustering anew by itself; show or remove that.",
    ),
    "duplicates": (
        "shoal.app.cli.duplicates:duplicates",
        "List groups of near-duplicates, largest first.",
    ),
    "train": (
        "shoal.app.cli.train:train",
        "Train cluster heads on a collection's vectors.",
    ),
    "model": (
        "shoal.app.cli.model:model",
        "Encoders: list a server's; export, vary, mix, verify and show artefacts.",
    ),
    "context": (
        "shoal.app.cli.context:context",
        "Keep addresses and other settings of deployments under names.",
    ),
    "bench": ("shoal.app.cli.bench:bench", "Measure Shoal on this machine, against its own parts."),
    "serve": ("shoal.app.cli.serve:serve", "Run one service over a Qdrant server."),
}
"""Name, where the command is, and its one line of help (the same as the command's own)."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells give it; other signals have other numbers."""


def one_line(text: str) -> str:
    """``text`` with its line breaks and runs of spaces made single spaces."""
    return " ".join(text.split())


class DomainError(click.ClickException):
    """A failure told in one line; exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(printable(f"shoal: error: {one_line(self.message)}"), file=file or sys.stderr)


class Interrupted(click.ClickException):
    """A signal that ends a command, and what it leaves behind, in one line.

    The exit status is 128 and the number of the signal, which ``interrupt`` may have; else
    Ctrl-C's.
    """

    def __init__(self, message: str, interrupt: BaseException | None = None) -> None:
        super().__init__(message)
        match interrupt.args if interrupt is not None else ():
            case (int(number),):
                status = 128 + number
            case _:
                status = INTERRUPTED
        self.exit_code = status  # type: ignore[misc]  # of each error, since each has its signal

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(printable(f"shoal: {one_line(self.message)}"), file=file or sys.stderr)


def _make_printable(error: click.ClickException) -> None:
    """Escapes what click quotes of the command line, such as a file's name."""
    error.message = printable(error.message)  # type: ignore[misc]  # click only reads it


class RootGroup(Group):
    """Imports a command's module when it is asked for; turns errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """The command called ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        return command if isinstance(command, click.Command) else None

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, with standard streams that can be written to."""
        mend_streams()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a ShoalError or a failure of the system is one line."""
        try:
            check_packages()
            return super().invoke(ctx)
        except click.ClickException as exc:
            _make_printable(exc)
            raise
        except KeyboardInterrupt as exc:
            msg = "interrupted"
            raise Interrupted(msg, exc) from exc
        except BrokenPipeError:
            raise  # click leaves quietly
        except ShoalError as exc:
            raise DomainError(exc.message) from exc
        except OSError as exc:
            raise DomainError(str(exc)) from exc


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value and not ctx.resilient_parsing:
        try:
            version = metadata.version("shoal")
        except metadata.PackageNotFoundError:
            version = "unknown (not installed)"
        click.echo(f"shoal {version} (Python {sys.version.split()[0]})")
        ctx.exit()


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Shoal turns a stream of images into searchable, self-organising clusters.

    `shoal demo` shows all of it in a minute. `shoal up` runs it; the other commands talk to a
    running one (--address).

    Example:
      shoal up --data ./data &
      shoal ingest photos/
      shoal cluster -k 10
      shoal search photo.jpg --within auto
    """
