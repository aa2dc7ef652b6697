from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterer.config import MatchThresholds
from clusterer.runs.matching import Clusters, Matching, match, named, overlap_of
from clusterer.runs.points import UNASSIGNED
from shoal.values import Lineage
from shoal.vectors import NOISE, Vectors

THRESHOLDS = MatchThresholds()


def matched(
    old: list[int],
    new: list[int],
    *,
    next_id: int = 100,
    old_ids: list[int] | None = None,
    thresholds: MatchThresholds = THRESHOLDS,
) -> Matching:
    """A match of two labellings; centroids are orthogonal, so they never decide."""
    ids = np.array(sorted({c for c in old if c >= 0}) if old_ids is None else old_ids, np.int32)
    k_new = max(new) + 1
    axes = np.eye(len(ids) + k_new, dtype=np.float32)
    overlap = overlap_of(np.array(old, np.int32), np.array(new, np.int32), ids, k_new)
    return match(
        overlap,
        Clusters(ids, axes[: len(ids)]),
        axes[len(ids) :],
        next_id=next_id,
        thresholds=thresholds,
    )


def kinds(found: Matching) -> dict[int, str]:
    return {line.cluster: line.kind for line in found.lineage}


def line(found: Matching, cluster: int) -> Lineage:
    """The one line of ``cluster``."""
    (only,) = (each for each in found.lineage if each.cluster == cluster)
    return only


def test_match_renumbered_clusters_keep_their_ids() -> None:
    """The same grouping under other numbers is the same clustering."""
    found = matched([7, 7, 3, 3, 3, 9], [0, 0, 2, 2, 2, 1])
    assert found.ids.tolist() == [7, 9, 3]
    assert found.lineage == (
        Lineage(3, "continued", 3, (3,), 1.0),
        Lineage(7, "continued", 2, (7,), 1.0),
        Lineage(9, "continued", 1, (9,), 1.0),
    )
    assert found.next_id == 100


def test_match_first_run_numbers_by_size() -> None:
    """Without an active run the ids are given out in the order of size."""
    found = matched([UNASSIGNED] * 6, [1, 1, 1, 0, 2, 2], next_id=0)
    assert found.ids.tolist() == [2, 0, 1]
    assert found.lineage == tuple(Lineage(i, "born", 3 - i) for i in range(3))
    assert found.next_id == 3


def test_match_numbers_clusters_of_one_size_in_their_order() -> None:
    """Of equals the one that the fit names first gets the lower id, and comes first."""
    found = matched([UNASSIGNED] * 6, [0, 0, 1, 1, 2, 2], next_id=5)
    assert found.ids.tolist() == [5, 6, 7]
    assert [each.cluster for each in found.lineage] == [5, 6, 7]


def test_match_keeps_the_order_of_many_of_one_size() -> None:
    """Forty clusters of two points, and forty heirs of one old cluster: in their order, all."""
    new = [i for i in range(40) for _ in range(2)]
    found = matched([UNASSIGNED] * 80, new, next_id=0)
    assert found.ids.tolist() == list(range(40))
    thresholds = MatchThresholds(related_share=0.01)
    heirs = matched([7] * 80, new, thresholds=thresholds)
    assert line(heirs, 7) == Lineage(7, "retired", 80, tuple(range(100, 140)))


def test_match_overlap_is_the_jaccard_index() -> None:
    """Shared points over the points of either: 6 of 10 here, and 0 where nothing continues."""
    found = matched([1] * 8 + [2] * 2 + [3] * 9, [0] * 6 + [1] * 2 + [0] * 2 + [1] * 9)
    assert found.ids.tolist() == [1, 3]
    assert line(found, 1).overlap == pytest.approx(6 / 10)
    assert line(found, 3).overlap == pytest.approx(9 / 11)
    assert line(found, 2).overlap == 0.0


