"""A uniform sample of a collection's vectors in one short scan."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from clusterer.runs.points import join_ids, pack_ids
from shoal.store.gateway import Store
from shoal.store.model import VectorBlock, VectorScan
from shoal.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Sample:
    """``ids`` as ``pack_ids`` packs them, (M,); ``vectors`` float32 (M, D), unit length."""

    ids: npt.NDArray[np.void]
    vectors: Vectors


def sample_vectors(  # noqa: PLR0913 - what, how much, from where, and whom to tell
    store: Store,
    collection: str,
    options: VectorScan,
    *,
    size: int,
    seed: int,
    progress: Callable[[int], None],
) -> Sample:
    """At most ``size`` points with their vectors of the name ``options.vector``.

    Ids are UUIDv5, that is SHA-1 hashes, so the points that follow a random id in the order of
    ids are a uniform sample: no other scan is needed, however large the collection. The scan
    starts at an id drawn from ``seed`` and goes round the end once.
    """
    dim = store.collection(collection).vector(options.vector).dim
    room = _Room(np.empty((size, dim), np.float32))
    for block, count in sampled_blocks(store, collection, options, size=size, seed=seed):
        room.take(block, count)
        progress(room.taken)
    return room.sample()


def sampled_blocks(
    store: Store, collection: str, options: VectorScan, *, size: int, seed: int
) -> Iterator[tuple[VectorBlock, int]]:
    """The sample of ``sample_vectors`` in blocks, of each of which the first so many count.

    Points that lack the vector are in no block.
    """
    first = str(uuid.UUID(bytes=np.random.default_rng(seed).bytes(16)))
    left = size
    for block in store.scan(collection, replace(options, start=first)):
        count = min(left, len(block))
        yield block, count
        left -= count
        if not left:
            return
    for block in store.scan(collection, options):
        before = sum(point < first for point in block.ids)
        count = min(left, before)
        if count:
            yield block, count
            left -= count
        if not left or before < len(block):
            return


class _Room:
    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._ids: list[npt.NDArray[np.void]] = []
        self.taken = 0

    def take(self, block: VectorBlock, count: int) -> None:
        """Takes the first ``count`` points of ``block``."""
        self._vectors[self.taken : self.taken + count] = block.vectors[:count]
        self._ids.append(pack_ids(block.ids[:count]))
        self.taken += count

    def sample(self) -> Sample:
        ids = join_ids(self._ids)
        return Sample(ids, self._vectors[: self.taken])
