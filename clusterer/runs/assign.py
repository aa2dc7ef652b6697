"""The assignment pass of a run: every point's cluster, and what it says of the clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clusterer.fits import Fit
from clusterer.fits.models import Assigned, Model, Prototypes, beside
from clusterer.nearest import Tally, blocks
from clusterer.runs.naming import ValueCounts
from clusterer.runs.points import find_ids, pack_ids
from clusterer.runs.sampling import Sample
from shoal.errors import Unsupported
from shoal.store.model import VectorBlock
from shoal.vectors import NOISE, Labels, Vectors


class Rule:
    """What a fit says of a point: its own label if the fit saw it and gave one, else its model's.

    Holds 28 bytes per point of the sample, not its vectors.
    """

    def __init__(self, fit: Fit, sample: Sample) -> None:
        self.model: Model = fit.model
        self._labels: Labels | None = None
        if fit.labels is not None:
            order = np.argsort(sample.ids["high"], kind="stable")
            self._ids, self._labels = sample.ids[order], fit.labels[order]
            self._sums = checksums(sample.vectors)[order]

    def assign(self, ids: Sequence[str], vectors: Vectors, active: Labels) -> Assigned:
        """The clusters, as rows of the model's, of the points ``ids`` with ``vectors`` (B, D).

        ``active`` int32 (B,) holds the ids of their active clusters, which do not matter here.
        """
        del active
        found = self.model.assign(vectors)
        self._own_labels(ids, vectors, found.labels)
        return found

    def _own_labels(self, ids: Sequence[str], vectors: Vectors, labels: Labels) -> None:
        """Puts the fit's own labels, if it gave any, where it saw the point."""
        if self._labels is None:
            return
        rows = find_ids(self._ids, pack_ids(ids))
        # One that was replaced since is another picture.
        seen = (rows >= 0) & (self._sums[rows] == checksums(vectors))
        labels[seen] = self._labels[rows[seen]]


class NoiseRule(Rule):
    """Clusters of the active run stay as they are; what was noise goes by a fit of the noise.

    The model is that of the active run (rows 0 to K-1, with ``ids``) and that of the fit (rows
    from K on), one beside the other.
    """

    def __init__(self, fit: Fit, sample: Sample, active: Prototypes, ids: Labels) -> None:
        super().__init__(fit, sample)
        if not isinstance(fit.model, Prototypes):
            raise Unsupported("only a method that leaves noise can cluster noise: hdbscan, evoc")
        self._fitted = fit.model
        self._order = np.argsort(ids)
        self._old_ids = ids
        self.model = beside(active, fit.model)

    def assign(self, ids: Sequence[str], vectors: Vectors, active: Labels) -> Assigned:
        """As ``Rule.assign``; points in a cluster stay in it."""
        found = self.model.assign(vectors)
        noise = active == NOISE
        if noise.any():
            at = np.nonzero(noise)[0]
            remined = self._of_fit([ids[i] for i in at.tolist()], vectors[at])
            found.labels[at], found.confidence[at] = remined
        known = np.isin(active, self._old_ids)
        rows = np.searchsorted(self._old_ids, active[known], sorter=self._order)
        found.labels[known] = self._order[rows]
        return found

    def _of_fit(self, ids: Sequence[str], vectors: Vectors) -> Assigned:
        found = self._fitted.assign(vectors)
        self._own_labels(ids, vectors, found.labels)
        moved = np.where(found.labels < 0, found.labels, found.labels + len(self._old_ids))
        return Assigned(moved.astype(np.int32), found.confidence)


def checksums(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """One number for each of ``vectors`` (N, D), by which a changed one is known; (N,)."""
    weights = np.random.default_rng(0).integers(2**64, size=vectors.shape[1], dtype=np.uint64)
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    sums = np.empty(len(bits), np.uint64)
    for rows in blocks(*bits.shape):  # the product is made of a copy twice as large
        sums[rows] = bits[rows] @ weights
    return sums


class Totals:
    """What an assignment pass says of the clusters, whoever holds the points: sums and a sample.

    Memory is that of K x D sums and of the sample, whatever the number of points.
    """

    def __init__(self, centroids: Vectors, sample: int, fields: Sequence[str] = ()) -> None:
        """Prepare: ``sample`` vectors are kept, and the values of payload ``fields`` counted."""
        self.centroids = centroids
        self.values = ValueCounts(fields)
        self.tally = Tally(centroids)
        self._wanted_sample = sample
        self._sample: list[Vectors] = []
        self._sample_labels: list[Labels] = []
        self.sample_len = 0
        self._confidence = 0.0

    def count(self, block: VectorBlock, found: Assigned) -> None:
        """Counts a block of the scan, whose points got the clusters ``found``."""
        self.values.add(block.payloads, found.labels)
        self.tally.add(block.vectors, found.labels)
        self._confidence += float(found.confidence[found.labels >= 0].sum())
        # Ids are hashes, so the first points of a scan are a uniform sample.
        self._keep(block.vectors, found.labels)

    def merge(self, other: Totals) -> None:
        """Adds what ``other``, of the same model, has counted."""
        self.values.merge(other.values)
        self.tally.merge(other.tally)
        self._confidence += other._confidence
        for vectors, labels in zip(other._sample, other._sample_labels, strict=True):
            self._keep(vectors, labels)

    def _keep(self, vectors: Vectors, labels: Labels) -> None:
        missing = self._wanted_sample - self.sample_len
        if missing > 0 and len(vectors):
            self._sample.append(vectors[:missing].copy())
            self._sample_labels.append(labels[:missing].copy())
            self.sample_len += len(self._sample[-1])

    def sampled(self) -> Vectors:
        """The vectors of the sample, (M, D)."""
        return np.concatenate(self._sample) if self._sample else self.centroids[:0]

    def sampled_labels(self) -> Labels:
        """The rows that the vectors of the sample were given, int32 (M,)."""
        return np.concatenate(self._sample_labels) if self._sample else np.zeros(0, np.int32)

    @property
    def confidence(self) -> float:
        """Mean confidence of the points that are not noise; 0 if all are."""
        return self._confidence / max(1, int(self.tally.sizes.sum()))
