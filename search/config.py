"""Settings of the search service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import SecretStr

from shoal.rpc.config import ChannelConfig
from shoal.settings import INTERNAL, Setting, check_ranges


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Settings of the search service.

    Raises:
        ConfigError: a value is out of range.
    """

    embed_timeout_s: Annotated[float, Gt(0), INTERNAL] = 20.0
    """Most time for the embedder to turn a query into a vector; the caller's deadline holds too."""
    threads: Annotated[int, Ge(1), INTERNAL] = 4
    """Calls to the store under way at once. The embedded engine serves one at a time anyway."""
    cached_runs: Annotated[int, Ge(1), INTERNAL] = 64
    """Runs whose centroids are kept in memory: K x D x 4 bytes each."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class EmbedderAddress:
    """Where the embedder is that turns images and texts of queries into vectors."""

    embedder_address: Annotated[str, Setting(metavar="HOST:PORT")] = "localhost:7801"
    """The embedder service, for queries by image and text."""
    embedder_token: Annotated[SecretStr | None, Setting(metavar="TOKEN")] = None
    """The embedder's bearer token."""
    embedder_tls_ca: Annotated[Path | None, Setting(metavar="FILE")] = None
    """PEM file of the authority to verify the embedder by. Default: no TLS."""

    def channel(self) -> ChannelConfig:
        """The settings of a channel there."""
        return ChannelConfig(
            address=self.embedder_address,
            token=self.embedder_token,
            tls=self.embedder_tls_ca is not None,
            tls_ca=self.embedder_tls_ca,
        )
