"""Values that the services, the store and the SDK share. Pure: knows nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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

    max_moved_share: float | None = None
    max_noise_share: float | None = None
    min_agreement: float | None = None
    max_cluster_share: float | None = None


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
