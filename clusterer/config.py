"""Settings of the clusterer service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shoal.errors import ConfigError
from shoal.values import Gates


@dataclass(frozen=True, slots=True)
class MatchThresholds:
    """When a new cluster is an old one (MONIC: Spiliopoulou et al., KDD 2006).

    Raises:
        ConfigError: a value is out of range.
    """

    continued_jaccard: float = 0.5
    """Least Jaccard overlap of a cluster that keeps its id. Above 0.5 at most one old cluster can
    qualify for a new one, and the other way round; at exactly 0.5 two can, of which one gets it."""
    related_share: float = 0.1
    """Least share of a cluster's points that makes another one worth naming in its lineage."""
    split_share: float = 0.5
    """Least share of a cluster's points from one old cluster that makes it a split."""
    centroid_cosine: float = 0.9
    """Least cosine of centroids that keeps an id when the runs have no point in common."""

    def __post_init__(self) -> None:
        for name, least in (
            ("continued_jaccard", 0.5),
            ("related_share", 0.0),
            ("split_share", 0.0),
            ("centroid_cosine", -1.0),
        ):
            if not least <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected {least} to 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ClustererConfig:
    """Settings of the clusterer service.

    Raises:
        ConfigError: a value is out of range.
    """

    sample_size: int = 50_000
    """Most points that a fit looks at. 50,000 x 1280-d float32 is 256 MB in the child."""
    max_sample_size: int = 1_000_000
    """Most points that a request may ask a fit to look at: the parent holds them for a moment,
    5 GB at 1280-d."""
    block_size: int = 512
    """Points per block of a scan: the embedded engine holds the GIL for a whole block, about
    20 ms at this size."""
    write_chunk: int = 1000
    """Ids per write operation."""
    lease_ttl_s: float = 30.0
    """How long a run whose process died blocks the next one (on a server; the embedded store
    knows at once). Renewed three times in this time."""
    assign_interval_s: float = 1.0
    """Pause between looks for points that have no cluster yet."""
    drift_interval_s: float = 30.0
    """Pause between two measurements of drift: each counts the points of every cluster."""
    kept_runs: int = 1_000
    """Records of runs that are kept of each clustering: `shoal runs` reads them all."""
    silhouette_sample: int = 2_000
    """Points of the sampled silhouette: quadratic in time, 30 MB at this size."""
    clock_skew_s: float = 10.0
    """How far the clocks of embedders may be behind the clusterer's without a second look."""
    scratch: Path | None = None
    """Where fits keep their temporary files. Default: the system's temporary directory."""
    heads: str = ""
    """Where trained heads are kept: a directory or a URL that fsspec knows. Empty: nowhere."""
    gates: Gates = field(default_factory=Gates)
    """Thresholds for runs that bring none of their own."""
    matching: MatchThresholds = field(default_factory=MatchThresholds)

    def __post_init__(self) -> None:
        for name in (
            "sample_size",
            "max_sample_size",
            "block_size",
            "write_chunk",
            "silhouette_sample",
            "kept_runs",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.sample_size > self.max_sample_size:
            raise ConfigError(
                f"sample_size: expected at most max_sample_size, {self.max_sample_size}, "
                f"got {self.sample_size}"
            )
        for name in ("lease_ttl_s", "assign_interval_s", "drift_interval_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected more than 0 s, got {getattr(self, name)}")
