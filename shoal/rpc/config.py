"""Settings of servers and of channels to them. Light: ``--help`` imports this module."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import SecretStr

from shoal.channels import ChannelOptions
from shoal.errors import ConfigError
from shoal.rpc.address import Address, parse_address, require_token
from shoal.rpc.tokens import check_token
from shoal.settings import INTERNAL, Setting, check_ranges

MAX_MESSAGE_BYTES = 64 * 2**20
"""The default limit of one message in either direction, on both ends: three images of 20 MiB."""
_MAX_STREAMS = 1024
"""The most calls of one connection in progress at a time; more wait at the client."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of an ``RpcServer``."""

    address: Annotated[str, Setting(metavar="HOST:PORT")] = "127.0.0.1:7800"
    """Where to listen; port 0 takes a free one. Only loopback without a token."""
    tokens: Annotated[tuple[SecretStr, ...], Setting("--token", metavar="TOKEN")] = ()
    """Bearer token that lets a caller in. Default: everybody is let in.

    Several, so that one can be replaced while both are in use.
    """
    tls_cert: Annotated[Path | None, Setting(metavar="FILE")] = None
    """PEM file with the certificate chain; together with the private key."""
    tls_key: Annotated[Path | None, Setting(metavar="FILE")] = None
    """PEM file with the private key; together with the certificate."""
    grace_s: Annotated[float, Ge(0)] = 20.0
    """How long calls in progress may go on when the server stops."""
    max_connection_age_s: Annotated[float, Ge(0)] = 0.0
    """Ask clients to connect again after this long, so that they find new replicas. 0: never,
    which is right for one server on one machine."""
    max_message_bytes: Annotated[int, Ge(1), INTERNAL] = MAX_MESSAGE_BYTES
    """Limit of one message, either direction."""
    health_interval_s: Annotated[float, Gt(0), INTERNAL] = 1.0
    """How often each service is asked whether it is ready."""
    health_timeout_s: Annotated[float, Gt(0), INTERNAL] = 5.0
    """How long a service may take to answer that."""
    share_port: Annotated[bool, INTERNAL] = False
    """Whether other processes listen on the port too (``shoal.app.processes``)."""

    def validate(self) -> Address:
        """The parsed address. Checks everything that can be checked before a port opens.

        Raises:
            ConfigError: a setting is malformed or contradicts another, a reachable address has
                no token, or certificate and key cannot be read or do not belong together.
        """
        address = parse_address(self.address)
        for token in self.tokens:
            check_token(token)
        require_token(address, self.tokens)
        check_ranges(self)
        self._check_tls()
        return address

    def options(self) -> ChannelOptions:
        """The gRPC options; the client's options in ``shoal.channels`` match them."""
        options: ChannelOptions = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # A message is decompressed piece by piece, within its method's bounds (``requests``).
            ("grpc.per_message_decompression", 0),
            ("grpc.max_concurrent_streams", _MAX_STREAMS),
            # Otherwise two servers on one port would silently share its connections.
            ("grpc.so_reuseport", int(self.share_port)),
            # Clients ping every 30 s. gRPC by default allows one ping in 5 minutes, or hangs up.
            ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A peer that vanished without a word is noticed, and its streams end.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        if self.max_connection_age_s > 0:
            age_ms = max(1, round(self.max_connection_age_s * 1000))
            # Without a grace, gRPC lets the calls in progress end: an ingestion may take days.
            options.append(("grpc.max_connection_age_ms", age_ms))
        return options

    def _check_tls(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("certificate", "key") if self.tls_cert else ("key", "certificate")
            msg = f"a TLS {given} is set without a {missing}: expected both, or neither"
            raise ConfigError(msg)
        if self.tls_cert is None or self.tls_key is None:
            return
        check_pair(self.tls_cert, self.tls_key)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """How to reach a Shoal server."""

    address: Annotated[str, Setting(metavar="HOST:PORT")] = "localhost:7800"
    """The Shoal server. A host name with several addresses is balanced over all of them."""
    token: Annotated[SecretStr | None, Setting(metavar="TOKEN")] = None
    """Bearer token, if the server wants one.

    Sent as ``authorization: Bearer ...`` with every call.
    """
    tls: bool = False
    """Encrypt, and verify the server."""
    tls_ca: Annotated[Path | None, Setting(metavar="FILE")] = None
    """PEM file of the authority to verify the server by; implies TLS. Default: the authorities
    that are built into gRPC."""
    timeout_s: Annotated[float, Gt(0)] = 60.0
    """Longest wait for the answer of one call; ingestion and runs may take longer.

    It is the deadline of a call with one request and one response that sets none itself. Streams
    have none: an ingestion may last for days.
    """
    max_message_bytes: Annotated[int, Ge(1), INTERNAL] = MAX_MESSAGE_BYTES
    """Limit of one message, either direction."""
    via_proxy: bool = False
    """Go through the proxy that `https_proxy` or `http_proxy` names in the environment.

    By default those, which are meant for the web, do not count. A loopback address is always
    reached directly.
    """

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
        check_ranges(self)
        return address


def read_pem(path: Path) -> bytes:
    """The bytes of a PEM file; ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        msg = f"TLS file {path} cannot be read: {exc.strerror}"
        raise ConfigError(msg, path=str(path)) from exc


def check_pair(cert: Path, key: Path) -> None:
    """ConfigError unless ``cert`` is a PEM certificate and ``key`` its own, unencrypted key."""
    read_pem(cert)
    read_pem(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            cert,
            key,
            password="",  # an encrypted key fails here and does not ask the terminal
        )
    except (ssl.SSLError, OSError, ValueError) as exc:
        why = getattr(exc, "reason", None) or str(exc)
        msg = (
            f"TLS certificate {cert} and key {key} cannot be used: expected "
            f"a PEM certificate and its own unencrypted key, got {why}"
        )
        raise ConfigError(msg) from exc
