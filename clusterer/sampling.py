"""A uniform sample of a collection's vectors in one short scan."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from clusterer.points import join_ids, pack_ids
from shoal.store.gateway import Store
from shoal.store.model import Block, Scan
from shoal.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Sample:
    """``ids`` as ``pack_ids`` packs them, (M,); ``vectors`` float32 (M, D), unit length."""

    ids: npt.NDArray[np.void]
    vectors: Vectors


def sample_vectors(  # noqa: PLR0913 - what, how much, from where, and whom to tell
    store: Store,
    collection: str,
    options: Scan,
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
    first = str(uuid.UUID(bytes=np.random.default_rng(seed).bytes(16)))
    dim = store.collection(collection).vector(options.vector or "").dim
    room = _Room(np.empty((size, dim), np.float32))
    for block in store.scan(collection, replace(options, start=first)):
        room.take(block, len(block))
        progress(room.taken)
        if room.full:
            return room.sample()
    for block in store.scan(collection, options):
        before = sum(point < first for point in block.ids)
        room.take(block, before)
        progress(room.taken)
        if room.full or before < len(block):
            break
    return room.sample()


class _Room:
    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._ids: list[npt.NDArray[np.void]] = []
        self.taken = 0

    @property
    def full(self) -> bool:
        return self.taken == len(self._vectors)

    def take(self, block: Block, most: int) -> None:
        """Takes the first ``most`` points of ``block``, as far as there is room."""
        count = min(most, len(self._vectors) - self.taken)
        if block.vectors is None or not count:
            return
        self._vectors[self.taken : self.taken + count] = block.vectors[:count]
        self._ids.append(pack_ids(block.ids[:count]))
        self.taken += count

    def sample(self) -> Sample:
        ids = join_ids(self._ids)
        return Sample(ids, self._vectors[: self.taken])
