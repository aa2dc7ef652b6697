from __future__ import annotations

import uuid

import numpy as np

from clusterer.runs.points import PointTable, pack_ids, unpack_ids
from shoal.store.model import point_id

IDS = sorted(point_id(str(i)) for i in range(500))


def table(rows: list[int], active: list[int], inactive: list[int]) -> PointTable:
    made = PointTable()
    columns = [np.array(c, np.int32) for c in (rows, active, inactive)]
    half = len(rows) // 2
    for part in (slice(0, half), slice(half, len(rows))):  # as a scan appends: in blocks
        made.append(IDS[: len(rows)][part], *(c[part] for c in columns))
    made.seal()
    return made


def test_point_table_ids_survive_packing_in_blocks() -> None:
    """Ids come back as they were, also when blocks were joined."""
    assert unpack_ids(pack_ids(IDS)) == IDS
    zeros = [0] * len(IDS)
    assert unpack_ids(table(zeros, zeros, zeros).ids) == IDS


def test_point_table_finds_rows_and_misses() -> None:
    """Each id's row is found; an id that is not there is -1, wherever it would sort."""
    zeros = [0] * 200
    made = table(zeros, zeros, zeros)
    strangers = [str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1)), IDS[300]]
    assert made.find([IDS[3], *strangers, IDS[199]]).tolist() == [3, -1, -1, -1, 199]
