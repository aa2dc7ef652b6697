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
    """How long the embedder may take to turn a query into a vector, unless the caller's deadline
    comes first."""
    threads: int = 4
    """Calls to the store at one time. The embedded engine serves one at a time anyway."""
    cached_runs: int = 64
    """How many runs keep their centroids in memory: K x D x 4 bytes each."""

    def __post_init__(self) -> None:
        for name in ("embed_timeout_s", "threads", "cached_runs"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected more than 0, got {getattr(self, name)}")
