"""Client channels, sync and asyncio, with the options that the server expects.

The bearer token and the default deadline are added by interceptors, not by call credentials:
those need TLS, and a token must work over plaintext loopback and inside a cluster too.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import grpc
import grpc.aio

from shoal.channels import ChannelOptions, channel_options
from shoal.errors import ConfigError
from shoal.rpc.address import Address
from shoal.rpc.config import MAX_MESSAGE_BYTES, ChannelConfig
from shoal.rpc.credentials import aio_interceptors, sync_interceptors

__all__ = ["MAX_MESSAGE_BYTES", "ChannelConfig", "open_aio_channel", "open_channel"]


def open_channel(config: ChannelConfig, *stubs: Callable[[grpc.Channel], object]) -> grpc.Channel:
    """A channel for sync stubs. It connects with the first call; the caller closes it.

    Give the classes of the ``stubs`` that will use it: their calls are then safe while another
    thread closes the channel, and afterwards. gRPC registers a method with its first call, and the
    process crashes if the channel is closed by then (grpc/grpc#43455). Making a stub registers all
    of its methods.

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
    # A loopback address is on this machine: no proxy is needed, and none would be the right one.
    shared = channel_options(via_proxy=config.via_proxy and not address.is_loopback)
    return [
        *shared.items(),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # A connection of its own: otherwise all channels of this process to one address share one,
        # and only several connections spread load over the processes behind a port.
        ("grpc.use_local_subchannel_pool", 1),
        # One connection stays with one replica; round_robin uses all addresses of the name.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ]
