"""Pairs of vectors that belong together."""

from __future__ import annotations

import numpy as np
import pytest
from round_groups import round_groups
from sklearn.neighbors import NearestNeighbors

from clusterer.heads.pairs import Pairs, nearest_neighbours
from shoal.errors import InvalidArgument


def test_neighbours_equal_scikit_learns() -> None:
    """Exact, nearest first, without the point itself."""
    vectors, _ = round_groups(300)
    _, expected = NearestNeighbors(n_neighbors=7).fit(vectors).kneighbors()
    np.testing.assert_array_equal(nearest_neighbours(vectors, 7), expected)
    with pytest.raises(InvalidArgument, match="expected 1 to 299"):
        nearest_neighbours(vectors, 300)


def test_pairs_are_of_one_picture_or_of_neighbours() -> None:
    """Each picture comes once; views of one picture differ; neighbours are among its own."""
    n, views = 50, 3
    vectors = np.zeros((views * n, 2), np.float32)
    alone = Pairs(vectors, n).epoch(seed=1, number=0)
    assert sorted(alone.first % n) == list(range(n))
    np.testing.assert_array_equal(alone.first % n, alone.second % n)
    assert (alone.first != alone.second).all()
    views_of = zip(alone.first // n, alone.second // n, strict=True)
    assert {tuple(sorted(pair)) for pair in views_of} == {(0, 1), (0, 2), (1, 2)}
    neighbours = np.random.default_rng(0).integers(n, size=(n, 4)).astype(np.int32)
    both = Pairs(vectors, n, neighbours).epoch(seed=1, number=0)
    assert all(
        second % n in neighbours[first % n]
        for first, second in zip(both.first, both.second, strict=True)
    )
    places = {
        int(np.argmax(neighbours[first % n] == second % n))
        for first, second in zip(both.first, both.second, strict=True)
    }
    assert places == {0, 1, 2, 3}
    again = Pairs(vectors, n, neighbours).epoch(seed=1, number=0)
    np.testing.assert_array_equal(both.second, again.second)
    np.testing.assert_array_equal(both.first, again.first)
    for other in (Pairs(vectors, n, neighbours).epoch(1, 1), Pairs(vectors, n).epoch(2, 0)):
        assert (both.first != other.first).any()
    with pytest.raises(InvalidArgument, match="at least 2 views of a picture, or neighbours"):
        Pairs(vectors[:n], n)


def test_pairs_know_their_kind() -> None:
    """Neighbours, views, or both."""
    neighbours = np.array([[1], [0]], np.int32)
    one, two = np.eye(2, dtype=np.float32), np.eye(4, dtype=np.float32)[:, :2]
    assert Pairs(one, 2, neighbours).kind == "neighbours"
    assert Pairs(two, 2).kind == "augment"
    assert Pairs(two, 2, neighbours).kind == "both"


def test_other_pairs_have_another_digest() -> None:
    """Vectors and neighbours count, wherever they lie in memory."""
    vectors, _ = round_groups(40)
    near = nearest_neighbours(vectors, 3)
    digest = Pairs(vectors, 40, near).digest()
    assert Pairs(np.asfortranarray(vectors), 40, near.copy()).digest() == digest
    changed = vectors.copy()
    changed[-1, -1] += 1e-6
    others = [
        Pairs(changed, 40, near),
        Pairs(vectors, 40, near[:, ::-1]),
        Pairs(vectors, 20),
    ]
    assert len({digest, *(each.digest() for each in others)}) == 4


def test_nearest_are_the_known_neighbours_or_found() -> None:
    """As many as are asked for, nearest first, among the pictures themselves."""
    vectors, _ = round_groups(40)
    near = nearest_neighbours(vectors, 6)
    known = Pairs(vectors, 40, near[:, :4])
    np.testing.assert_array_equal(known.nearest(3), near[:, :3])
    np.testing.assert_array_equal(known.nearest(6), near)
    viewed = Pairs(np.concatenate([vectors, vectors[::-1]]), 40)
    np.testing.assert_array_equal(viewed.nearest(6), near)


def test_neighbours_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: a block has the neighbours of its own rows."""
    vectors, _ = round_groups(100)
    whole = nearest_neighbours(vectors, 5)
    monkeypatch.setattr("clusterer.heads.pairs._CELLS", 700)
    np.testing.assert_array_equal(nearest_neighbours(vectors, 5), whole)
    np.testing.assert_array_equal(nearest_neighbours(vectors, 99)[:, :5], whole)
    with pytest.raises(InvalidArgument, match="expected 1 to 99, the other points, got 0"):
        nearest_neighbours(vectors, 0)
