"""The near-duplicates of a whole collection, in two passes over the store. Blocking.

The first pass keeps 64 bytes and the id of each point; the second reads the vectors of the
candidates only. Finding and grouping the candidates takes 200 to 1,000 bytes a point for a while.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clusterer.fits.lsh import BITS, plan_lsh, verified_groups
from clusterer.runs.points import join_ids, pack_ids, unpack_ids
from clusterer.runs.sampling import sample_vectors
from shoal.store.gateway import Store
from shoal.store.model import Record, VectorScan
from shoal.vectors import Vectors

_MOST_LISTED = 1_000
"""The most members of a group that are listed."""
_CHUNK = 512
"""Points of one read."""
_ROUNDING = 1e-6
"""The most that rounding takes from a cosine."""
_SAMPLE = 5_000
"""Points of the sample; the planes pass near their mean."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A member of a group; ``cosine`` is that with the first member."""

    id: str
    key: str
    uri: str
    cosine: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Points that are near-duplicates of the first of ``members``.

    ``size`` counts all of them, ``members`` lists the nearest, by nearness.
    """

    size: int
    members: tuple[Duplicate, ...]


@dataclass(frozen=True, slots=True)
class DuplicateFinder:
    """Finds the near-duplicates of one vector of a collection.

    ``check`` is called for every block and may raise.
    """

    store: Store
    collection: str
    vector: str
    threshold: float
    block_size: int
    check: Callable[[], None]

    def groups(self) -> Iterator[DuplicateGroup]:
        """Groups of near-duplicates, largest first.

        Raises:
            InvalidArgument: the threshold is out of range.
        """
        ids, labels = self._labels()
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        members = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        for rows in sorted(members, key=lambda rows: (-len(rows), int(rows[0]))):
            self.check()
            first = int(labels[rows[0]])
            others = rows[rows != first]
            group = self._group(unpack_ids(ids[[first]])[0], unpack_ids(ids[others]))
            if group is not None:
                yield group

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The packed ids (N,), and for each the row of the point that stands for its group."""
        options = VectorScan(vector=self.vector, fields=(), block_size=self.block_size)
        sample = sample_vectors(
            self.store,
            self.collection,
            options,
            size=_SAMPLE,
            seed=0,
            progress=lambda _: self.check(),
        ).vectors
        mean = sample.sum(axis=0) / np.float32(max(1, len(sample)))
        lsh = plan_lsh(mean, threshold=self.threshold, seed=0)
        # Points that come in during the scan are left to the next time.
        signatures = np.empty((self.store.count(self.collection), BITS // 64), np.uint64)
        parts, taken = [], 0
        for block in self.store.scan(self.collection, options):
            self.check()
            room = min(len(block), len(signatures) - taken)
            if room:
                parts.append(pack_ids(block.ids[:room]))
                signatures[taken : taken + room] = lsh.signatures(block.vectors[:room])
                taken += room
        ids = join_ids(parts)
        pairs = lsh.candidates(signatures[:taken])
        del signatures
        dim = len(mean)
        groups = verified_groups(
            pairs, lambda rows: self._fetch(ids[rows], dim), n=len(ids), threshold=self.threshold
        )
        return ids, groups

    def _fetch(self, ids: np.ndarray, dim: int) -> Vectors:
        """The vectors of ``ids``; a point that is gone gets zeros, which are near nothing."""
        self.check()
        found = self.store.retrieve(self.collection, unpack_ids(ids), vectors=(self.vector,))
        vectors = np.zeros((len(ids), dim), np.float32)
        for at, record in enumerate(found):
            if record is not None and self.vector in record.vectors:
                vectors[at] = record.vectors[self.vector]
        return vectors

    def _group(self, first: str, others: list[str]) -> DuplicateGroup | None:
        """The group of ``first`` and of the ``others`` that are still there and near to it.

        None if nothing is: points were deleted or replaced meanwhile.
        """
        (head,) = self.store.retrieve(self.collection, [first], vectors=(self.vector,))
        if head is None or self.vector not in head.vectors:
            return None
        near: list[Duplicate] = []
        size = 1
        for at in range(0, len(others), _CHUNK):
            self.check()
            chunk = others[at : at + _CHUNK]
            for record in self.store.retrieve(self.collection, chunk, vectors=(self.vector,)):
                if record is None or self.vector not in record.vectors:
                    continue
                cosine = float(record.vectors[self.vector] @ head.vectors[self.vector])
                if cosine >= self.threshold - _ROUNDING:
                    size += 1
                    near.append(_duplicate(record, cosine))
            near = heapq.nlargest(_MOST_LISTED - 1, near, key=lambda each: each.cosine)
        return DuplicateGroup(size, (_duplicate(head, 1.0), *near)) if near else None


def _duplicate(record: Record, cosine: float) -> Duplicate:
    key, uri = (str(record.payload.get(name, "")) for name in ("key", "uri"))
    return Duplicate(record.id, key, uri, cosine)
