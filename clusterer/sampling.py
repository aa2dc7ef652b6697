"""A uniform sample of a collection's vectors in one short scan."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from shoal.store.gateway import Store
from shoal.store.model import Block, Scan
from shoal.vectors import Vectors


def sample_vectors(  # noqa: PLR0913 - what, how much, from where, and whom to tell
    store: Store,
    collection: str,
    options: Scan,
    *,
    size: int,
    seed: int,
    progress: Callable[[int], None],
) -> Vectors:
    """At most ``size`` vectors, (M, D) float32, of ``options.vector``.

    Ids are UUIDv5, that is SHA-1 hashes, so the points that follow a random id in the order of
    ids are a uniform sample: no other scan is needed, however large the collection. The scan
    starts at an id drawn from ``seed`` and goes round the end once.
    """
    first = str(uuid.UUID(bytes=np.random.default_rng(seed).bytes(16)))
    dim = store.collection(collection).vector(options.vector or "").dim
    sample = np.empty((size, dim), np.float32)
    taken = 0
    for block in store.scan(collection, replace(options, start=first)):
        taken += _copy(block, sample[taken:], len(block))
        progress(taken)
        if taken == size:
            return sample
    for block in store.scan(collection, options):
        before = sum(point < first for point in block.ids)
        taken += _copy(block, sample[taken:], before)
        progress(taken)
        if taken == size or before < len(block):
            break
    return sample[:taken]


def _copy(block: Block, room: Vectors, most: int) -> int:
    """Copies the first ``most`` vectors of ``block``, as far as there is room; how many."""
    count = min(most, len(room))
    if block.vectors is not None:
        room[:count] = block.vectors[:count]
    return count
