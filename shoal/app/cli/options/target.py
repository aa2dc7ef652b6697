"""Options of the commands that call a server: which one, and what of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import click
from click.core import ParameterSource

from shoal.app.cli.options.contexts import ADDRESSES, read_contexts
from shoal.app.cli.options.derive import Options
from shoal.client import CLUSTERING, COLLECTION, Addresses, Client
from shoal.errors import ServiceUnavailable
from shoal.rpc.address import parse_address
from shoal.rpc.config import ChannelConfig
from shoal.settings import Setting

CLUSTER_ID = click.IntRange(-(2**63), 2**63 - 1)
"""What the contract can hold."""

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables of the environment by which gRPC finds a proxy, in its order."""

_NAME = Setting(metavar="NAME")
_ADDRESS = Setting(metavar="HOST:PORT")


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, collection and clustering a client command is about."""

    channel: ChannelConfig = field(default_factory=ChannelConfig)
    """The server."""
    embedder_address: Annotated[str | None, _ADDRESS] = None
    """The embedder, where it is a server of its own. Default: --address."""
    clusterer_address: Annotated[str | None, _ADDRESS] = None
    """The clusterer, where it is a server of its own. Default: --address."""
    search_address: Annotated[str | None, _ADDRESS] = None
    """The search service, where it is a server of its own. Default: --address."""
    context: Annotated[str | None, _NAME] = None
    """The context that gives the settings that are not given here (`shoal context`). Default: the
    current one, unless an address is given."""
    collection: Annotated[str, _NAME] = COLLECTION
    """The collection."""
    clustering: Annotated[str, _NAME] = CLUSTERING
    """The clustering."""

    def connect(self) -> Client:
        """A client for the server or servers; nothing is sent yet."""
        token = self.channel.token
        return Client(
            self._address,
            token=token.get_secret_value() if token else None,
            tls=self.channel.tls,
            tls_ca=self.channel.tls_ca,
            timeout_s=self.channel.timeout_s,
            via_proxy=self.channel.via_proxy,
        )

    @property
    def _address(self) -> str | Addresses:
        """One address for all services, or one for each."""
        own = (self.embedder_address, self.clusterer_address, self.search_address)
        if not any(own):
            return self.channel.address
        return Addresses(*(each or self.channel.address for each in own))


_OPTIONS = Options(Target)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of a client; it gets them as ``target``."""

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        _fill(values)
        target = _OPTIONS.take(values)
        try:
            return function(*args, **values, target=target)
        except ServiceUnavailable as exc:
            if not target.channel.via_proxy:
                exc.message += _proxy_hint(exc.metadata.get("address", ""))
            raise

    return _OPTIONS.give(command)


def _proxy_hint(address: str) -> str:
    """What to say of the environment's proxy, which the way to ``address`` did not take."""
    named = [name for name in PROXIES if os.environ.get(name)]
    if not named or not address or parse_address(address).is_loopback:
        return ""
    return f" ({named[0]} is set; --via-proxy goes by that proxy)"


def _fill(values: dict[str, Any]) -> None:
    """Puts the settings of a context where neither the command line nor the environment has one.

    An address that is given sets the current context aside: its token is for other servers.
    """
    source = click.get_current_context().get_parameter_source
    given = {name for name in values if source(name) is not ParameterSource.DEFAULT}
    known = given.intersection(ADDRESSES)
    if values["context"] or not known:
        # A given --address is for all services that have none on the command line.
        without = given.union(ADDRESSES) if "address" in known else given
        settings = read_contexts().find(values["context"] or "").settings(without=without)
        values.update(settings)
        known = known.union(settings).intersection(ADDRESSES)
    if known and "address" not in known:
        values["address"] = ""  # the other services are nowhere, and not at the default address
