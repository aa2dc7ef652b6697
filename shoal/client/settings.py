"""How a client reaches its server, from the arguments that both clients take."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from shoal.rpc.channel import ChannelConfig

ADDRESS = "localhost:7800"
TIMEOUT_S = 60.0


def channel_config(  # noqa: PLR0913 - the clients' arguments
    address: str,
    *,
    token: str | None,
    tls: bool,
    tls_ca: Path | None,
    timeout_s: float,
    via_proxy: bool,
) -> ChannelConfig:
    """The settings of the client's channels. A file of an authority implies TLS."""
    return ChannelConfig(
        address=address,
        token=SecretStr(token) if token else None,
        tls=tls or tls_ca is not None,
        tls_ca=tls_ca,
        timeout_s=timeout_s,
        via_proxy=via_proxy,
    )
