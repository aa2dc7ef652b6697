from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from reclustering import VECTOR, Bench, blobs

from clusterer import duplicates
from clusterer.duplicates import DuplicateFinder, DuplicateGroup
from shoal.errors import Cancelled, InvalidArgument
from shoal.store.model import Filter, IdIn
from shoal.vectors import Vectors, unit


def finder(
    bench: Bench, *, threshold: float = 0.99, check: Callable[[], None] = lambda: None
) -> DuplicateFinder:
    return DuplicateFinder(bench.store, "toys", VECTOR, threshold, 64, check)


def copies(*counts: int) -> Vectors:
    """Pictures apart from each other, each this many times, nearly alike."""
    every = np.repeat(blobs(len(counts), centres=len(counts), spread=0.3), counts, axis=0)
    return unit(every + np.random.default_rng(0).normal(size=every.shape) * 0.005)


def test_groups_come_largest_first_and_singles_in_none(quick: Bench) -> None:
    """Each group has all copies of one picture; a picture without any is in no group."""
    ids = quick.put(copies(2, 1, 4, 1, 3))
    groups = list(finder(quick).groups())
    assert [group.size for group in groups] == [4, 3, 2]
    found = [{ids.index(member.id) for member in group.members} for group in groups]
    assert found == [{3, 4, 5, 6}, {8, 9, 10}, {0, 1}]


def test_members_come_by_nearness_to_the_first(quick: Bench) -> None:
    """The first has cosine 1; the others theirs with it, largest first, at or above the bound."""
    vectors = copies(5)
    ids = quick.put(vectors)
    (group,) = finder(quick).groups()
    first, *others = group.members
    assert first.cosine == 1
    assert [other.cosine for other in others] == sorted(
        (other.cosine for other in others), reverse=True
    )
    for other in others:
        cosine = vectors[ids.index(first.id)] @ vectors[ids.index(other.id)]
        assert other.cosine == pytest.approx(cosine, abs=1e-5)
        assert other.cosine >= 0.99


def test_members_have_their_key_and_place(quick: Bench) -> None:
    """As they were stored; empty where they have none."""
    ids = quick.put(copies(2))
    where = Filter((IdIn(ids[:1]),))
    quick.store.set_payload("toys", {"key": "k", "uri": "file:x"}, where=where)
    (group,) = finder(quick).groups()
    told = {member.id: (member.key, member.uri) for member in group.members}
    assert told == {ids[0]: ("k", "file:x"), ids[1]: ("", "")}


def test_group_counts_all_and_lists_the_nearest(
    quick: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the limit members are counted only; what is listed is what all of them gives."""
    quick.put(copies(9))
    (whole,) = finder(quick).groups()
    monkeypatch.setattr(duplicates, "_MOST_LISTED", 4)
    monkeypatch.setattr(duplicates, "_CHUNK", 3)
    assert list(finder(quick).groups()) == [DuplicateGroup(9, whole.members[:4])]


def test_duplicates_deleted_meanwhile_are_in_no_group(quick: Bench) -> None:
    """A group whose first is gone, or all others, is not listed."""
    ids = quick.put(copies(2, 2, 2))
    groups = finder(quick).groups()
    assert next(groups).size == 2
    left = {member.id for group in finder(quick).groups() for member in group.members}
    assert left == set(ids)
    quick.store.delete("toys", Filter((IdIn(ids),)))
    assert list(groups) == []


@pytest.mark.parametrize("gone", ["first", "other"])
def test_pair_of_which_one_is_replaced_meanwhile_is_no_group(quick: Bench, gone: str) -> None:
    """By its new vector the point is no copy any more."""
    vectors = copies(3, 2)
    ids = quick.put(vectors)
    pair = list(finder(quick).groups())[1]
    groups = finder(quick).groups()
    next(groups)
    replaced = ids.index(pair.members[0 if gone == "first" else 1].id)
    quick.put(-vectors[replaced : replaced + 1], first=replaced)
    assert list(groups) == []


def test_search_stops_when_told(quick: Bench) -> None:
    """What the check raises passes on, before the first group and between two."""
    quick.put(copies(2, 2))
    stopping = [False]

    def check() -> None:
        if stopping[0]:
            raise Cancelled("enough")

    groups = finder(quick, check=check).groups()
    next(groups)
    stopping[0] = True
    with pytest.raises(Cancelled):
        next(groups)
    with pytest.raises(Cancelled):
        next(finder(quick, check=check).groups())


def test_no_points_have_no_groups(quick: Bench) -> None:
    """An empty collection, and one of a single point, have none."""
    assert list(finder(quick).groups()) == []
    quick.put(copies(1))
    assert list(finder(quick).groups()) == []


def test_threshold_out_of_range_is_refused(quick: Bench) -> None:
    """Below 0.9 pictures are alike that no person would call copies."""
    quick.put(copies(2))
    with pytest.raises(InvalidArgument, match=r"0\.9 to 1, got 0\.5"):
        next(finder(quick, threshold=0.5).groups())
