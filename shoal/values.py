"""Values that the services, the store and the SDK share. Pure: knows nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import Interval

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

LineageKind: TypeAlias = Literal["continued", "born", "split", "merged", "retired", "unspecified"]


@dataclass(frozen=True, slots=True)
class VectorInfo:
    """One named vector of a collection, and the fingerprint of the encoder behind it."""

    name: str
    dim: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds past which a plan is refused; None is not checked. Shares are 0 to 1."""

    max_moved_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Gate: largest share of points that change cluster."""
    max_noise_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Gate: largest share of noise."""
    min_agreement: Annotated[float, Interval(ge=-1, le=1)] | None = None
    """Gate: least adjusted Rand index against the active run."""
    max_cluster_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Gate: largest share of points in one cluster."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What became of one cluster in a run.

    ``related`` are the old clusters that it comes from; for a retired cluster, the new ones that
    its points went to. ``overlap`` is the Jaccard overlap with the cluster that it continues.
    """

    cluster: int
    kind: LineageKind
    size: int
    related: tuple[int, ...] = ()
    overlap: float = 0.0


@dataclass(frozen=True, slots=True)
class Drift:
    """How the points that came in since the active run compare with those that the run saw.

    ``psi`` is the population stability index of the clusters' shares. ``signs`` says in words
    what has changed; ``due`` is true when that is enough to cluster again.
    """

    newcomers: int
    noise_share: float
    run_noise_share: float
    confidence: float
    run_confidence: float
    psi: float
    due: bool
    signs: tuple[str, ...]
