"""The near-duplicates of a whole collection, in two passes over the store. Blocking.

The first pass keeps 64 bytes and the id of each point; the second reads the vectors of the
candidates only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clusterer.duplicates import Rows, plan_lsh, verified_groups
from clusterer.points import join_ids, pack_ids, unpack_ids
from clusterer.sampling import sample_vectors
from shoal.store.gateway import Store
from shoal.store.model import Scan
from shoal.v1 import clusterer_pb2 as pb
from shoal.vectors import Vectors

_SAMPLE = 5_000
"""Points whose mean the planes pass near."""


@dataclass(frozen=True, slots=True)
class DuplicateFinder:
    """What to look through. ``check`` is called for every block and may raise."""

    store: Store
    collection: str
    vector: str
    threshold: float
    block_size: int
    check: Callable[[], None]

    def groups(self) -> Iterator[pb.DuplicateGroup]:
        """Groups of near-duplicates, largest first; their members by nearness to the first.

        Raises:
            InvalidArgument: the threshold is out of range.
        """
        ids, labels = self._labels()
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        members = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        for rows in sorted(members, key=lambda rows: (-len(rows), int(rows[0]))):
            self.check()
            yield self._message(unpack_ids(ids[rows]), int(np.flatnonzero(labels[rows] == rows)[0]))

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Packed ids (N,) and, for each, the row that stands for its group."""
        options = Scan(vector=self.vector, fields=(), block_size=self.block_size)
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
        parts, signatures = [], [np.zeros((0, 8), np.uint64)]
        for block in self.store.scan(self.collection, options):
            self.check()
            if block.vectors is not None:
                parts.append(pack_ids(block.ids))
                signatures.append(lsh.signatures(block.vectors))
        ids = join_ids(parts)
        pairs = lsh.candidates(np.concatenate(signatures))
        groups = verified_groups(
            pairs, lambda rows: self._fetch(ids, rows), n=len(ids), threshold=self.threshold
        )
        return ids, groups

    def _fetch(self, ids: np.ndarray, rows: Rows) -> Vectors:
        """The vectors of ``rows``; zeros, which are near nothing, for points that are gone."""
        self.check()
        dim = self.store.collection(self.collection).vector(self.vector).dim
        found = self.store.retrieve(self.collection, unpack_ids(ids[rows]), vectors=(self.vector,))
        vectors = np.zeros((len(rows), dim), np.float32)
        for at, record in enumerate(found):
            if record is not None and self.vector in record.vectors:
                vectors[at] = record.vectors[self.vector]
        return vectors

    def _message(self, ids: list[str], first: int) -> pb.DuplicateGroup:
        records = self.store.retrieve(self.collection, ids, vectors=(self.vector,))
        head = records[first]
        made = pb.DuplicateGroup()
        if head is None or self.vector not in head.vectors:
            return made
        scored = [
            (
                1.0
                if at == first
                else float(record.vectors[self.vector] @ head.vectors[self.vector]),
                at,
                record,
            )
            for at, record in enumerate(records)
            if record is not None and self.vector in record.vectors
        ]
        for cosine, at, record in sorted(scored, key=lambda one: (one[1] != first, -one[0])):
            made.members.add(
                id=ids[at],
                key=str(record.payload.get("key", "")),
                uri=str(record.payload.get("uri", "")),
                cosine=cosine,
            )
        return made
