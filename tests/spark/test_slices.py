"""Cutting the space of ids, merging counts, and errors on their way: without Spark."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from clusterer.fits.models import Assigned
from clusterer.runs.assign import Totals
from clusterer.runs.plan import rand_index
from shoal.errors import LeaseLost, StoreUnavailable
from shoal.spark.failures import Failure, TaskError, guarded, marked, merged
from shoal.spark.slices import Slice, scan_slice, slices_of, window_of
from shoal.store import (
    Point,
    Store,
    StoreConfig,
    VectorBlock,
    VectorInfo,
    VectorScan,
    open_store,
    point_id,
)

SPACE = 2**128


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(StoreConfig(in_memory=True)) as opened:
        opened.create_collection("toys", [VectorInfo("toy", 2, "f" * 64)])
        vector = np.array([1, 0], np.float32)
        ids = [point_id(str(i)) for i in range(300)]
        opened.upsert("toys", [Point(one, {"toy": vector}, {}) for one in ids])
        yield opened


def ids_of(store: Store, parts: list[Slice]) -> list[str]:
    options = VectorScan(vector="toy", block_size=7)
    return [
        one
        for part in parts
        for block in scan_slice(store, "toys", part, options)
        for one in block.ids
    ]


@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_slices_hold_every_point_once(store: Store, parts: int) -> None:
    """However the space is cut, the slices one after another are the collection, in order."""
    assert ids_of(store, slices_of(parts)) == ids_of(store, slices_of(1))
    assert len(set(ids_of(store, slices_of(parts)))) == 300


@given(st.floats(0.001, 1), st.integers(1, 20), st.integers(0, 100))
def test_window_is_the_share_that_was_asked_for(share: float, parts: int, seed: int) -> None:
    """Its slices do not overlap, and together they are the share, also across the end."""
    found = sorted(window_of(share, parts, seed=seed), key=lambda part: part.start)
    assert sum(part.end - part.start for part in found) / SPACE == pytest.approx(share)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert found[0].start >= 0
    assert found[-1].end <= SPACE


def test_totals_of_parts_are_those_of_the_whole() -> None:
    """Counting in parts and merging gives what counting at once does."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(-1, 3, 60).astype(np.int32)
    payloads = [{"kind": f"k{label}"} for label in labels]
    sure = np.full(60, 0.5, np.float32)

    def counted(rows: slice) -> Totals:
        totals = Totals(vectors[:3], 10, ("kind",))
        block = VectorBlock(["" for _ in labels[rows]], payloads[rows], vectors[rows])  # type: ignore[arg-type]
        totals.count(block, Assigned(labels[rows], sure[rows]))
        return totals

    whole, parts = counted(slice(0, 60)), counted(slice(0, 7))
    for rows in (slice(7, 8), slice(8, 60)):
        parts.merge(counted(rows))
    assert parts.tally.sizes.tolist() == whole.tally.sizes.tolist()
    assert parts.tally.inertia == pytest.approx(whole.tally.inertia)
    assert parts.confidence == pytest.approx(whole.confidence)
    assert parts.values.names() == whole.values.names() != {}
    assert np.array_equal(parts.sampled(), whole.sampled())
    assert np.array_equal(parts.sampled_labels(), whole.sampled_labels())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=60))
def test_rand_index_of_counts_is_scikit_learns_of_labels(pairs: list[tuple[int, int]]) -> None:
    """The adjusted Rand index needs no labels, only how many points have which pair."""
    rows, counts = np.unique(np.array(pairs, np.int32), axis=0, return_counts=True)
    found = rand_index(counts.astype(np.int64), rows[:, 0], rows[:, 1])
    first, second = zip(*pairs, strict=True)
    assert found == pytest.approx(adjusted_rand_score(first, second))


def test_errors_of_tasks_arrive_as_what_they_were() -> None:
    """What would happen again is a value; what may not is raised, for Spark, and marked."""

    def lost(_: int) -> int:
        raise LeaseLost("gone")

    def away(_: int) -> int:
        raise StoreUnavailable('the "store" is away')

    found = guarded(lost)(0)
    assert isinstance(found, Failure)
    assert merged(max)(found, 1) is merged(max)(1, found) is found
    assert isinstance(found.error(), LeaseLost)
    with pytest.raises(TaskError) as caught:
        guarded(away)(0)
    told = marked(f"Job aborted: Traceback:\n  {caught.value}\n\tat java.lang.Thread")
    assert isinstance(told, StoreUnavailable)
    assert told.message == 'the "store" is away'
    assert marked("something else") is None
