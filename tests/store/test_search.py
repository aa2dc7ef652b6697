from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shoal.errors import InvalidArgument
from shoal.store import AnyOf, Empty, Equals, Filter, Hit, Point, Query, Range, point_id
from shoal.store import search as searching

if TYPE_CHECKING:
    from tests.store.conftest import Room

TOLERANCE = 1e-5
COUNT = 200


@pytest.fixture
def points(room: Room) -> list[Point]:
    vectors = room.vectors(COUNT, seed=1)
    points = [
        Point(
            point_id(str(i)),
            {"tiny": vectors[i]},
            {
                "n": i,
                "source": f"s{i % 3}",
                "flag": i % 2 == 0,
                "clusters": {"default": {"a": i % 5}},
            },
        )
        for i in range(COUNT)
    ]
    room.store.upsert(room.name, points)
    return points


FILTERS = [
    (Filter(), lambda _: True),
    (Filter((Equals("source", "s1"),)), lambda n: n % 3 == 1),
    (Filter((AnyOf("clusters.default.a", (1, 4)),)), lambda n: n % 5 in (1, 4)),
    (Filter((Equals("flag", value=True), Range("n", lt=50))), lambda n: n % 2 == 0 and n < 50),
    (Filter(must_not=(Equals("clusters.default.a", 2),)), lambda n: n % 5 != 2),
    (Filter((Empty("source"),)), lambda _: False),
]


@pytest.mark.parametrize("exact", [True, False])
def test_search_agrees_with_brute_force(room: Room, points: list[Point], *, exact: bool) -> None:
    """The nearest of the filtered, with their cosines, as NumPy finds them."""
    matrix = np.stack([p.vectors["tiny"] for p in points])
    for where, selects in FILTERS:
        for query in room.vectors(4, seed=2):
            scores = matrix @ query
            wanted = sorted((-scores[i], p.id) for i, p in enumerate(points) if selects(i))[:12]
            hits = room.store.search(room.name, Query(query, limit=12, where=where, exact=exact))
            assert [h.id for h in hits] == [i for _, i in wanted]
            np.testing.assert_allclose(
                [h.score for h in hits], [-s for s, _ in wanted], atol=TOLERANCE
            )


def test_search_pages_join_up(room: Room, points: list[Point]) -> None:
    """Offset and limit cut one list, to its end and past it."""
    query = Query(room.vectors(1, seed=3)[0], limit=COUNT)
    whole = room.store.search(room.name, query)
    assert len(whole) == len(points)
    pages = [
        hit
        for offset in range(0, COUNT + 60, 30)
        for hit in room.store.search(room.name, replace(query, limit=30, offset=offset))
    ]
    assert [h.id for h in pages] == [h.id for h in whole]
    assert [h.payload for h in pages] == [h.payload for h in whole]
    np.testing.assert_allclose([h.score for h in pages], [h.score for h in whole], atol=1e-6)
    assert room.store.search(room.name, replace(query, offset=COUNT)) == []


def test_search_orders_ties_by_id_on_every_page(room: Room) -> None:
    """Duplicates score alike: they come by id, also where a page ends among them."""
    query = np.eye(8, dtype=np.float32)[0]
    other = np.array([0.5] * 4 + [0] * 4, np.float32)  # cosines of exactly 1 and 0.5
    copies = [Point(point_id(f"copy {i}"), {"tiny": query}, {"n": i}) for i in range(30)]
    far = [Point(point_id(f"far {i}"), {"tiny": other}, {"n": i}) for i in range(30)]
    room.store.upsert(room.name, [*far, *copies])
    expected = sorted(p.id for p in copies) + sorted(p.id for p in far)
    for size in (7, 29, 30, 31):
        pages: list[Hit] = []
        for offset in range(0, 60, size):
            page = Query(query, limit=size, offset=offset, with_vector=True)
            pages += room.store.search(room.name, page)
        assert [h.id for h in pages] == expected
        payloads = {p.id: p.payload for p in (*copies, *far)}
        assert all(h.payload == payloads[h.id] for h in pages)
        assert all(h.vector is not None and h.vector.shape == (8,) for h in pages)


