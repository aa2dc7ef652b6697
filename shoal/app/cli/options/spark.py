"""The options of ``--engine spark``: where Spark runs, and the store that its executors open."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from shoal.app.cli.options.option import Decorator, decorate, option

if TYPE_CHECKING:
    from shoal.spark.config import SparkConfig
    from shoal.store import StoreConfig


@dataclass(frozen=True, slots=True)
class SparkChoice:
    """Where the work is done: how to start Spark, and how everybody opens the store."""

    spark: SparkConfig
    store: StoreConfig


def parse_settings(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """``KEY=VALUE`` pairs as a mapping."""
    settings: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.startswith("spark."):
            msg = f"expected spark.NAME=VALUE, got {text!r}"
            raise click.BadParameter(msg)
        settings[name] = value
    return settings


_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--engine",
        type=click.Choice(["local", "spark"]),
        default="local",
        help="Who does the work: the server at --address, or a Spark application of this command's "
        "own over a Qdrant server (needs shoal[spark], here and on the executors).",
    ),
    option(
        "--store-url",
        metavar="URL",
        help="For spark: the Qdrant server, http(s)://HOST:6333, as the executors reach it.",
    ),
    option("--store-api-key", metavar="KEY", help="For spark: the Qdrant server's API key."),
    option(
        "--store-grpc-port",
        type=click.IntRange(1, 65535),
        default=6334,
        metavar="PORT",
        help="For spark: the Qdrant server's gRPC port.",
    ),
    option(
        "--spark-master",
        default="",
        metavar="URL",
        help="Spark's master, spark://HOST:7077 or k8s://...; default: what spark-submit or "
        "spark-defaults.conf says, else local[*].",
    ),
    option(
        "--spark-conf",
        multiple=True,
        callback=parse_settings,
        metavar="KEY=VALUE",
        help="A property of Spark's; repeatable.",
    ),
    option(
        "--spark-log",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Where Spark's own log goes. Default: nowhere.",
    ),
)


def spark_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of Spark's engine; it gets ``spark``, a SparkChoice or None."""

    @functools.wraps(function)
    def command(
        *,
        engine: str,
        store_url: str | None,
        store_api_key: str | None,
        store_grpc_port: int,
        spark_master: str,
        spark_conf: dict[str, str],
        spark_log: Path | None,
        **options: Any,
    ) -> Any:
        if engine == "local":
            refuse_given(*_NAMES)
            return function(**options, spark=None)
        refuse_given(*_OF_CALLS, engine="local")
        if not store_url:
            msg = "--engine spark needs --store-url: a Qdrant server that executors reach"
            raise click.UsageError(msg)
        from pydantic import SecretStr

        from shoal.spark.config import SparkConfig
        from shoal.store import StoreConfig

        key = SecretStr(store_api_key) if store_api_key else None
        choice = SparkChoice(
            SparkConfig(spark_master, spark_conf, spark_log),
            StoreConfig(url=store_url, api_key=key, grpc_port=store_grpc_port),
        )
        return function(**options, spark=choice)

    return decorate(command, _OPTIONS)


_OF_CALLS = ("address", "token", "tls", "tls_ca", "timeout_s", "window", "streams")
_NAMES = (
    "store_url",
    "store_api_key",
    "store_grpc_port",
    "spark_master",
    "spark_conf",
    "spark_log",
)


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


@contextlib.contextmanager
def interrupts_noted() -> Iterator[Callable[[], None]]:
    """Gives a check that raises KeyboardInterrupt after a Ctrl-C or a SIGTERM (Kubernetes').

    Not raised wherever the program happens to be, such as between taking a lease and knowing it;
    the second signal is, for where nothing checks.
    """
    noted = threading.Event()

    def check() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    def note(_signal: int, _frame: object) -> None:
        check()
        noted.set()

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
