from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from reclustering import DIM, VECTOR, Bench, blobs

from clusterer.runs.points import unpack_ids
from clusterer.runs.sampling import Sample, sample_vectors, sampled_blocks
from shoal.store import Store, StoreConfig, open_store
from shoal.store.model import Filter, Point, Range, VectorScan, point_id
from shoal.values import VectorInfo

N = 20
SEEDS = [15, 9, 0, 5, 2, 1]
"""Their samples begin before all of N points, then after 2, 7, 13, 16 and all of them."""


OPTIONS = VectorScan(vector=VECTOR, fields=(), block_size=6)


@pytest.fixture
def ids(quick: Bench) -> list[str]:
    """The ids of N points, ascending."""
    return sorted(quick.put(blobs(N)))


def sample(store: Store, size: int, options: VectorScan = OPTIONS, *, seed: int = 0) -> Sample:
    return sample_vectors(store, "toys", options, size=size, seed=seed, progress=lambda _: None)


def start_of(seed: int) -> str:
    """The id from which a sample under ``seed`` begins."""
    return str(uuid.UUID(bytes=np.random.default_rng(seed).bytes(16)))


def in_order(ids: list[str], seed: int) -> list[str]:
    """``ids``, ascending, in the order of a sample: from its start to the end, then the rest."""
    start = start_of(seed)
    return [one for one in ids if one >= start] + [one for one in ids if one < start]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 6, 13, N - 1, N])
def test_sample_goes_round_once_from_where_its_seed_says(
    quick: Bench, ids: list[str], size: int, seed: int
) -> None:
    """The points that follow a random id, round the end if need be; none twice."""
    found = sample(quick.store, size, seed=seed)
    assert unpack_ids(found.ids) == in_order(ids, seed)[:size]
    np.testing.assert_array_equal(found.vectors, quick.vectors(unpack_ids(found.ids)))
    assert found.vectors.dtype == np.float32


@pytest.mark.parametrize("block_size", [1, 4, 5, N, 100])
def test_sample_does_not_depend_on_the_blocks(
    quick: Bench, ids: list[str], block_size: int
) -> None:
    """However the store cuts its scan, the sample is the same, and so is the last progress."""
    told: list[int] = []
    options = replace(OPTIONS, block_size=block_size)
    found = sample_vectors(quick.store, "toys", options, size=N, seed=0, progress=told.append)
    assert unpack_ids(found.ids) == in_order(ids, 0)
    assert told[-1] == N
    assert told == sorted(set(told))
    assert told[0] == min(block_size, sum(one >= start_of(0) for one in ids))


def test_sample_of_more_than_there_is_has_all(quick: Bench, ids: list[str]) -> None:
    """Points that went since they were counted leave no empty rows behind."""
    found = sample(quick.store, N + 30, seed=2)
    assert unpack_ids(found.ids) == in_order(ids, 2)
    assert found.vectors.shape == (N, DIM)


def test_sample_of_nothing_is_empty(quick: Bench) -> None:
    """No point, no row; the dimension is that of the collection."""
    found = sample(quick.store, 5)
    assert len(found.ids) == 0
    assert found.vectors.shape == (0, DIM)


def test_sample_takes_only_what_the_filter_selects(quick: Bench, ids: list[str]) -> None:
    """The rest is as if it were not there."""
    some = sorted(point_id(str(i)) for i in range(7))
    found = sample(quick.store, N, replace(OPTIONS, where=Filter((Range("n", lt=7),))), seed=5)
    assert unpack_ids(found.ids) == in_order(some, 5)
    assert set(some) < set(ids)


@pytest.fixture
def half() -> Iterator[Store]:
    """N points of which every other one has the vector late."""
    store = open_store(StoreConfig(in_memory=True))
    specs = [VectorInfo(VECTOR, DIM, "f" * 64), VectorInfo("late", 2, "e" * 64)]
    store.create_collection("toys", specs)
    for i in range(N):
        vectors = {VECTOR: blobs(1)[0]} | ({"late": np.array([1, 0], np.float32)} if i % 2 else {})
        store.upsert("toys", [Point(point_id(str(i)), vectors, {})])
    yield store
    store.close()


def test_sample_leaves_out_points_without_the_vector(half: Store) -> None:
    """They count for nothing: the sample is as large as there are points that have it."""
    found = sample(half, N, replace(OPTIONS, vector="late", block_size=3), seed=9)
    some = sorted(point_id(str(i)) for i in range(1, N, 2))
    assert unpack_ids(found.ids) == in_order(some, 9)
    assert found.vectors.shape == (N // 2, 2)


def test_blocks_say_how_many_of_their_points_count(quick: Bench, ids: list[str]) -> None:
    """The last block may be larger than what is left of the sample; nothing comes after it."""
    options = replace(OPTIONS, block_size=8)
    for seed in SEEDS:
        blocks = list(sampled_blocks(quick.store, "toys", options, size=10, seed=seed))
        counts = [count for _, count in blocks]
        assert sum(counts) == 10
        assert all(0 < count <= len(block) for block, count in blocks)
        taken = [one for block, count in blocks for one in block.ids[:count]]
        assert taken == in_order(ids, seed)[:10]