def test_match_counts_points_of_one_side_only_in_its_size() -> None:
    """Points that are new, or are noise on one side, are in the sizes but not in the overlap."""
    old = [1] * 4 + [UNASSIGNED] * 3 + [1] * 2
    new = [0] * 4 + [0] * 3 + [NOISE] * 2
    found = matched(old, new)
    assert found.lineage == (Lineage(1, "continued", 7, (1,), 1.0),)
    gone = matched([1] * 4 + [2] * 2, [0] * 4 + [NOISE] * 2)
    assert line(gone, 2) == Lineage(2, "retired", 2)


def test_match_needs_half_to_continue() -> None:
    """At one half of the union a cluster keeps its id, and just below it does not."""
    assert matched([5] * 4, [0] * 2 + [1] + [2]).ids.tolist()[0] == 5
    below = matched([5] * 5, [0] * 2 + [1] * 2 + [2])
    assert below.ids.tolist() == [100, 101, 102]
    assert kinds(below) == {100: "split", 101: "split", 102: "split", 5: "retired"}
    strict = MatchThresholds(continued_jaccard=0.75)
    assert matched([5] * 4, [0] * 3 + [1], thresholds=strict).ids.tolist() == [5, 100]
    assert matched([5] * 10, [0] * 7 + [1] * 3, thresholds=strict).ids.tolist() == [100, 101]


def test_match_takes_the_largest_overlap_first() -> None:
    """A cluster that two could continue goes to the one that shares more with it."""
    old = [1] * 4 + [2] * 6
    new = [0] * 4 + [0] * 2 + [1] * 4  # row 0: 4 of 10 with 2, and 4 of 6 with 1
    found = matched(old, new)
    assert found.ids.tolist() == [1, 2]
    assert line(found, 1).overlap == pytest.approx(4 / 6)
    assert line(found, 2).overlap == pytest.approx(4 / 6)


def test_match_split_keeps_the_id_of_the_larger_part() -> None:
    """Of a cluster cut in 7 and 3, the larger part continues, the smaller is a split of it."""
    found = matched([5] * 10, [0] * 7 + [1] * 3)
    assert found.ids.tolist() == [5, 100]
    assert found.lineage == (
        Lineage(5, "continued", 7, (5,), 0.7),
        Lineage(100, "split", 3, (5,)),
    )
    other_way = matched([5] * 10, [0] * 3 + [1] * 7)
    assert other_way.ids.tolist() == [100, 5]


def test_match_even_split_continues_once() -> None:
    """At exactly one half both parts qualify, and the first of them keeps the id."""
    found = matched([5] * 10, [0] * 5 + [1] * 5)
    assert found.ids.tolist() == [5, 100]


def test_match_even_merge_continues_the_first() -> None:
    """Two halves poured together both qualify at one half, and the lower id stays."""
    found = matched([8] * 5 + [3] * 5, [0] * 10)
    assert found.ids.tolist() == [3]
    assert line(found, 8) == Lineage(8, "retired", 5, (3,))


def test_match_merge_of_equals_is_a_new_cluster() -> None:
    """Three clusters poured together continue none of them, and all three retire into it."""
    found = matched([1] * 5 + [2] * 5 + [3] * 5, [0] * 15)
    assert found.lineage == (
        Lineage(100, "merged", 15, (1, 2, 3)),
        Lineage(1, "retired", 5, (100,)),
        Lineage(2, "retired", 5, (100,)),
        Lineage(3, "retired", 5, (100,)),
    )


def test_match_merged_takes_half_of_two_clusters() -> None:
    """Most of one cluster and a little of others is no merger; at half of two it is one."""
    old = [1] * 10 + [2] * 10 + [3] * 10

    def kind(second: int, *, split_share: float = 0.5) -> str:
        """Of 9 points of the first cluster, ``second`` of the second and 4 of the third."""
        new = [0] * 9 + [1] + [0] * second + [2] * (10 - second) + [0] * 4 + [3] * 6
        thresholds = MatchThresholds(continued_jaccard=1, split_share=split_share)
        found = matched(old, new, thresholds=thresholds)
        return line(found, int(found.ids[0])).kind

    assert [kind(4), kind(5), kind(6)] == ["split", "merged", "merged"]
    assert kind(4, split_share=0.4) == "merged"


