"""Options of the commands that call a server: which one, and what of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.client import Client

CLUSTER_ID = click.IntRange(-(2**63), 2**63 - 1)
"""What the contract can hold."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, collection and clustering a client command is about."""

    address: str
    token: str | None
    tls: bool
    tls_ca: Path | None
    timeout_s: float
    collection: str
    clustering: str

    def connect(self) -> Client:
        """A client for the server; nothing is sent yet."""
        return Client(
            self.address,
            token=self.token,
            tls=self.tls,
            tls_ca=self.tls_ca,
            timeout_s=self.timeout_s,
        )


_TARGET: tuple[Decorator, ...] = (
    option("--address", default="localhost:7800", metavar="HOST:PORT", help="The Shoal server."),
    option("--token", metavar="TOKEN", help="Bearer token, if the server wants one."),
    option("--tls", is_flag=True, help="Encrypt, and verify the server."),
    option(
        "--tls-ca",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="PEM file of the authority to verify the server by; implies --tls.",
    ),
    option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        metavar="SECONDS",
        help="Longest wait for one call; ingestion and runs may take longer.",
    ),
    option("--collection", default="images", metavar="NAME", help="The collection."),
    option("--clustering", default="default", metavar="NAME", help="The clustering."),
)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a client; it gets them as ``target``."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        names = Target.__dataclass_fields__
        target = Target(**{name: options.pop(name) for name in names})
        return function(*args, target=target, **options)

    return decorate(command, _TARGET)
