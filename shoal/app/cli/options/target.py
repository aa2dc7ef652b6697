"""Options of the commands that call a server: which one, and what of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import click

from shoal.app.cli.options.derive import configured
from shoal.client import CLUSTERING, COLLECTION, Client
from shoal.rpc.config import ChannelConfig
from shoal.settings import Setting

CLUSTER_ID = click.IntRange(-(2**63), 2**63 - 1)
"""What the contract can hold."""

_NAME = Setting(metavar="NAME")


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, collection and clustering a client command is about."""

    channel: ChannelConfig = field(default_factory=ChannelConfig)
    """The server."""
    collection: Annotated[str, _NAME] = COLLECTION
    """The collection."""
    clustering: Annotated[str, _NAME] = CLUSTERING
    """The clustering."""

    def connect(self) -> Client:
        """A client for the server; nothing is sent yet."""
        token = self.channel.token
        return Client(
            self.channel.address,
            token=token.get_secret_value() if token else None,
            tls=self.channel.tls,
            tls_ca=self.channel.tls_ca,
            timeout_s=self.channel.timeout_s,
            via_proxy=self.channel.via_proxy,
        )


target_options = configured(Target, as_="target")
"""Gives a command the options of a client; it gets them as ``target``."""