def test_match_split_takes_half_of_the_new_cluster() -> None:
    """Half of a new cluster from one old one makes it a split; less leaves it born."""
    old = [1] * 20 + [UNASSIGNED] * 5
    half = matched(old, [0] * 15 + [1] * 5 + [1] * 5)
    assert kinds(half) == {1: "continued", 100: "split"}
    less = matched([*old, UNASSIGNED], [0] * 15 + [1] * 5 + [1] * 6)
    assert kinds(less) == {1: "continued", 100: "born"}
    assert line(less, 100).related == (1,)


def test_match_scattered_cluster_is_born() -> None:
    """A new cluster with a little of each of many old ones is related to none of them."""
    old = [c for c in range(12) for _ in range(10)]
    new = [12 if i % 10 == 0 else c for i, c in enumerate(old)]
    found = matched(old, new)
    assert line(found, 100) == Lineage(100, "born", 12)
    assert found.ids.tolist() == [*range(12), 100]


def test_match_related_are_those_with_a_tenth_largest_first() -> None:
    """A tenth of a new cluster's old points makes an old one worth naming; less does not."""
    old = [1] * 20 + [2] * 40 + [3] * 40
    new = [0] * 2 + [1] * 18 + [0] * 15 + [1] * 25 + [0] * 3 + [2] * 37
    found = matched(old, new)
    assert found.ids.tolist() == [101, 100, 3]
    assert line(found, 101).related == (2, 3, 1)
    fewer = MatchThresholds(related_share=0.11)
    assert line(matched(old, new, thresholds=fewer), 101).related == (2, 3)


def test_match_retired_come_last_and_largest_first() -> None:
    """Old clusters that nothing continues follow the new ones, by size, then by id."""
    old = [4] * 2 + [2] * 3 + [9] * 3 + [6] * 5 + [1] * 20
    found = matched(old, [0] * 13 + [1] * 20)
    assert [(each.cluster, each.size) for each in found.lineage] == [
        (1, 20),
        (100, 13),
        (6, 5),
        (2, 3),
        (9, 3),
        (4, 2),
    ]


def test_match_retired_names_its_heirs_largest_first() -> None:
    """A retired cluster is related to the new ones that at least a tenth of it went to."""
    old = [5] * 30
    found = matched(old, [0] * 3 + [1] * 14 + [2] * 11 + [3] * 2)
    assert line(found, 5) == Lineage(5, "retired", 30, (100, 101, 102))
    assert [each.size for each in found.lineage] == [14, 11, 3, 2, 30]


def test_match_noise_counts_for_nothing() -> None:
    """Noise and unassigned points are in no cluster, on either side."""
    found = matched([1, 1, NOISE, NOISE, UNASSIGNED], [0, 0, 0, 1, 1])
    assert found.ids.tolist() == [1, 100]
    assert line(found, 1).overlap == 1.0


def test_match_labels_of_unknown_clusters_count_for_nothing() -> None:
    """A label of no old cluster, as after records were lost, is as if the point were new."""
    found = matched([7, 7, 7, 9, 9], [0, 0, 0, 1, 1], old_ids=[9, 20])
    assert found.ids.tolist() == [100, 9]
    assert line(found, 9).overlap == 1.0
    assert line(found, 20) == Lineage(20, "retired", 0)


def test_match_takes_old_ids_in_any_order() -> None:
    """The order in which the old clusters are told does not matter."""
    found = matched([3] * 3 + [8] * 2 + [5], [2] * 3 + [0] * 2 + [1], old_ids=[8, 3, 5])
    assert found.ids.tolist() == [8, 5, 3]
    assert {each.cluster: each.size for each in found.lineage} == {3: 3, 8: 2, 5: 1}


