"""Options that several commands share, and the rule that each has an environment twin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click

from shoal.client import Client

CLUSTER_ID = click.IntRange(-(2**63), 2**63 - 1)
"""What the contract can hold."""

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


def decorate(command: Callable[..., Any], decorators: Sequence[Decorator]) -> Callable[..., Any]:
    """``command`` with ``decorators``, the first outermost, as if written above it."""
    for each in reversed(decorators):
        command = each(command)
    return command


json_option = option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
