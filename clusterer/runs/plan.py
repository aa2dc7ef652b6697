"""The plan of a run: the changes that it would make, counted, and whether it may. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clusterer.runs.matching import Clusters
from clusterer.runs.points import UNASSIGNED, PointTable
from shoal.values import Gates, Lineage
from shoal.vectors import NOISE, Labels, Vectors


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the clusters are, and how far they moved; fields as in ``shoal.v1.Plan``."""

    inertia: float
    silhouette: float | None
    confidence: float
    centroid_drift: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that a run would make; the fields are those of ``shoal.v1.Plan``."""

    points: int
    clusters: int
    moved: int
    moved_share: float
    to_write: int
    noise: int
    agreement: float | None
    quality: Quality
    largest_share: float
    lineage: tuple[Lineage, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """How the labels that a run wants differ from the labels in the slots, counted.

    Attributes:
        points: All points.
        known: Points that have a label now; noise is one.
        moved: Points among these that get another label.
        to_write: Points whose inactive slot holds another label, or none.
        noise: Points that become noise.
        agreement: The adjusted Rand index of old and new labels of the known points; None
            without any.
        sizes: int64 (K,), the points of each new cluster that has any.
    """

    points: int
    known: int
    moved: int
    to_write: int
    noise: int
    agreement: float | None
    sizes: npt.NDArray[np.int64]


def changes_of(table: PointTable, wanted: Labels) -> Changes:
    """How the labels ``wanted``, int32 (N,), differ from what the slots of ``table`` hold."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - takes a second

    before = table.active != UNASSIGNED
    known = int(np.count_nonzero(before))
    return Changes(
        points=len(table),
        known=known,
        moved=int(np.count_nonzero(before & (table.active != wanted))),
        to_write=int(np.count_nonzero(table.inactive != wanted)),
        noise=int(np.count_nonzero(wanted == NOISE)),
        agreement=float(adjusted_rand_score(table.active[before], wanted[before]))
        if known
        else None,
        sizes=np.unique(wanted[wanted >= 0], return_counts=True)[1],
    )


def plan_of(changes: Changes, lineage: tuple[Lineage, ...], quality: Quality) -> Plan:
    """The plan that makes ``changes``."""
    return Plan(
        points=changes.points,
        clusters=len(changes.sizes),
        moved=changes.moved,
        moved_share=changes.moved / changes.known if changes.known else 0.0,
        to_write=changes.to_write,
        noise=changes.noise,
        agreement=changes.agreement,
        quality=quality,
        largest_share=float(changes.sizes.max(initial=0) / max(1, changes.points)),
        lineage=lineage,
    )


def rand_index(counts: npt.NDArray[np.int64], rows: Labels, columns: Labels) -> float:
    """The adjusted Rand index (Hubert & Arabie 1985) of two labellings whose pairs are counted.

    ``counts`` (M,) points have the label ``rows`` (M,) in one and ``columns`` (M,) in the other.
    Computed in Python's integers: the pairs of a billion points overflow 64 bits when multiplied.
    """

    def pairs(amounts: list[int]) -> int:
        return sum(n * (n - 1) // 2 for n in amounts)

    def margin(labels: Labels) -> int:
        sums = np.bincount(np.unique(labels, return_inverse=True)[1], weights=counts)
        return pairs([round(n) for n in sums.tolist()])

    both = pairs([int(n) for n in counts])
    first, second = margin(rows), margin(columns)
    total = pairs([int(counts.sum())])
    expected = first * second / total if total else 0.0
    most = (first + second) / 2
    return 1.0 if most == expected else float((both - expected) / (most - expected))


def centroid_drift(old: Clusters, new: Clusters, sizes: npt.NDArray[np.int64]) -> float | None:
    """Mean cosine distance of the centroids of clusters that continue, weighted by ``sizes`` (K,).

    None if no cluster continues, or if the old centroids are unknown (zero).
    """
    kept, at_old, at_new = np.intersect1d(old.ids, new.ids, return_indices=True)
    weights = sizes[at_new]
    if not len(kept) or not weights.sum() or not np.any(old.centroids):
        return None
    cosines = (old.centroids[at_old] * new.centroids[at_new]).sum(axis=1)
    return max(0.0, float(np.average(1 - cosines, weights=weights)))


def sampled_silhouette(vectors: Vectors, labels: Labels) -> float | None:
    """Mean cosine silhouette (Rousseeuw 1987) of ``vectors`` (M, D), noise left out.

    Returns:
        None with fewer than two clusters, or as many clusters as points.
    """
    kept = labels >= 0
    if not 1 < len(np.unique(labels[kept])) < np.count_nonzero(kept):
        return None
    from sklearn.metrics import silhouette_score  # noqa: PLC0415 - takes a second

    return float(silhouette_score(vectors[kept], labels[kept], metric="cosine"))


def objections(plan: Plan, gates: Gates) -> tuple[str, ...]:
    """The gates that ``plan`` is past, one sentence each; empty if the plan may go live.

    Shares of points that move, and agreement, mean nothing before the first run.
    """
    found: list[str] = []

    def at_most(name: str, got: float, limit: float | None) -> None:
        if limit is not None and got > limit:
            found.append(f"{name} is {got:.3f}, more than {limit:.3f}")

    at_most("moved share", plan.moved_share, gates.max_moved_share)
    at_most("noise share", plan.noise / max(1, plan.points), gates.max_noise_share)
    at_most("share of the largest cluster", plan.largest_share, gates.max_cluster_share)
    if (
        gates.min_agreement is not None
        and plan.agreement is not None
        and plan.agreement < gates.min_agreement
    ):
        found.append(
            f"agreement with the active run is {plan.agreement:.3f}, "
            f"less than {gates.min_agreement:.3f}"
        )
    return tuple(found)
