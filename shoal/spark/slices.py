"""Cuts the store into equal ranges of ids, of which each Spark task scans one.

Ids are UUIDv5, that is hashes, so equal ranges hold equal numbers of points, give or take their
square root, and any range is a uniform sample. A range is all that a task is told: it can be
repeated anywhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, overload

import numpy as np

from shoal.store import Block, Scan, Store, VectorBlock, VectorScan

_SPACE: Final = 2**128


@dataclass(frozen=True, slots=True)
class Slice:
    """The ids from ``start`` on and before ``end``, as numbers of 128 bits."""

    start: int
    end: int

    @property
    def first(self) -> str:
        """The least id in the slice; no point need have it."""
        return str(uuid.UUID(int=self.start))

    @property
    def beyond(self) -> str | None:
        """The least id after the slice; None for the last slice."""
        return None if self.end >= _SPACE else str(uuid.UUID(int=self.end))


def slices_of(parts: int) -> list[Slice]:
    """The whole space of ids, cut into ``parts`` equal slices."""
    return _cut(0, _SPACE, parts)


def window_of(share: float, parts: int, *, seed: int) -> list[Slice]:
    """About ``parts`` slices that hold a ``share`` (0 to 1) of all ids, from a random id on.

    They begin where the sample of a run in one process does (ADR 2), and after the last id go on
    from the first.
    """
    start = int.from_bytes(np.random.default_rng(seed).bytes(16), "big")
    end = start + min(_SPACE, int(share * _SPACE))
    if end <= _SPACE:
        return _cut(start, end, parts)
    over = end - _SPACE
    first = max(1, round(parts * (_SPACE - start) / (end - start)))
    return _cut(start, _SPACE, first) + _cut(0, over, max(1, parts - first))


def _cut(start: int, end: int, parts: int) -> list[Slice]:
    bounds = [start + (end - start) * i // parts for i in range(parts + 1)]
    return [Slice(a, b) for a, b in pairwise(bounds) if a < b]


@overload
def scan_slice(
    store: Store, collection: str, part: Slice, options: VectorScan
) -> Iterator[VectorBlock]: ...


@overload
def scan_slice(store: Store, collection: str, part: Slice, options: Scan) -> Iterator[Block]: ...


def scan_slice(store: Store, collection: str, part: Slice, options: Scan) -> Iterator[Block]:
    """The points of ``part`` that ``options`` select, as ``Store.scan`` gives them."""
    beyond = part.beyond
    for block in store.scan(collection, replace(options, start=part.first)):
        kept = len(block) if beyond is None else sum(point < beyond for point in block.ids)
        if kept == len(block):
            yield block
            continue
        if kept:
            yield block.first(kept)
        return
