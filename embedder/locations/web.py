"""Reads images from allowed hosts, over https."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from embedder.locations.addresses import CheckedBackend
from embedder.locations.config import LocationsConfig
from embedder.locations.slots import Slots
from embedder.locations.sources import Means, check_size, not_allowed, shown
from shoal.errors import InvalidArgument, LocationUnavailable, NotFound, ShoalError

_PORTS = {"https": 443, "http": 80}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_FOUND = frozenset({404, 410})
_TRY_AGAIN = frozenset({408, 425, 429})
_OK, _SERVER_ERRORS = 200, 500
_KEPT_S = 30.0
"""How long an idle connection is kept for the next image."""

_HEADERS = [(b"User-Agent", b"shoal"), (b"Accept", b"image/*"), (b"Accept-Encoding", b"identity")]
_PATH_SAFE = "/%:@!$&'()*+,;=~-._?"
"""Characters that a path and a query may have; others, such as a space, are percent-encoded."""


@dataclass(frozen=True, slots=True)
class _Url:
    """A checked URL."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def for_pool(self) -> httpcore.URL:
        """The URL part by part: from a string, httpcore drops a path's end from ``;`` on."""
        return httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=self.target)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"


class Web:
    """Reads from the hosts that a configuration allows."""

    def __init__(self, config: LocationsConfig) -> None:
        """Prepares; connections are opened when they are needed, and kept for a while."""
        self._config = config
        self._schemes = ("https", "http") if config.allow_http else ("https",)
        self._name_slots = Slots("names of hosts", config.concurrency, patience_s=config.timeout_s)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=config.concurrency,
            keepalive_expiry=_KEPT_S,
            network_backend=CheckedBackend(self._name_slots, allow_private=config.allow_private),
        )

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The body of the answer to a GET; raises as ``Source.read`` says."""
        url = self._checked(uri)
        try:
            for _ in range(self._config.max_redirects + 1):
                answer = await self._get(url, max_bytes=max_bytes, means=means)
                if isinstance(answer, bytes):
                    return answer
                url = answer
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
        ) as exc:
            why = str(exc) or type(exc).__name__
            raise LocationUnavailable(f"image {shown(uri)}: {url.host}: {why}") from exc
        most = self._config.max_redirects
        msg = f"image.uri: expected at most {most} redirects, got more from {shown(uri)}"
        raise InvalidArgument(msg, field="image.uri")

    async def close(self) -> None:
        """Closes the connections and ends the threads."""
        self._name_slots.close()
        await self._pool.aclose()

    async def _get(self, url: _Url, *, max_bytes: int, means: Means) -> bytes | _Url:
        """The body, or the URL that the host redirects to."""
        async with self._pool.stream("GET", url.for_pool, headers=_HEADERS) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                to = headers.get(b"location", b"").decode("latin-1")
                return self._checked(urljoin(str(url), to))
            if response.status != _OK:
                raise _refused(url, response.status)
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                msg = f"image.uri: expected the file as it is, {url.host} sent it encoded"
                raise InvalidArgument(msg, field="image.uri")
            declared = headers.get(b"content-length")
            size = int(declared) if declared is not None else max_bytes  # h11 checks the digits
            check_size(str(url), size, max_bytes)
            await means.reserve(size)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                check_size(str(url), len(body), max_bytes)
            return bytes(body)

    def _checked(self, uri: str) -> _Url:
        """``uri`` as the URL of an allowed place.

        Raises:
            Unsupported: the place is not allowed.
            InvalidArgument: ``uri`` is malformed.
        """
        try:
            parts = urlsplit(uri)
            host, port = (parts.hostname or "").rstrip("."), parts.port
            host = host.encode("idna").decode("ascii") if not host.isascii() else host
        except ValueError as exc:  # UnicodeError among them
            msg = f"image.uri: expected https://host/path, got {shown(uri)}: {exc}"
            raise InvalidArgument(msg, field="image.uri") from exc
        if parts.scheme not in self._schemes or parts.username is not None or not host:
            raise not_allowed(uri)
        default = _PORTS[parts.scheme]
        if not _is_allowed(host, port or default, default, self._config.hosts):
            raise not_allowed(uri)
        target = quote(parts.path or "/", safe=_PATH_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_PATH_SAFE)
        return _Url(parts.scheme, host, port or default, target)


def _is_allowed(host: str, port: int, default: int, allowed: Sequence[str]) -> bool:
    """Whether an entry of ``allowed`` names ``host`` and ``port`` (without one: ``default``)."""
    for entry in allowed:
        name, colon, number = entry.rpartition(":")
        if not colon or number.endswith("]"):
            name, number = entry, str(default)
        name = name.strip("[]")
        same = host.endswith(name[1:]) if name.startswith("*.") else host == name
        if same and str(port) == number:
            return True
    return False


def _refused(url: _Url, status: int) -> ShoalError:
    if status in _NOT_FOUND:
        return NotFound(f"no such image: {shown(str(url))}: {url.host} answered {status}")
    if status in _TRY_AGAIN or status >= _SERVER_ERRORS:
        return LocationUnavailable(f"image {shown(str(url))}: {url.host} answered {status}")
    msg = f"image.uri: expected an image at {shown(str(url))}, {url.host} answered {status}"
    return InvalidArgument(msg, field="image.uri")
