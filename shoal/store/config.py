"""Where the vectors are kept: the settings of a store. Pure: knows no engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from shoal.errors import ConfigError

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Exactly one of ``path``, ``url`` and ``in_memory``.

    Attributes:
        path: A directory for the embedded engine; made if absent; one owner process.
        url: A Qdrant server, ``http(s)://host[:6333]``. Points travel over its gRPC port.
        in_memory: Nothing on disk, gone with the process: for tests.
        api_key: The server's key. Send it over https only, or inside a trusted network.
        grpc_port: The server's gRPC port.
        timeout_s: Limit of one call to a server, in seconds; rounded up to a whole one.

    Raises:
        ConfigError: none or several of the three, or a value out of range.
    """

    path: Path | None = None
    url: str | None = None
    in_memory: bool = False
    api_key: SecretStr | None = None
    grpc_port: int = 6334
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse a combination that means nothing."""
        chosen = [
            name
            for name, given in (
                ("path", self.path is not None),
                ("url", self.url is not None),
                ("in_memory", self.in_memory),
            )
            if given
        ]
        if len(chosen) != 1:
            got = ", ".join(chosen) or "none"
            raise ConfigError(f"store: expected exactly one of path, url and in_memory, got {got}")
        if self.url is not None:
            _check_url(self.url)
        elif self.api_key is not None:
            raise ConfigError("store: api_key is for a Qdrant server: expected url, got none")
        if not 0 < self.grpc_port <= _MAX_PORT:
            raise ConfigError(f"store: expected a grpc_port of 1 to 65535, got {self.grpc_port}")
        if not 0 < self.timeout_s < float("inf"):
            raise ConfigError(f"store: expected a timeout_s above 0, got {self.timeout_s}")


def _check_url(url: str) -> None:
    """ConfigError unless ``url`` is http(s) with a host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"store: url {url!r}: {exc}") from exc
    if parts.username or parts.password:
        raise ConfigError("store: expected a url without a password in it; use the api_key")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"store: url {url!r}: expected http://HOST:PORT or https://HOST:PORT")
