"""The options of ``--engine spark``: where Spark runs, and the store that its executors open."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from shoal.app.cli.options.derive import Options
from shoal.app.cli.options.option import option
from shoal.app.config import SparkChoice

_OPTIONS = Options(SparkChoice, prefix="With --engine spark: ")
_LOCAL = ("address", "token", "tls", "tls_ca", "timeout", "window", "streams")
"""Options about calls of a server, of which Spark's executors make none."""

_engine_option = option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    help="Who does the work: the server at --address, or a Spark application of this command's "
    "own over a Qdrant server (needs shoal[spark], here and on the executors).",
)


def spark_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of Spark's engine; it gets ``spark``, a SparkChoice or None."""

    @functools.wraps(function)
    def command(*, engine: str, **values: Any) -> Any:
        if engine == "local":
            for leaf in _OPTIONS.leaves:
                refuse_given(leaf.parameter)
                del values[leaf.parameter]
            return function(**values, spark=None)
        refuse_given(*_LOCAL, engine="local")
        if not values["store_url"]:
            msg = "--engine spark needs --store-url: a Qdrant server that executors reach"
            raise click.UsageError(msg)
        choice = _OPTIONS.take(values)
        return function(**values, spark=choice)

    return _engine_option(_OPTIONS.give(command))


def refuse_given(*names: str, engine: str = "spark") -> None:
    """UsageError if one of these options of the other ``engine`` was given on the command line.

    From the environment they may come: a server's settings have the store too.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in names and given:
            msg = f"{max(parameter.opts, key=len)} is for --engine {engine}"
            raise click.UsageError(msg)
