"""Client channels, sync and asyncio, with the options that the server expects.

The bearer token and the default deadline are added by interceptors, not by call credentials:
those need TLS, and a token must work over plaintext loopback and inside a cluster too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.rpc.address import Address, parse_address
from shoal.rpc.credentials import aio_interceptors, check_token, sync_interceptors

MAX_MESSAGE_BYTES = 64 * 2**20
"""Default limit of one message in either direction, on both ends: three images of 20 MiB."""

KEEPALIVE_MS = 30_000
"""How often a client pings; the server permits pings down to every 20 s (``server.py``)."""

ChannelOptions = list[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """How to reach a Shoal server.

    Attributes:
        address: ``HOST:PORT``. A host name with several addresses is balanced over all of them.
        token: Sent as ``authorization: Bearer ...`` with every call.
        tls: Encrypt, and check the server's certificate.
        tls_ca: PEM file with the authorities to trust; None means the ones built into gRPC.
        timeout_s: Deadline of a call with one request and one response that sets none itself.
            Streams have none: an ingestion may last for days.
        max_message_bytes: Limit of one message, either direction.
    """

    address: str = "localhost:7800"
    token: SecretStr | None = None
    tls: bool = False
    tls_ca: Path | None = None
    timeout_s: float = 60.0
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def validate(self) -> Address:
        """The parsed address.

        Raises:
            ConfigError: a setting is malformed, or two of them contradict each other.
        """
        address = parse_address(self.address)
        if address.port == 0:
            msg = f"address {self.address!r} has port 0: expected the server's port, 1 to 65535"
            raise ConfigError(msg)
        if self.token is not None:
            check_token(self.token)
        if self.tls_ca is not None and not self.tls:
            msg = f"a TLS authority ({self.tls_ca}) is set without TLS: expected --tls, or no file"
            raise ConfigError(msg)
        if not self.timeout_s > 0:
            msg = f"timeout {self.timeout_s} s is out of range: expected more than 0"
            raise ConfigError(msg)
        if self.max_message_bytes < 1:
            msg = f"max_message_bytes {self.max_message_bytes} is out of range: expected 1 or more"
            raise ConfigError(msg)
        return address


def open_channel(config: ChannelConfig, *stubs: Callable[[grpc.Channel], object]) -> grpc.Channel:
    """A channel for sync stubs. It connects with the first call; the caller closes it.

    With the classes of the ``stubs`` that it is for, their calls are safe while another thread
    closes it and afterwards: gRPC registers a method with its first call, and the process crashes
    if the channel is closed by then (grpc/grpc#43455). A stub without interceptors registers all.

    Raises:
        ConfigError: as ``ChannelConfig.validate``, or the authority file cannot be read.
    """
    address = config.validate()
    options = _options(config, address)
    if config.tls:
        channel = grpc.secure_channel(str(address), _credentials(config), options=options)
    else:
        channel = grpc.insecure_channel(str(address), options=options)
    for stub in stubs:
        stub(channel)
    return grpc.intercept_channel(channel, *sync_interceptors(config.token, config.timeout_s))


def open_aio_channel(config: ChannelConfig) -> grpc.aio.Channel:
    """A channel for asyncio stubs, of the running event loop; the caller closes it.

    Raises:
        ConfigError: as ``ChannelConfig.validate``, or the authority file cannot be read.
    """
    address = config.validate()
    options = _options(config, address)
    interceptors = aio_interceptors(config.token, config.timeout_s)
    if config.tls:
        credentials = _credentials(config)
        return grpc.aio.secure_channel(
            str(address), credentials, options=options, interceptors=interceptors
        )
    return grpc.aio.insecure_channel(str(address), options=options, interceptors=interceptors)


def _credentials(config: ChannelConfig) -> grpc.ChannelCredentials:
    if config.tls_ca is None:
        return grpc.ssl_channel_credentials()
    try:
        authorities = config.tls_ca.read_bytes()
    except OSError as exc:
        msg = f"TLS authority file {config.tls_ca} cannot be read: {exc.strerror}"
        raise ConfigError(msg, path=str(config.tls_ca)) from exc
    return grpc.ssl_channel_credentials(root_certificates=authorities)


def _options(config: ChannelConfig, address: Address) -> ChannelOptions:
    options: ChannelOptions = [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Its own connection, not one that all channels of this process to that address share:
        # several are what spreads load over the processes behind one port.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.max_pings_without_data", 0),  # no limit: a silent stream must stay up
        # One connection pins to one replica; round_robin uses all that the name resolves to.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        # A server that comes back is found within seconds, where gRPC's default is two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    if address.is_loopback:
        options.append(("grpc.enable_http_proxy", 0))  # http_proxy is not for this machine
    return options
