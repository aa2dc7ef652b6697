"""The assignment pass of a run: the cluster of every point, and sums over the points."""

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
    """Gives any point its cluster: the fit's own label if the fit gave it one, else the model's.

    It holds 28 bytes per point of the sample, and no vectors.
    """

    def __init__(self, fit: Fit, sample: Sample) -> None:
        self.model: Model = fit.model
        self._labels: Labels | None = None
        if fit.labels is not None:
            order = np.argsort(sample.ids["high"], kind="stable")
            self._ids, self._labels = sample.ids[order], fit.labels[order]
            self._sums = checksums(sample.vectors)[order]

    def assign(self, ids: Sequence[str], vectors: Vectors, active: Labels) -> Assigned:
        """The clusters, as rows of the model, of the points ``ids`` with ``vectors`` (B, D).

        ``active`` int32 (B,) are the ids of their active clusters.
        """
        del active  # only a rule for noise asks where a point was
        found = self.model.assign(vectors)
        self._own_labels(ids, vectors, found.labels)
        return found

    def _own_labels(self, ids: Sequence[str], vectors: Vectors, labels: Labels) -> None:
        """Replaces ``labels`` by the fit's own, for the points that the fit has seen."""
        if self._labels is None:
            return
        rows = find_ids(self._ids, pack_ids(ids))
        # A point that was replaced since is another picture.
        seen = (rows >= 0) & (self._sums[rows] == checksums(vectors))
        labels[seen] = self._labels[rows[seen]]


class NoiseRule(Rule):
    """Leaves every point in its active cluster, and gives noise the clusters of a fit of the noise.

    Its model has the clusters of the active run (rows 0 to K-1, with ``ids``) and those of the fit
    (rows from K on) beside each other.
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
            fitted = self._assign_noise([ids[i] for i in at.tolist()], vectors[at])
            found.labels[at], found.confidence[at] = fitted
        known = np.isin(active, self._old_ids)
        rows = np.searchsorted(self._old_ids, active[known], sorter=self._order)
        found.labels[known] = self._order[rows]
        return found

    def _assign_noise(self, ids: Sequence[str], vectors: Vectors) -> Assigned:
        """The clusters that the fit of the noise gives, as rows of the whole model."""
        found = self._fitted.assign(vectors)
        self._own_labels(ids, vectors, found.labels)
        moved = np.where(found.labels < 0, found.labels, found.labels + len(self._old_ids))
        return Assigned(moved.astype(np.int32), found.confidence)


def checksums(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """A number for each of ``vectors`` (N, D), uint64 (N,), which differs if the vector does."""
    weights = np.random.default_rng(0).integers(2**64, size=vectors.shape[1], dtype=np.uint64)
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    sums = np.empty(len(bits), np.uint64)
    for rows in blocks(*bits.shape):  # the product is made of a copy twice as large
        sums[rows] = bits[rows] @ weights
    return sums


class Totals:
    """The sums over the points of an assignment pass, by cluster, and a sample of the points.

    Memory is K x D sums and the sample, whatever the number of points.
    """

    def __init__(self, centroids: Vectors, sample: int, fields: Sequence[str] = ()) -> None:
        """``sample`` vectors are to be kept, and the values of payload ``fields`` counted."""
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
        """Adds the sums of ``other``, which has the same centroids."""
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
        """The clusters of the vectors of the sample, as rows of the model, int32 (M,)."""
        return np.concatenate(self._sample_labels) if self._sample else np.zeros(0, np.int32)

    @property
    def confidence(self) -> float:
        """Mean confidence of the points that are not noise; 0 if all of them are noise."""
        return self._confidence / max(1, int(self.tally.sizes.sum()))
