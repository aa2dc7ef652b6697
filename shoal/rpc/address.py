"""``HOST:PORT``: reading it, and the rule that a server which others can reach needs a token."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from shoal.errors import ConfigError

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port. To listen on, ``port`` 0 means any free one."""

    host: str
    port: int

    @property
    def bind_host(self) -> str:
        """The host to listen on; for ``localhost`` that is 127.0.0.1.

        With ::1 as well, a port could be free on one of the two and taken on the other.
        """
        return "127.0.0.1" if self.host == "localhost" else self.host

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect.

        A host name other than ``localhost`` counts as reachable: what it resolves to can change.
        """
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """The address as it is written, with brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in ``text``, ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises:
        ConfigError: it is not of that form, or the port is not 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    malformed = not colon or not host or "/" in host or (":" in host and not bracketed)
    if malformed or not (port.isascii() and port.isdigit()):
        msg = f"address {text!r} cannot be read: expected HOST:PORT, such as 127.0.0.1:7800"
        raise ConfigError(msg, address=text)
    if int(port) > _MAX_PORT:
        msg = f"address {text!r} has port {port}: expected 0 to {_MAX_PORT}"
        raise ConfigError(msg, address=text)
    return Address(host, int(port))


def require_token(address: Address, tokens: Sequence[SecretStr]) -> None:
    """Refuses an address that other machines can reach when no token guards the server.

    Raises:
        ConfigError: ``address`` is not loopback and ``tokens`` is empty.
    """
    if tokens or address.is_loopback:
        return
    msg = (
        f"address {address} is reachable from other machines: expected a bearer token "
        f"(--token or SHOAL_TOKEN) or a loopback address such as 127.0.0.1:{address.port}"
    )
    raise ConfigError(msg, address=str(address))


def require_free(address: Address) -> None:
    """Refuses an address that cannot be listened on, with the operating system's reason.

    A server that fails to listen reports less (gRPC says only that it failed), so this asks first.

    Raises:
        ConfigError: the port is taken, or the host is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(
            address.bind_host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise cannot_listen(address, reason) from exc
    family, kind, protocol, _, target = found[0]
    with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
        # As servers do: a port that is only waiting out old connections counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except (OSError, OverflowError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise cannot_listen(address, reason) from exc


def cannot_listen(address: Address, reason: str) -> ConfigError:
    """The error for an address that cannot be listened on."""
    msg = f"cannot listen on {address}: {reason[:1].lower()}{reason[1:]}"
    return ConfigError(msg, address=str(address))
