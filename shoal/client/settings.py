"""How a client reaches its server, from the arguments that both clients take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import SecretStr

from shoal.client.calls import SERVICES, Service
from shoal.errors import ConfigError, ServiceMissing
from shoal.rpc.channel import ChannelConfig

ADDRESS = "localhost:7800"
TIMEOUT_S = 60.0

Channels: TypeAlias = Mapping[Service, ChannelConfig]
"""How to reach each service; a service that is not there is left out."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The address, HOST:PORT, of each service that is a server of its own; empty: there is none.

    A call for a service without an address raises ServiceMissing.
    """

    embedder: str = ""
    clusterer: str = ""
    search: str = ""

    def of(self, service: Service) -> str:
        """The address of ``service``; empty if there is none."""
        found: str = getattr(self, service)
        return found


def missing(service: Service) -> ServiceMissing:
    """The error for a call for ``service``, which has no address."""
    name = "search service" if service == "search" else service
    return ServiceMissing(
        f"the call is for the {name}, which has no address: expected one "
        f"(--{service}-address, or Addresses({service}=...))",
        service=service,
    )


def channels_of(  # noqa: PLR0913 - the clients' arguments
    address: str | Addresses,
    *,
    token: str | None,
    tls: bool,
    tls_ca: Path | None,
    timeout_s: float,
    via_proxy: bool,
) -> Channels:
    """The settings of the client's channels. A file of an authority implies TLS.

    Raises:
        ConfigError: there is no address at all.
    """
    places = address if isinstance(address, Addresses) else Addresses(*[address] * len(SERVICES))
    found = {
        service: ChannelConfig(
            address=places.of(service),
            token=SecretStr(token) if token else None,
            tls=tls or tls_ca is not None,
            tls_ca=tls_ca,
            timeout_s=timeout_s,
            via_proxy=via_proxy,
        )
        for service in SERVICES
        if places.of(service) or not isinstance(address, Addresses)
    }
    if not found:
        raise ConfigError(f"no address is given: expected that of {', '.join(SERVICES)}, or of one")
    return found
