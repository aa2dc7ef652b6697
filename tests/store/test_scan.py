from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest

from shoal.errors import InvalidArgument
from shoal.store import (
    Block,
    Filter,
    IdIn,
    Payload,
    Point,
    Query,
    Range,
    Scan,
    VectorBlock,
    VectorScan,
    point_id,
    records_name,
)

if TYPE_CHECKING:
    from tests.store.conftest import Room

PAYLOADS: list[Payload] = [
    {"n": i, "flag": i % 2 == 0, "clusters": {"default": {"a": i % 3}, "other": {"a": 1}}}
    for i in range(50)
]


def test_scan_gives_every_point_once_by_id(room: Room) -> None:
    """Blocks are consecutive, of the size asked for but for the last, and never empty."""
    ids = room.fill(PAYLOADS)
    for size in (1, 7, 25, 50, 4096):
        blocks = list(room.store.scan(room.name, Scan(block_size=size)))
        assert [i for block in blocks for i in block.ids] == sorted(ids)
        assert [len(block) for block in blocks] == [
            min(size, 50 - start) for start in range(0, 50, size)
        ]
        assert not any(isinstance(block, VectorBlock) for block in blocks)


def test_scan_of_nothing_has_no_blocks(room: Room) -> None:
    """No points, no blocks."""
    assert list(room.store.scan(room.name)) == []
    room.fill(PAYLOADS)
    assert list(room.store.scan(room.name, Scan(where=Filter((Range("n", lt=0),))))) == []


def test_scan_reads_vectors_as_one_array(room: Room) -> None:
    """Vectors come as float32 (B, D), C-contiguous, row by row those of the ids."""
    points = [room.point(i, seed=i) for i in range(20)]
    room.store.upsert(room.name, points)
    expected = {p.id: p.vectors["tiny"] for p in points}
    for name in ("tiny", ""):
        for block in room.store.scan(room.name, VectorScan(vector=name, block_size=6)):
            assert block.vectors.dtype == np.float32
            assert block.vectors.flags.c_contiguous
            assert block.vectors.shape == (len(block), 8)
            rows = np.stack([expected[i] for i in block.ids])
            np.testing.assert_allclose(block.vectors, rows, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(block.vectors, axis=1), 1, atol=1e-5)


def test_scan_of_vectors_skips_points_without(room: Room) -> None:
    """Only points that have the vector come; a block of none is left out."""
    name = records_name(room.name)
    bare = [Point(point_id(f"bare {i}"), {}, {"kind": "run"}) for i in range(9)]
    room.store.upsert(name, [*bare, room.point("full", {"kind": "cluster"})])
    blocks = list(room.store.scan(name, VectorScan(vector="tiny", block_size=2)))
    assert [block.ids for block in blocks] == [[point_id("full")]]
    assert sum(len(block) for block in room.store.scan(name)) == 10


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (None, {"n": 3, "flag": False, "clusters": {"default": {"a": 0}, "other": {"a": 1}}}),
        ((), {}),
        (("n",), {"n": 3}),
        (["flag", "n"], {"n": 3, "flag": False}),
        (("clusters.default",), {"clusters": {"default": {"a": 0}}}),
        (("clusters.default.a", "n"), {"n": 3, "clusters": {"default": {"a": 0}}}),
        (("nowhere",), {}),
    ],
)
def test_scan_reads_the_fields_asked_for(
    room: Room, fields: tuple[str, ...] | None, expected: Payload
) -> None:
    """All fields, none, or some, also inside objects."""
    room.fill(PAYLOADS)
    options = Scan(fields=fields, start=point_id("3"), block_size=1)
    block = next(iter(room.store.scan(room.name, options)))
    assert block.ids == [point_id("3")]
    assert block.payloads == [expected]


def test_scan_starts_at_an_id_that_need_not_exist(room: Room) -> None:
    """``start`` is inclusive, and any UUID will do."""
    ids = sorted(room.fill(PAYLOADS))
    between = str(uuid.UUID(int=uuid.UUID(ids[30]).int - 1))
    for start, expected in (
        (ids[30], ids[30:]),
        (between, ids[30:]),
        (str(uuid.UUID(int=0)), ids),
        (str(uuid.UUID(int=2**128 - 1)), []),
    ):
        blocks = room.store.scan(room.name, Scan(start=start, block_size=9))
        assert [i for block in blocks for i in block.ids] == expected


def test_scan_filters(room: Room) -> None:
    """Only the points of the filter come, in full blocks."""
    ids = room.fill(PAYLOADS)
    options = Scan(where=Filter((Range("n", gte=10, lt=30),)), block_size=8)
    blocks = list(room.store.scan(room.name, options))
    assert [i for block in blocks for i in block.ids] == sorted(ids[10:30])
    assert [len(block) for block in blocks] == [8, 8, 4]


@pytest.mark.parametrize("seed", range(2))
def test_scan_survives_writes_between_blocks(room: Room, seed: int) -> None:
    """Whatever is written meanwhile, points that stay come exactly once, with fresh payloads."""
    rng = random.Random(seed)
    ids = room.fill([{"n": i} for i in range(60)])
    stay, go = set(ids[:40]), ids[40:]
    rng.shuffle(go)
    seen: list[str] = []
    touched: dict[str, int] = {}
    for step, block in enumerate(
        room.store.scan(room.name, VectorScan(vector="tiny", block_size=7))
    ):
        for i, payload in zip(block.ids, block.payloads, strict=True):
            assert payload.get("touched") == touched.get(i)
        seen.extend(block.ids)
        room.store.upsert(room.name, [room.point(f"new {seed} {step} {k}") for k in range(5)])
        if go:
            room.store.delete(room.name, _only(go.pop()))
        target = rng.choice(ids[:40])
        touched[target] = step
        room.store.set_payload(room.name, {"touched": step}, where=_only(target))
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)


def _only(i: str) -> Filter:
    return Filter((IdIn((i,)),))


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_scan_refuses_a_bad_block_size(room: Room, size: int) -> None:
    """Refused at the call, not at the first block."""
    with pytest.raises(InvalidArgument, match="block_size"):
        room.store.scan(room.name, Scan(block_size=size))


def test_scan_refuses_bad_options_at_once(room: Room) -> None:
    """An unknown vector, a field that is no path, a start that is no id: at the call."""
    for options in (
        VectorScan(vector="huge"),
        Scan(fields=("a..b",)),
        Scan(start="7"),
        Scan(where=Filter((Range("n"),))),
    ):
        with pytest.raises(InvalidArgument):
            room.store.scan(room.name, options)


def test_search_is_not_disturbed_by_an_open_scan(room: Room) -> None:
    """A scan that is never finished holds nothing."""
    room.fill(PAYLOADS)
    iterator = room.store.scan(room.name, Scan(block_size=1))
    next(iterator)
    query = Query(room.point("q").vectors["tiny"], limit=3)
    assert len(room.store.search(room.name, query)) == 3


def test_block_gives_its_first_points(room: Room) -> None:
    """The beginning of a block is a block of the same kind, with vectors if it has them."""
    room.fill(PAYLOADS[:5])
    (plain,) = room.store.scan(room.name)
    (full,) = room.store.scan(room.name, VectorScan(vector="tiny"))
    assert plain.first(2) == Block(plain.ids[:2], plain.payloads[:2])
    head = full.first(2)
    assert (head.ids, head.payloads) == (full.ids[:2], full.payloads[:2])
    np.testing.assert_array_equal(head.vectors, full.vectors[:2])
