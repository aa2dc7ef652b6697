"""Options of the commands that run a server: ``up`` and ``serve``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.errors import ConfigError
from shoal.rpc.server import ServerConfig
from shoal.telemetry import configure_logging


@dataclass(frozen=True, slots=True)
class Hosting:
    """How a server is reached, guarded and watched."""

    server: ServerConfig
    metrics_address: str
    ready_file: Path | None
    log_level: str
    log_format: str

    def announce(self, address: str, *, what: str) -> None:
        """Say on stderr, and in the ready file if there is one, that ``address`` answers."""
        click.echo(f"shoal: serving on {address} ({what})", err=True)
        if self.ready_file is not None:
            self.ready_file.write_text(f"{address}\n", encoding="utf-8")


def _check_place(ready_file: Path) -> None:
    """ConfigError, before a model is loaded, if no file can be there."""
    if not ready_file.parent.is_dir():
        msg = f"--ready-file: expected a file in a directory that exists, got {ready_file}"
        raise ConfigError(msg, field="ready_file")


def _options(default_metrics: str, default_format: str) -> tuple[Decorator, ...]:
    return (
        option(
            "--address",
            default="127.0.0.1:7800",
            metavar="HOST:PORT",
            help="Where to listen; port 0 takes a free one. Only loopback without --token.",
        ),
        option(
            "--token",
            "tokens",
            multiple=True,
            metavar="TOKEN",
            show_default=False,
            help="Bearer token that lets a caller in; repeatable, so that it can be replaced.",
        ),
        option(
            "--tls-cert",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="PEM certificate chain; with --tls-key.",
        ),
        option(
            "--tls-key",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="PEM private key; with --tls-cert.",
        ),
        option(
            "--grace",
            "grace_s",
            type=click.FloatRange(min=0),
            default=20.0,
            metavar="SECONDS",
            help="How long calls in progress may go on when the server stops.",
        ),
        option(
            "--max-connection-age",
            "max_connection_age_s",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="SECONDS",
            help="Ask clients to reconnect after so long, to find new replicas; 0 never does.",
        ),
        option(
            "--metrics-address",
            default=default_metrics,
            metavar="HOST:PORT|off",
            help="Where Prometheus metrics are served.",
        ),
        option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            help="Least severe log line to write.",
        ),
        option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default=default_format,
            help="Log lines for people or for programs; on stderr.",
        ),
        option(
            "--ready-file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="File to write the bound HOST:PORT to once the server answers.",
        ),
    )


def hosting_options(*, default_metrics: str, default_format: str) -> Decorator:
    """Give a command the options of a server; it gets them as ``hosting``."""

    def give(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            *,
            tokens: tuple[str, ...],
            log_level: str,
            log_format: str,
            metrics_address: str,
            ready_file: Path | None,
            **options: Any,
        ) -> Any:
            names = ("address", "tls_cert", "tls_key", "grace_s", "max_connection_age_s")
            server = ServerConfig(
                tokens=tuple(SecretStr(token) for token in tokens),
                **{name: options.pop(name) for name in names},
            )
            server.validate()
            if ready_file is not None:
                _check_place(ready_file)
            configure_logging(log_level, log_format)
            hosting = Hosting(server, metrics_address, ready_file, log_level, log_format)
            return function(**options, hosting=hosting)

        return decorate(command, _options(default_metrics, default_format))

    return give
