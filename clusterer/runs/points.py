"""The points of a run in memory: 28 bytes each, whatever the dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.vectors import Labels

UNASSIGNED = -2
"""The label of an empty slot. (To a slot NOISE, -1, is a cluster id like any other.)"""

Rows: TypeAlias = npt.NDArray[np.int64]

_HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])


def pack_ids(ids: Sequence[str]) -> npt.NDArray[np.void]:
    """UUID strings as 16 bytes each, (N,), in the order of the strings."""
    return np.frombuffer(bytes.fromhex("".join(ids).replace("-", "")), dtype=_HALVES)


def unpack_ids(packed: npt.NDArray[np.void]) -> list[str]:
    """The UUID strings of ``packed``, (N,)."""
    digits = packed.tobytes().hex()
    cut = (0, 8, 12, 16, 20, 32)
    whole = (digits[at : at + 32] for at in range(0, len(digits), 32))
    return ["-".join(each[a:b] for a, b in pairwise(cut)) for each in whole]


def join_ids(parts: Sequence[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """Packed ids, (N,), in one array."""
    # Without a dtype NumPy would use this machine's byte order.
    return np.concatenate(parts, dtype=_HALVES) if parts else np.zeros(0, _HALVES)


def find_ids(sorted_ids: npt.NDArray[np.void], wanted: npt.NDArray[np.void]) -> Rows:
    """The row of each of ``wanted`` (M,) in ``sorted_ids`` (N,), ascending; -1 for a missing id."""
    rows = np.searchsorted(sorted_ids["high"], wanted["high"])
    found = np.full(len(wanted), -1, np.int64)
    inside = rows < len(sorted_ids)
    same = np.zeros(len(wanted), bool)
    # Two version-5 ids that share their first 64 bits do not happen: 2^-60 per pair.
    same[inside] = sorted_ids[rows[inside]] == wanted[inside]
    found[same] = rows[same]
    return found


class PointTable:
    """Ids and labels of the points that a run has seen, in the order of ids.

    ``rows``, ``active`` and ``inactive`` are int32 (N,): the row of the run's model, and the
    labels that the two slots held when the point was read.
    """

    def __init__(self) -> None:
        self._ids: list[npt.NDArray[np.void]] = []
        self._labels: list[npt.NDArray[np.int32]] = []
        self.ids = np.zeros(0, _HALVES)
        self.rows: Labels = np.zeros(0, np.int32)
        self.active: Labels = np.zeros(0, np.int32)
        self.inactive: Labels = np.zeros(0, np.int32)

        self.appended = 0
        """The number of rows so far, sealed or not."""

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, ids: Sequence[str], rows: Labels, active: Labels, inactive: Labels) -> None:
        """Adds a block of a scan, whose ids ascend and are above all earlier ones."""
        self._ids.append(pack_ids(ids))
        self.appended += len(ids)
        self._labels.append(np.stack([rows, active, inactive]).astype(np.int32))

    def seal(self) -> None:
        """Ends the appending; afterwards the arrays may be read."""
        if self._ids:
            self.ids = join_ids(self._ids)
            self.rows, self.active, self.inactive = np.concatenate(self._labels, axis=1)
        self._ids, self._labels = [], []

    def find(self, ids: Sequence[str]) -> Rows:
        """The row of each of ``ids``, (M,); -1 for an id that the table lacks."""
        return find_ids(self.ids, pack_ids(ids))
