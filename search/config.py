"""Settings of the search service."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Settings of the search service.

    Raises:
        ConfigError: a value is out of range.
    """

    embed_timeout_s: float = 20.0
    """Most time for the embedder to turn a query into a vector; the caller's deadline holds too."""
    threads: int = 4
    """Calls to the store under way at once. The embedded engine serves one at a time anyway."""
    cached_runs: int = 64
    """Runs whose centroids are kept in memory: K x D x 4 bytes each."""

    def __post_init__(self) -> None:
        for name in ("embed_timeout_s", "threads", "cached_runs"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected more than 0, got {getattr(self, name)}")
