"""Connections to public addresses only, however a name resolves.

The name is resolved once, and what was checked is what is connected to: a name that answers
differently the second time (DNS rebinding) gains nothing.
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


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections for httpcore, after a look at the address."""

    def __init__(self, names: Slots, *, allow_private: bool) -> None:
        """Prepare; names are resolved in ``names``, ``allow_private`` lets any address through."""
        self._names = names
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
        """Connect to the first address of ``host`` that answers.

        Raises:
            Unsupported: one of its addresses is not public.
            LocationUnavailable: it cannot be resolved.
            httpcore.ConnectError, httpcore.ConnectTimeout: nobody answers.
        """
        addresses = await _resolve(self._names, host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            msg = f"image.uri: expected a host with public addresses only, got {host!r}"
            raise Unsupported(msg, field="image.uri")
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:  # the first may be of IPv6, on a machine that has only IPv4
            try:
                return _Stream(
                    await self._inner.connect_tcp(
                        address, port, timeout, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure


class _Stream(httpcore.AsyncNetworkStream):
    """A stream that also closes when the start of TLS is cancelled, which httpcore's does not."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


async def _resolve(names: Slots, host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        async with names.take() as thread:
            found = await loop.run_in_executor(thread, ask)
    except (OSError, UnicodeError) as exc:
        raise LocationUnavailable(f"host {host!r} cannot be resolved") from exc
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Stricter than ``ipaddress``'s is_global, which takes multicast and several ranges of IPv6
    that lead to other addresses (6to4, Teredo, NAT64) for public.
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
