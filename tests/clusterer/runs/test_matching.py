from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterer.config import MatchThresholds
from clusterer.runs.matching import Clusters, Matching, match, overlap_of
from clusterer.runs.points import UNASSIGNED
from shoal.vectors import NOISE

THRESHOLDS = MatchThresholds()


def matched(old: list[int], new: list[int], *, next_id: int = 100) -> Matching:
    """A match of two labellings; centroids are orthogonal, so they never decide."""
    old_ids = np.array(sorted({c for c in old if c >= 0}), dtype=np.int32)
    k_new = max(new) + 1
    axes = np.eye(len(old_ids) + k_new, dtype=np.float32)
    overlap = overlap_of(
        np.array(old, dtype=np.int32), np.array(new, dtype=np.int32), old_ids, k_new
    )
    return match(
        overlap,
        Clusters(old_ids, axes[: len(old_ids)]),
        axes[len(old_ids) :],
        next_id=next_id,
        thresholds=THRESHOLDS,
    )


def kinds(found: Matching) -> dict[int, str]:
    return {line.cluster: line.kind for line in found.lineage}


def test_match_renumbered_clusters_keep_their_ids() -> None:
    """The same grouping under other numbers is the same clustering."""
    found = matched([7, 7, 3, 3, 3, 9], [0, 0, 2, 2, 2, 1])
    assert found.ids.tolist() == [7, 9, 3]
    assert set(kinds(found).values()) == {"continued"}
    assert found.next_id == 100


def test_match_first_run_numbers_by_size() -> None:
    """Without an active run the ids are given out in the order of size."""
    found = matched([UNASSIGNED] * 6, [1, 1, 1, 0, 2, 2], next_id=0)
    assert found.ids.tolist() == [2, 0, 1]
    assert set(kinds(found).values()) == {"born"}
    assert found.next_id == 3


def test_match_split_keeps_the_id_of_the_larger_part() -> None:
    """Of a cluster cut in 7 and 3, the larger part continues, the smaller is a split of it."""
    found = matched([5] * 10, [0] * 7 + [1] * 3)
    assert found.ids.tolist() == [5, 100]
    assert kinds(found) == {5: "continued", 100: "split"}
    assert next(line for line in found.lineage if line.cluster == 100).related == (5,)


def test_match_even_split_continues_once() -> None:
    """At exactly one half both parts qualify, and only one of them keeps the id."""
    found = matched([5] * 10, [0] * 5 + [1] * 5)
    assert sorted(found.ids.tolist()) == [5, 100]


def test_match_merge_of_equals_is_a_new_cluster() -> None:
    """Three clusters poured together continue none of them, and all three retire into it."""
    found = matched([1] * 5 + [2] * 5 + [3] * 5, [0] * 15)
    assert found.ids.tolist() == [100]
    assert kinds(found) == {100: "merged", 1: "retired", 2: "retired", 3: "retired"}
    assert all(line.related == (100,) for line in found.lineage if line.kind == "retired")


def test_match_scattered_cluster_is_born() -> None:
    """A new cluster with a little of many old ones is related to none of them."""
    old = [c for c in range(8) for _ in range(10)]
    new = [8 if i % 10 == 0 else c for i, c in enumerate(old)]
    found = matched(old, new)
    assert kinds(found)[100] == "born"
    assert found.ids.tolist() == [*range(8), 100]


def test_match_noise_counts_for_nothing() -> None:
    """Noise and unassigned points are in no cluster, on either side."""
    found = matched([1, 1, NOISE, NOISE, UNASSIGNED], [0, 0, 0, 1, 1])
    assert found.ids.tolist() == [1, 100]


def test_match_without_shared_points_goes_by_centroids() -> None:
    """When every point was replaced, a centroid with cosine 0.9 or more keeps its id."""
    old = Clusters(np.array([4, 6], np.int32), np.eye(3, dtype=np.float32)[:2])
    near = np.array([[0.95, 0.0, 0.3122499], [0.0, 0.6, 0.8]], np.float32)
    labels = np.array([0, 0, 1], np.int32)
    overlap = overlap_of(np.full(3, UNASSIGNED, np.int32), labels, old.ids, 2)
    found = match(overlap, old, near, next_id=9, thresholds=THRESHOLDS)
    assert found.ids.tolist() == [4, 9]


labellings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-2, 6), min_size=n, max_size=n),
        st.lists(st.integers(0, 6), min_size=n, max_size=n),
    )
)


@given(labellings, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_match_ids_are_unique_and_do_not_depend_on_numbering(
    pair: tuple[list[int], list[int]], random: object
) -> None:
    """Ids are unique and never reused; renumbering the fit's rows permutes them and no more."""
    old, new = pair
    rows = sorted(set(new))
    new = [rows.index(c) for c in new]
    found = matched(old, new)
    assert len(set(found.ids.tolist())) == len(rows)
    fresh = [c for c in found.ids.tolist() if c >= 100]
    assert found.next_id == 100 + len(fresh)
    assert {line.cluster for line in found.lineage} == set(found.ids.tolist()) | {
        c for c in old if c >= 0
    }

    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = matched(old, [order[c] for c in new])
    for row in range(len(rows)):
        a, b = int(found.ids[row]), int(shuffled.ids[order[row]])
        jaccards = [line.overlap for line in found.lineage if line.cluster == a]
        if a < 100 and jaccards[0] > 0.5:
            assert a == b