def by_centroids(near: Vectors, *, shared: bool = False) -> Matching:
    """A match of two old clusters, 4 along x and 6 along y, with new ones at ``near``."""
    old = Clusters(np.array([4, 6], np.int32), np.eye(3, dtype=np.float32)[:2])
    new_labels = np.arange(len(near), dtype=np.int32)
    old_labels = np.full(len(near), UNASSIGNED, np.int32)
    if shared:
        old_labels[0] = 4
    overlap = overlap_of(old_labels, new_labels, old.ids, len(near))
    return match(overlap, old, near, next_id=9, thresholds=THRESHOLDS)


def unit(*rows: tuple[float, float]) -> Vectors:
    """Unit vectors (N, 3) whose first two numbers are given."""
    return np.array([(x, y, (1 - x * x - y * y) ** 0.5) for x, y in rows], np.float32)


def test_match_without_shared_points_goes_by_centroids() -> None:
    """When every point was replaced, a centroid with cosine 0.9 or more keeps its id."""
    found = by_centroids(unit((0.95, 0.0), (0.0, 0.6)))
    assert found.ids.tolist() == [4, 9]
    assert found.lineage[0].overlap == pytest.approx(0.95)
    assert by_centroids(unit((0.0, 0.901), (0.899, 0.0))).ids.tolist() == [6, 9]


def test_match_by_centroids_takes_the_nearest_and_each_once() -> None:
    """Of several that are near enough, the nearest keeps the id; each id goes to one."""
    found = by_centroids(unit((0.92, 0.0), (0.97, 0.0), (0.0, 0.95)))
    assert found.ids.tolist() == [9, 4, 6]


def test_match_with_any_shared_point_goes_by_points() -> None:
    """A centroid decides nothing as soon as one point tells where it went."""
    found = by_centroids(unit((0.0, 0.99), (0.99, 0.0)), shared=True)
    assert found.ids.tolist() == [4, 9]
    assert found.lineage[-1].kind == "retired"


def test_match_by_centroids_takes_a_cosine_that_is_just_enough() -> None:
    """The threshold itself is enough: 1 x 0.5 + 0 x 0.5 is 0.5 exactly."""
    old, new = np.array([[1, 0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    nothing = np.array([], np.int32)
    found = match(
        overlap_of(nothing, nothing, np.array([4], np.int32), 1),
        Clusters(np.array([4], np.int32), old),
        new,
        next_id=9,
        thresholds=MatchThresholds(centroid_cosine=0.5),
    )
    assert found.ids.tolist() == [4]


def test_match_tells_the_size_of_cluster_0_that_vanished() -> None:
    """The lowest id is a cluster like any other, and negative labels are none."""
    found = matched([0, 0, 0, 1, 1, NOISE], [NOISE, NOISE, NOISE, 0, 0, NOISE])
    assert line(found, 0) == Lineage(0, "retired", 3)
    assert line(found, 1).kind == "continued"


def test_named_gives_ids_and_leaves_noise() -> None:
    """A row becomes the id of its cluster; noise and whatever is negative is noise."""
    ids = np.array([7, 5], np.int32)
    labels = named(ids, np.array([1, NOISE, 0, UNASSIGNED, 0], np.int32))
    assert labels.dtype == np.int32
    assert labels.tolist() == [5, NOISE, 7, NOISE, 7]
    found = Matching(ids, (), 8)
    assert found.named(np.array([1, NOISE], np.int32)).tolist() == [5, NOISE]


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
    for each in found.lineage:
        both = {i for i, c in enumerate(old) if c == each.cluster}
        row = found.ids.tolist().index(each.cluster) if each.kind != "retired" else None
        mine = {i for i, c in enumerate(new) if c == row}
        if each.kind == "continued":
            # Points on one side only are in neither the shared points nor the union.
            told = {i for i, c in enumerate(old) if c >= 0}
            assert each.overlap == pytest.approx(len(both & mine) / len((both | mine) & told))
        else:
            assert each.overlap == 0

    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = matched(old, [order[c] for c in new])
    for row in range(len(rows)):
        a, b = int(found.ids[row]), int(shuffled.ids[order[row]])
        jaccards = [line.overlap for line in found.lineage if line.cluster == a]
        if a < 100 and jaccards[0] > 0.5:
            assert a == b
