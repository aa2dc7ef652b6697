"""Settings of servers and of channels to them. Light: ``--help`` imports this module."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.rpc.address import Address, parse_address, require_token
from shoal.rpc.tokens import check_token

MAX_MESSAGE_BYTES = 64 * 2**20
"""Default limit of one message in either direction, on both ends: three images of 20 MiB."""
_MAX_STREAMS = 1024
"""Calls of one connection in progress at the same time; more wait at the client."""

ChannelOptions = list[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of an ``RpcServer``.

    Attributes:
        address: ``HOST:PORT``; port 0 takes a free one. Other than loopback only with a token.
        tokens: Any of these bearer tokens lets a caller in. Several, so that one can be replaced
            while both are in use. Empty: everybody is let in.
        tls_cert: PEM file with the certificate chain; together with ``tls_key``.
        tls_key: PEM file with the private key.
        max_message_bytes: Limit of one message, either direction.
        max_connection_age_s: Connections are closed gracefully at this age, so that clients
            find new replicas. 0: never, right for one server on one machine.
        grace_s: How long calls in progress may go on when the server stops.
        health_interval_s: How often each service is asked whether it is ready.
        health_timeout_s: How long it may take to answer.
        share_port: Whether other processes listen on the port too (``shoal.app.processes``).
    """

    address: str = "127.0.0.1:7800"
    tokens: tuple[SecretStr, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_connection_age_s: float = 0.0
    grace_s: float = 20.0
    health_interval_s: float = 1.0
    health_timeout_s: float = 5.0
    share_port: bool = False

    def validate(self) -> Address:
        """The parsed address; everything that can be checked before a port opens, is.

        Raises:
            ConfigError: a setting is malformed or contradicts another, a reachable address has
                no token, or certificate and key cannot be read or do not belong together.
        """
        address = parse_address(self.address)
        for token in self.tokens:
            check_token(token)
        require_token(address, self.tokens)
        for name, value, least in (
            ("max_message_bytes", self.max_message_bytes, 1),
            ("max_connection_age_s", self.max_connection_age_s, 0),
            ("grace_s", self.grace_s, 0),
        ):
            if not value >= least:
                msg = f"{name} {value} is out of range: expected {least} or more"
                raise ConfigError(msg)
        for name, seconds in (
            ("health_interval_s", self.health_interval_s),
            ("health_timeout_s", self.health_timeout_s),
        ):
            if not seconds > 0:
                msg = f"{name} {seconds} is out of range: expected more than 0"
                raise ConfigError(msg)
        self._check_tls()
        return address

    def options(self) -> ChannelOptions:
        """The gRPC options; those of ``shoal.rpc.channel`` are the other half of the deal."""
        options: ChannelOptions = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_concurrent_streams", _MAX_STREAMS),
            # Two servers on one port share its connections: silently, if they were not told to.
            ("grpc.so_reuseport", int(self.share_port)),
            # Clients ping every 30 s; gRPC's default allows one in 5 minutes, then hangs up.
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
