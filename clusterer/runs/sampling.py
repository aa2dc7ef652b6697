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
    """At most ``size`` points with their vectors called ``options.vector``.

    Ids are UUIDv5, that is SHA-1 hashes, so the points that follow a random id in the order of
    ids are a uniform sample: no other scan is needed, however large the collection. The scan
    starts at an id drawn from ``seed``, and after the last id goes on from the first.
    """
    dim = store.collection(collection).vector(options.vector).dim
    vectors = np.empty((size, dim), np.float32)
    ids: list[npt.NDArray[np.void]] = []
    taken = 0
    for block, count in sampled_blocks(store, collection, options, size=size, seed=seed):
        vectors[taken : taken + count] = block.vectors[:count]
        ids.append(pack_ids(block.ids[:count]))
        taken += count
        progress(taken)
    return Sample(join_ids(ids), vectors[:taken])


def sampled_blocks(
    store: Store, collection: str, options: VectorScan, *, size: int, seed: int
) -> Iterator[tuple[VectorBlock, int]]:
    """The sample of ``sample_vectors`` in blocks, and how many points at the start of each count.

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
