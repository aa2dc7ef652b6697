"""Settings of the clusterer service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges
from shoal.values import Gates


@dataclass(frozen=True, slots=True)
class MatchThresholds:
    """When a new cluster is an old one (MONIC: Spiliopoulou et al., KDD 2006).

    Raises:
        ConfigError: a value is out of range.
    """

    continued_jaccard: Annotated[float, Interval(ge=0.5, le=1), Setting(metavar="SHARE")] = 0.5
    """Least overlap (Jaccard) with an old cluster by which a new one keeps its id.

    Above 0.5 at most one old cluster can qualify for a new one, and the other way round; at
    exactly 0.5 two can, of which one gets it.
    """
    related_share: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Least share of a cluster's points for which another is named in its lineage."""
    split_share: Annotated[float, Interval(ge=0, le=1), INTERNAL] = 0.5
    """Least share of a cluster's points from one old cluster that makes it a split."""
    centroid_cosine: Annotated[float, Interval(ge=-1, le=1), INTERNAL] = 0.9
    """Least cosine of centroids that keeps an id when the runs have no point in common."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class ClustererConfig:
    """Settings of the clusterer service.

    Raises:
        ConfigError: a value is out of range.
    """

    heads: Annotated[str, Setting(metavar="DIR|URL")] = ""
    """Where `shoal train` keeps heads, for --method scp. Default: nowhere.

    A directory, or a URL that fsspec knows.
    """
    sample_size: Annotated[int, Ge(1)] = 50_000
    """Most points that a fit looks at, unless a request says otherwise.

    50,000 points of 1280-d float32 are 256 MB in the fit's process.
    """
    max_sample_size: Annotated[int, Ge(1)] = 1_000_000
    """Most points that a request may ask a fit to look at: with --sample-size, the bound of a
    run's memory.

    The parent process holds them for a moment: 5 GB at 1280-d.
    """
    kept_runs: Annotated[int, Ge(1)] = 1_000
    """Records of runs that are kept of each clustering; older ones go, but for those in use.

    `shoal runs` reads them all.
    """
    matching: MatchThresholds = field(default_factory=MatchThresholds)
    """When a new cluster is an old one."""
    gates: Gates = field(default_factory=Gates)
    """Thresholds for runs that bring none of their own."""
    block_size: Annotated[int, Ge(1), INTERNAL] = 512
    """Points per block of a scan: the embedded engine holds the GIL for a whole block, about
    20 ms at this size."""
    write_chunk: Annotated[int, Ge(1), INTERNAL] = 1000
    """Ids per write operation."""
    lease_ttl_s: Annotated[float, Gt(0), INTERNAL] = 30.0
    """How long a run whose process died blocks the next one (on a server; the embedded store
    knows at once). The lease is renewed three times in this time."""
    store_patience_s: Annotated[float, Ge(0)] = 120.0
    """Longest wait of a run for a Qdrant server that is away or starts anew; then the run fails.

    If the run's lease expires meanwhile, the run takes it again, unless another run has it by then.
    """
    assign_interval_s: Annotated[float, Gt(0), INTERNAL] = 1.0
    """Pause between looks for points that have no cluster yet."""
    drift_interval_s: Annotated[float, Gt(0), INTERNAL] = 30.0
    """Pause between two measurements of drift: each counts the points of every cluster."""
    silhouette_sample: Annotated[int, Ge(1), INTERNAL] = 2_000
    """Points of the sampled silhouette, 30 MB at this size; the time grows with their square."""
    clock_skew_s: Annotated[float, INTERNAL] = 10.0
    """How far the clocks of embedders may be behind the clusterer's without a second look."""
    scratch: Annotated[Path | None, INTERNAL] = None
    """Where fits keep their temporary files. Default: the system's temporary directory."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)
        if self.sample_size > self.max_sample_size:
            raise ConfigError(
                f"sample_size: expected at most max_sample_size, {self.max_sample_size}, "
                f"got {self.sample_size}",
                field="sample_size",
            )
