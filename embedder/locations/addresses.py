"""TCP connections to public addresses only, whatever a host's name resolves to.

A name is resolved once, and the connection goes to an address that was checked: a name that
resolves to another address the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from functools import partial
from typing import Any

import httpcore

from embedder.locations.slots import Slots
from shoal.errors import LocationUnavailable, Unsupported

_GLOBAL_UNICAST_6 = ipaddress.ip_network("2000::/3")
"""The only public part of IPv6 (IANA, IPv6 Address Space)."""


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections for httpcore, and checks the addresses first."""

    def __init__(self, name_slots: Slots, *, allow_private: bool) -> None:
        """Prepares; nothing is resolved yet.

        Args:
            name_slots: whose threads resolve names.
            allow_private: whether addresses that are not public are connected to as well.
        """
        self._name_slots = name_slots
        self._allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of ``host`` that answers.

        Raises:
            Unsupported: one of the host's addresses is not public.
            LocationUnavailable: the name cannot be resolved.
            httpcore.ConnectError, httpcore.ConnectTimeout: no address answers.
        """
        addresses = await _resolve(self._name_slots, host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            msg = f"image.uri: expected a host with public addresses only, got {host!r}"
            raise Unsupported(msg, field="image.uri")
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:  # the first may be IPv6, and this machine may have only IPv4
            try:
                return _ClosingStream(
                    await self._inner.connect_tcp(
                        address, port, timeout, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure


class _ClosingStream(httpcore.AsyncNetworkStream):
    """A stream that also closes if the start of TLS is cancelled, which httpcore's does not."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


async def _resolve(name_slots: Slots, host: str, port: int) -> list[str]:
    """The addresses of ``host``, in the order in which to try them."""
    loop = asyncio.get_running_loop()
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        async with name_slots.take() as thread:
            answers = await loop.run_in_executor(thread, ask)
    except (OSError, UnicodeError) as exc:
        raise LocationUnavailable(f"host {host!r} cannot be resolved") from exc
    return [str(answer[4][0]) for answer in answers]


def is_public(address: str) -> bool:
    """Whether ``address`` is an IP address of the public internet.

    Stricter than ``is_global`` of ``ipaddress``, which counts multicast as public, and several
    ranges of IPv6 that lead to other addresses (6to4, Teredo, NAT64).
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public(str(parsed.ipv4_mapped))
        if parsed not in _GLOBAL_UNICAST_6 or parsed.sixtofour or parsed.teredo:
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved
