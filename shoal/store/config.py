"""Where the vectors are kept: the settings of a store. Pure: knows no engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Interval, Lt
from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the vectors are: exactly one of ``path``, ``url`` and ``in_memory``.

    Raises:
        ConfigError: none or several of the three, or a value out of range.
    """

    path: Annotated[Path | None, INTERNAL] = None
    """A directory for the embedded engine; made if absent; one process owns it."""
    url: Annotated[str | None, Setting("--store-url", metavar="URL")] = None
    """The Qdrant server, `http(s)://HOST:6333`. Points travel over its gRPC port."""
    in_memory: Annotated[bool, INTERNAL] = False
    """Whether the store is in this process's memory, which is for tests."""
    api_key: Annotated[SecretStr | None, Setting("--store-api-key", metavar="KEY")] = None
    """The Qdrant server's API key. Send it over https only, or inside a trusted network."""
    grpc_port: Annotated[int, Interval(ge=1, le=65535), Setting("--store-grpc-port")] = 6334
    """The Qdrant server's gRPC port."""
    via_proxy: Annotated[bool, Setting("--store-via-proxy")] = False
    """Reach the Qdrant server through the proxy that `https_proxy` or `http_proxy` names.

    By default those do not count.
    """
    min_free_mib: Annotated[int, Ge(0), INTERNAL] = 128
    """Free MiB on the disk of ``path`` below which writes are refused."""
    timeout_s: Annotated[float, Gt(0), Lt(math.inf), INTERNAL] = 30.0
    """Limit of one call to a server, rounded up to a whole second."""

    def __post_init__(self) -> None:
        """Refuses a combination that means nothing."""
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
        check_ranges(self)


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