def test_search_of_many_reads_them_in_pieces(
    room: Room, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same hits, payloads, vectors and pages as of few, whatever the size of a piece."""
    query = Query(room.vectors(1, seed=3)[0], limit=90, offset=5, with_vector=True, min_score=0)
    whole = room.store.search(room.name, query)
    assert 20 < len(whole) < len(points)
    for size in (1, 7, 89):
        monkeypatch.setattr(searching, "AT_ONCE", size)
        pieces = room.store.search(room.name, query)
        assert [(h.id, h.payload) for h in pieces] == [(h.id, h.payload) for h in whole]
        for hit, same in zip(pieces, whole, strict=True):
            assert hit.score == pytest.approx(same.score, abs=1e-6)
            np.testing.assert_allclose(hit.vector, same.vector, atol=1e-6)


def test_search_leaves_out_what_was_deleted_meanwhile(
    room: Room, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that was ranked and is gone when it is read is no hit; the others are."""
    monkeypatch.setattr(searching, "AT_ONCE", 4)
    ranked = searching._ranked

    def with_one_gone(*given: Any, **options: Any) -> list[Hit]:
        hits = ranked(*given, **options)
        return [hits[0], replace(hits[1], id=point_id("gone")), *hits[2:]]

    query = Query(room.vectors(1, seed=3)[0], limit=8)
    whole = room.store.search(room.name, query)
    monkeypatch.setattr(searching, "_ranked", with_one_gone)
    hits = room.store.search(room.name, query)
    assert [h.id for h in hits] == [h.id for h in whole if h.id != whole[1].id]
    assert len(hits) == 7 < len(points)


def test_search_refuses_more_than_its_bytes(
    room: Room, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many hits fit; that many do, and not all were read to find out."""
    monkeypatch.setattr(searching, "AT_ONCE", 10)
    query = Query(room.vectors(1, seed=3)[0], limit=COUNT, with_vector=True)
    whole = room.store.search(room.name, query)
    assert len(whole) == len(points)
    sizes = [len(json.dumps(hit.payload, ensure_ascii=False)) + 32 for hit in whole]
    fitting = replace(query, max_bytes=sum(sizes))
    assert len(room.store.search(room.name, fitting)) == COUNT
    less = replace(query, max_bytes=sum(sizes[:20]) - 1)
    read: list[int] = []
    size_of = searching._size

    def counted(hit: Hit) -> int:
        read.append(1)
        return size_of(hit)

    monkeypatch.setattr(searching, "_size", counted)
    with pytest.raises(InvalidArgument, match="ask for at most 19 at once") as caught:
        room.store.search(room.name, less)
    assert caught.value.metadata == {"field": "limit", "fitting": "19"}
    assert len(read) == 20
    assert len(room.store.search(room.name, replace(less, limit=19))) == 19


def test_search_scores_stay_within_cosine_range(room: Room) -> None:
    """A point scores 1 against itself and -1 against its opposite, never beyond."""
    for seed in range(20):
        vector = room.vectors(1, seed=seed)[0]
        points = [
            Point(point_id("same"), {"tiny": vector}, {}),
            Point(point_id("opposite"), {"tiny": -vector}, {}),
        ]
        room.store.upsert(room.name, points)
        scores = [h.score for h in room.store.search(room.name, Query(vector))]
        assert all(-1 <= s <= 1 for s in scores)
        np.testing.assert_allclose(scores, [1, -1], atol=TOLERANCE)


def test_search_leaves_out_what_is_below_min_score(room: Room, points: list[Point]) -> None:
    """Hits below min_score go; the others stay in their order."""
    query = Query(room.vectors(1, seed=5)[0], limit=COUNT)
    whole = room.store.search(room.name, query)
    limit = (whole[20].score + whole[21].score) / 2
    kept = room.store.search(room.name, replace(query, min_score=limit))
    assert [h.id for h in kept] == [h.id for h in whole[:21]]
    top = room.store.search(room.name, replace(query, min_score=limit, limit=5))
    assert [h.id for h in top] == [h.id for h in whole[:5]]
    assert room.store.search(room.name, replace(query, min_score=1.1)) == []
    assert len(points) == len(whole)


def test_search_gives_vectors_only_if_asked(room: Room, points: list[Point]) -> None:
    """with_vector adds each hit's vector, which explains its score."""
    query = Query(room.vectors(1, seed=6)[0], limit=3)
    assert all(h.vector is None for h in room.store.search(room.name, query))
    for hit in room.store.search(room.name, replace(query, with_vector=True)):
        assert hit.vector is not None
        assert hit.vector.dtype == np.float32
        assert float(hit.vector @ query.vector) == pytest.approx(hit.score, abs=TOLERANCE)
    assert points


@pytest.mark.parametrize(
    "vector",
    [
        np.full(8, math.nan, np.float32),
        np.zeros(8, np.float32),
        np.ones(8, np.float32),
        np.eye(8, dtype=np.float32)[0][:7],
        np.eye(8, dtype=np.float32)[:1],
    ],
)
def test_search_refuses_a_bad_vector(room: Room, vector: np.ndarray) -> None:
    """Not finite, no direction, not of unit length or of another shape: refused."""
    with pytest.raises(InvalidArgument):
        room.store.search(room.name, Query(vector))


def test_search_refuses_bad_options(room: Room) -> None:
    """An unknown vector name, a limit below 1, an offset below 0: refused."""
    good = Query(room.vectors(1)[0])
    for bad in (
        replace(good, vector_name="huge"),
        replace(good, limit=0),
        replace(good, limit=-1),
        replace(good, offset=-1),
        replace(good, min_score=math.nan),
    ):
        with pytest.raises(InvalidArgument):
            room.store.search(room.name, bad)


def test_search_uses_the_named_vector(new_room: Room) -> None:
    """With several vectors each search runs on its own; points without it do not appear."""
    store, name = new_room.store, f"{new_room.name}-two"
    other = replace(new_room.encoder, name="other", dim=4)
    store.create_collection(name, [new_room.encoder, other])
    tiny, small = new_room.vectors(2), new_room.vectors(2, dim=4)
    both = Point(point_id("both"), {"tiny": tiny[0], "other": small[0]}, {})
    one = Point(point_id("one"), {"tiny": tiny[1]}, {})
    store.upsert(name, [both, one])
    assert [h.id for h in store.search(name, Query(small[0], vector_name="other"))] == [both.id]
    assert {h.id for h in store.search(name, Query(tiny[0], vector_name="tiny"))} == {
        both.id,
        one.id,
    }
    assert {h.id for h in store.search(name, Query(tiny[0]))} == {both.id, one.id}
    store.drop_collection(name)
