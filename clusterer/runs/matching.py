"""Which new cluster is which old one: stable ids and lineage. Pure.

Overlap is counted on the points that both runs assigned. A new cluster keeps the id of an old
one when their Jaccard overlap is at least one half (MONIC, Spiliopoulou et al., KDD 2006). Above
one half at most one partner qualifies on either side; at exactly one half two can. So taking pairs
in the order of overlap is the optimal (Hungarian) matching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array

from clusterer.config import MatchThresholds
from shoal.values import Lineage, LineageKind
from shoal.vectors import NOISE, Labels, Vectors

Indices: TypeAlias = npt.NDArray[Any]
"""Whole numbers, of the width that SciPy chooses."""


@dataclass(frozen=True, slots=True)
class Matching:
    """``ids`` int32 (K,): the id of each new cluster; ``next_id`` is the first id never used."""

    ids: Labels
    lineage: tuple[Lineage, ...]
    next_id: int

    def named(self, rows: Labels) -> Labels:
        """The ids of ``rows`` (N,) of new clusters; noise stays noise."""
        return named(self.ids, rows)


def named(ids: Labels, rows: Labels) -> Labels:
    """The ids (K,) of ``rows``, int32 (N,); noise stays noise."""
    return np.where(rows < 0, np.int32(NOISE), ids[rows]).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters of one side: ``ids`` int32 (K,) and ``centroids`` float32 (K, D)."""

    ids: Labels
    centroids: Vectors


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many points each old cluster shares with each new one.

    ``counts`` (K_old, K_new), sparse, in the order of the old clusters and of the new ones;
    ``old_sizes`` (K_old,) and ``new_sizes`` (K_new,) count all points of a cluster.
    """

    counts: csc_array
    old_sizes: Indices
    new_sizes: Indices


def overlap_of(
    old_labels: Labels, new_labels: Labels, old_ids: Labels, new_clusters: int
) -> Overlap:
    """The overlap of two labellings of the same points.

    Args:
        old_labels: (N,) ids of old clusters; negative where the old run had none.
        new_labels: (N,) rows of new clusters; negative for noise.
        old_ids: the ids of the old clusters; a label that is none of them counts for nothing.
        new_clusters: the number of new clusters.
    """
    kept = old_labels[old_labels >= 0]
    return Overlap(
        _contingency(old_labels, new_labels, old_ids, new_clusters),
        np.bincount(kept, minlength=int(old_ids.max(initial=0)) + 1)[old_ids],
        np.bincount(new_labels[new_labels >= 0], minlength=new_clusters),
    )


def match(
    overlap: Overlap,
    old: Clusters,
    new_centroids: Vectors,
    *,
    next_id: int,
    thresholds: MatchThresholds,
) -> Matching:
    """Gives each new cluster an id.

    Args:
        overlap: how many points old and new clusters share.
        old: the old run's clusters.
        new_centroids: (K, D).
        next_id: the first id that no cluster of this clustering ever had.
        thresholds: when a cluster continues, and which overlaps are worth naming.

    Returns:
        Ids in which continued clusters keep theirs and all others get unused ones, larger
        clusters first; the lineage lists the new clusters by size, then the retired ones.
    """
    counts, sizes = overlap.counts, overlap.new_sizes
    if counts.nnz:
        pairs = _by_overlap(counts, thresholds.continued_jaccard)
    else:
        pairs = _by_centroid(old.centroids, new_centroids, thresholds.centroid_cosine)

    ids = np.full(len(new_centroids), -1, np.int32)
    scores = np.zeros(len(ids))
    for i, j, score in pairs:
        ids[j], scores[j] = old.ids[i], score
    kept = ids >= 0
    by_size = np.argsort(-sizes, kind="stable")
    for j in by_size[~kept[by_size]]:
        ids[j], next_id = next_id, next_id + 1

    origins = _Origins(counts, old.ids, thresholds)
    lineage = [
        Lineage(int(ids[j]), "continued", int(sizes[j]), origins.related(j), float(scores[j]))
        if kept[j]
        else Lineage(int(ids[j]), origins.kind(j, int(sizes[j])), int(sizes[j]), origins.related(j))
        for j in by_size
    ]
    lineage += _retired(overlap, old.ids, ids, thresholds)
    return Matching(ids, tuple(lineage), next_id)


def _contingency(old_labels: Labels, new_labels: Labels, old_ids: Labels, k_new: int) -> csc_array:
    """The points that the i-th old cluster shares with the j-th new one, sparse (K_old, K_new)."""
    shared = np.isin(old_labels, old_ids) & (new_labels >= 0)
    order = np.argsort(old_ids)
    rows = order[np.searchsorted(old_ids, old_labels[shared], sorter=order)]
    ones = np.ones(len(rows), np.int64)
    return csc_array((ones, (rows, new_labels[shared])), shape=(len(old_ids), k_new))


def _by_overlap(counts: csc_array, least: float) -> list[tuple[int, int, float]]:
    entries = counts.tocoo()
    rows, columns = entries.row, entries.col
    union = counts.sum(axis=1)[rows] + counts.sum(axis=0)[columns] - entries.data
    return _one_to_one(rows, columns, entries.data / union, least)


def _by_centroid(old: Vectors, new: Vectors, least: float) -> list[tuple[int, int, float]]:
    cosines = np.asarray(old @ new.T, dtype=np.float64)
    rows, columns = np.nonzero(cosines >= least)
    return _one_to_one(rows, columns, cosines[rows, columns], least)


def _one_to_one(
    rows: Indices, columns: Indices, scores: npt.NDArray[np.float64], least: float
) -> list[tuple[int, int, float]]:
    """Pairs (row, column, score >= least), best first, each row and column once."""
    taken: list[tuple[int, int, float]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for at in np.lexsort((columns, rows, -scores)):
        i, j, score = int(rows[at]), int(columns[at]), float(scores[at])
        if score < least:
            break
        if i not in used_rows and j not in used_columns:
            used_rows.add(i)
            used_columns.add(j)
            taken.append((i, j, score))
    return taken


class _Origins:
    """The old clusters that the points of each new one come from."""

    def __init__(self, counts: csc_array, old_ids: Labels, thresholds: MatchThresholds) -> None:
        self._counts = counts
        self._old_ids = old_ids
        self._old_sizes = counts.sum(axis=1)
        self._thresholds = thresholds

    def _sources(self, j: int) -> tuple[Indices, Indices]:
        span = slice(self._counts.indptr[j], self._counts.indptr[j + 1])
        return self._counts.indices[span], self._counts.data[span]

    def related(self, j: int) -> tuple[int, ...]:
        rows, amounts = self._sources(j)
        return _largest(self._old_ids[rows], amounts, self._thresholds.related_share)

    def kind(self, j: int, size: int) -> LineageKind:
        rows, amounts = self._sources(j)
        share = self._thresholds.split_share
        if np.count_nonzero(amounts >= share * self._old_sizes[rows]) > 1:
            return "merged"
        return "split" if amounts.max(initial=0) >= share * max(size, 1) else "born"


def _retired(
    overlap: Overlap, old_ids: Labels, ids: Labels, thresholds: MatchThresholds
) -> list[Lineage]:
    """The old clusters that no new one continues, largest first."""
    by_row = overlap.counts.tocsr()
    alive = set(ids.tolist())
    gone = [i for i, cluster in enumerate(old_ids.tolist()) if cluster not in alive]
    found = []
    for i in gone:
        span = slice(by_row.indptr[i], by_row.indptr[i + 1])
        heirs = _largest(ids[by_row.indices[span]], by_row.data[span], thresholds.related_share)
        found.append(Lineage(int(old_ids[i]), "retired", int(overlap.old_sizes[i]), heirs))
    return sorted(found, key=lambda line: (-line.size, line.cluster))


def _largest(ids: Labels, amounts: Indices, share: float) -> tuple[int, ...]:
    """The ids whose amount is at least ``share`` of the sum, largest first."""
    order = np.argsort(-amounts, kind="stable")
    total = amounts.sum()
    return tuple(int(ids[at]) for at in order if amounts[at] >= share * total)
