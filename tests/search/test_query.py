"""Which points a search looks at, in what way, and what it answers: brute force is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from clustered import (
    CLUSTERS,
    COUNT,
    DIM,
    TINT,
    TOY,
    UNASSIGNED,
    Spy,
    cluster_in_a,
    cluster_in_b,
    fill,
    make_live,
)

from search.query import Found, Scope, Searcher, Target
from search.snapshots import Snapshots
from shoal.errors import Conflict, InvalidArgument, NotFound
from shoal.store import Equals, Filter, Point, StoreConfig, open_store, point_id
from shoal.store.clusterings import Clusterings
from shoal.store.model import Collection
from shoal.vectors import NOISE, Vectors, unit


@dataclass
class Scene:
    """60 points of two vectors in the clusters 2, 3 and 7 and in noise, in turn."""

    store: Spy
    searcher: Searcher
    toys: Vectors
    tints: Vectors
    ids: list[str] = field(default_factory=lambda: [point_id(str(i)) for i in range(COUNT)])

    @property
    def collection(self) -> Collection:
        return self.store.collection("toys")

    def target(self, within: Scope = "any", **changes: Any) -> Target:
        target = Target(
            collection=self.collection,
            clustering="default",
            vector=TOY,
            within=within,
            where=Filter(),
            limit=5,
            offset=0,
            min_score=None,
            with_vectors=False,
            approximate=False,
        )
        return replace(target, **changes)

    def nearest(
        self, query: Vectors, keep: Callable[[int], bool], vectors: Vectors | None = None
    ) -> list[str]:
        """The ids of the points that ``keep`` keeps, nearest to ``query`` first."""
        scores = (self.toys if vectors is None else vectors) @ query
        return [self.ids[i] for i in np.argsort(-scores, kind="stable") if keep(int(i))]


@pytest.fixture(scope="module")
def filled() -> Iterator[Scene]:
    with open_store(StoreConfig(in_memory=True)) as opened:
        store = Spy(opened)
        toys, tints = fill(store)
        yield Scene(store, Searcher(store, Snapshots(store, 4)), toys, tints)


@pytest.fixture
def scene(filled: Scene) -> Scene:
    """The points with run r1 live in slot a; what an earlier test did is undone."""
    make_live(filled.store, "r1", "a")
    filled.store.queries.clear()
    filled.store.after_point = lambda: None
    return filled


def ids(found: Found) -> list[str]:
    return [hit.id for hit in found.hits]


QUERY = unit(np.array([0.2, 0.9, 0.1, 0.3, -0.2, 0.1, 0.0, 0.1], np.float32))
"""Nearest to the second axis, the centroid of cluster 3."""


def test_within_any_looks_at_every_point(scene: Scene) -> None:
    """Clusters do not matter; the point without one is found too."""
    found = scene.searcher.by_vector(scene.target(limit=COUNT), QUERY)
    assert ids(found) == scene.nearest(QUERY, lambda _: True)
    assert found.cluster is None
    assert found.snapshot.state.pointer.active_run == "r1"


@pytest.mark.parametrize("cluster", [*CLUSTERS, NOISE])
def test_within_a_cluster_looks_at_its_points_only(scene: Scene, cluster: int) -> None:
    """A cluster that is named is searched, noise too, wherever the query lies."""
    found = scene.searcher.by_vector(scene.target(cluster, limit=COUNT), QUERY)
    members = scene.nearest(QUERY, lambda i: i != UNASSIGNED and cluster_in_a(i) == cluster)
    assert members
    assert ids(found) == members
    assert found.cluster == cluster


@pytest.mark.parametrize("cluster", [0, 1, -2, 99])
def test_within_a_cluster_that_the_run_does_not_have_is_not_found(
    scene: Scene, cluster: int
) -> None:
    """Only noise has a number that is no cluster's; the answer names what was asked for."""
    with pytest.raises(NotFound, match=f"no cluster {cluster} in run r1") as caught:
        scene.searcher.by_vector(scene.target(cluster), QUERY)
    assert caught.value.metadata == {"cluster": str(cluster)}
    assert not scene.store.queries


def test_within_auto_of_a_vector_is_the_nearest_centroids_cluster(scene: Scene) -> None:
    """A query that is not stored belongs where its direction does."""
    for axis, cluster in enumerate(CLUSTERS):
        query = unit(np.eye(DIM, dtype=np.float32)[axis] + 0.1)
        found = scene.searcher.by_vector(scene.target("auto", limit=COUNT), query)
        assert found.cluster == cluster
        assert ids(found) == scene.nearest(
            query,
            lambda i: i != UNASSIGNED and cluster_in_a(i) == cluster,  # noqa: B023 - used at once
        )


def test_within_auto_of_a_stored_point_is_its_stored_cluster(scene: Scene) -> None:
    """Noise included: what the run decided counts, not the nearest centroid."""
    nearest = [CLUSTERS[axis] for axis in (scene.toys[:, : len(CLUSTERS)]).argmax(axis=1)]
    differs = 0
    for i in range(8):
        found = scene.searcher.by_id(scene.target("auto", limit=COUNT), str(i))
        assert found.cluster == cluster_in_a(i)
        assert ids(found) == scene.nearest(
            scene.toys[i],
            lambda j: j not in {i, UNASSIGNED} and cluster_in_a(j) == cluster_in_a(i),  # noqa: B023 - used at once
        )
        differs += nearest[i] != found.cluster
    assert differs > 3


def test_within_auto_of_a_point_without_a_cluster_is_the_nearest_centroids(scene: Scene) -> None:
    """A point that no run has seen is treated as any other query."""
    found = scene.searcher.by_id(scene.target("auto"), str(UNASSIGNED))
    vector = scene.toys[UNASSIGNED]
    assert found.cluster == CLUSTERS[int(vector[: len(CLUSTERS)].argmax())]


def test_within_follows_the_active_slot(scene: Scene) -> None:
    """After a cutover the other slot of every point counts, of the query's too."""
    make_live(scene.store, "r2", "b")
    named = scene.searcher.by_vector(scene.target(7, limit=COUNT), QUERY)
    assert ids(named) == scene.nearest(QUERY, lambda i: i != UNASSIGNED and cluster_in_b(i) == 7)
    found = scene.searcher.by_id(scene.target("auto"), "4")
    assert (found.snapshot.state.pointer.active_run, found.cluster) == ("r2", cluster_in_b(4))
    assert cluster_in_b(4) != cluster_in_a(4)


def test_answer_is_of_one_run_if_another_goes_live_meanwhile(scene: Scene) -> None:
    """The pointer is read before the point, so a cutover between the two changes nothing."""
    scene.store.after_point = lambda: make_live(scene.store, "r2", "b")
    found = scene.searcher.by_id(scene.target("auto", limit=COUNT), "4")
    assert (found.snapshot.state.pointer.active_run, found.cluster) == ("r1", cluster_in_a(4))
    assert {found.snapshot.cluster_of(hit.payload) for hit in found.hits} == {cluster_in_a(4)}


def test_search_is_exact_in_a_cluster_unless_the_caller_allows_otherwise(scene: Scene) -> None:
    """Everywhere the index is used; inside a cluster only if the request says approximate."""

    def exact(within: Scope, *, approximate: bool = False) -> bool:
        target = scene.target(within, approximate=approximate)
        scene.searcher.by_vector(target, QUERY)
        return scene.store.queries[-1].exact

    assert [exact(within) for within in (2, NOISE, "auto")] == [True, True, True]
    assert exact("any") is False
    assert [exact(w, approximate=True) for w in (2, "auto", "any")] == [False, False, False]
    assert {query.max_bytes for query in scene.store.queries} == {64 * 2**20}  # of a message


def test_within_auto_needs_the_vector_that_was_clustered(scene: Scene) -> None:
    """A query of another vector has no nearest centroid: it is refused, and the words help."""
    tint = scene.tints[0]
    with pytest.raises(InvalidArgument, match="is of vector 'toy', the query is of 'tint'"):
        scene.searcher.by_vector(scene.target("auto", vector=TINT), tint)
    with pytest.raises(InvalidArgument, match="name a cluster"):
        scene.searcher.by_id(scene.target("auto", vector=TINT), str(UNASSIGNED))
    assert not scene.store.queries


def test_a_stored_cluster_can_be_searched_by_another_vector(scene: Scene) -> None:
    """A stored point brings its cluster, and a named cluster needs no centroid."""
    found = scene.searcher.by_id(scene.target("auto", vector=TINT, limit=COUNT), "4")
    assert found.cluster == cluster_in_a(4)
    assert ids(found) == scene.nearest(
        scene.tints[4],
        lambda i: i not in {4, UNASSIGNED} and cluster_in_a(i) == cluster_in_a(4),
        scene.tints,
    )
    named = scene.searcher.by_vector(scene.target(3, vector=TINT, limit=COUNT), scene.tints[0])
    members = scene.nearest(
        scene.tints[0], lambda i: i != UNASSIGNED and cluster_in_a(i) == 3, scene.tints
    )
    assert ids(named) == members


@pytest.mark.parametrize("within", ["auto", 2, NOISE])
def test_within_needs_a_run(scene: Scene, within: Scope) -> None:
    """Before the first run there is nothing but everywhere, and the answer says what to do."""
    Clusterings(scene.store, "toys").ensure("other")
    target = scene.target(within, clustering="other")
    with pytest.raises(Conflict, match=r"'other' of 'toys' has no clusters yet: run `shoal"):
        scene.searcher.by_vector(target, QUERY)
    everywhere = scene.searcher.by_vector(replace(target, within="any"), QUERY)
    assert (len(everywhere.hits), everywhere.snapshot.state.pointer.active_run) == (5, "")


def test_where_holds_beside_the_cluster(scene: Scene) -> None:
    """The caller's conditions and the cluster's are both met; nothing of either is lost."""
    where = Filter(
        must=(Equals("n", 8),),
        should=(Equals("n", 8), Equals("n", 9)),
        must_not=(Equals("n", 9),),
    )
    inside = scene.searcher.by_vector(scene.target(2, where=where), QUERY)
    assert ids(inside) == [scene.ids[8]]
    assert scene.searcher.by_vector(scene.target(3, where=where), QUERY).hits == []
    (_, asked) = scene.store.queries
    assert (asked.where.should, asked.where.must_not) == (where.should, where.must_not)
    assert asked.where.must == (Equals("n", 8), Equals("clusters.default.a", 3))


def test_a_stored_query_is_never_its_own_hit(scene: Scene) -> None:
    """Everywhere or inside a cluster; what the caller excludes stays excluded."""
    where = Filter(must_not=(Equals("n", 5),))
    for within in ("any", "auto", cluster_in_a(4)):
        found = scene.searcher.by_id(scene.target(within, where=where, limit=COUNT), "4")
        assert scene.ids[4] not in ids(found)
        assert scene.ids[5] not in ids(found)
    everywhere = scene.searcher.by_id(scene.target(limit=COUNT), "4")
    assert ids(everywhere) == scene.nearest(scene.toys[4], lambda i: i != 4)


def test_limit_and_offset_cut_one_ranking(scene: Scene) -> None:
    """Pages of a search are parts of the same list."""
    ranking = scene.nearest(QUERY, lambda _: True)
    for offset, limit in ((0, 3), (3, 4), (57, 9)):
        found = scene.searcher.by_vector(scene.target(offset=offset, limit=limit), QUERY)
        assert ids(found) == ranking[offset : offset + limit]


def test_min_score_is_a_least_cosine(scene: Scene) -> None:
    """Hits at or above it come, none below; none given means all."""
    scores = np.sort(scene.toys @ QUERY)[::-1]
    least = float(scores[9] + scores[10]) / 2
    found = scene.searcher.by_vector(scene.target(limit=COUNT, min_score=least), QUERY)
    assert len(found.hits) == 10
    negative = scene.searcher.by_vector(scene.target(limit=COUNT, min_score=0.0), QUERY)
    assert len(negative.hits) == int((scores >= 0).sum()) < COUNT


def test_vectors_come_with_the_hits_on_request(scene: Scene) -> None:
    """The vectors that were compared, and none unless they are asked for."""
    asked = scene.target(vector=TINT, with_vectors=True)
    for hit in scene.searcher.by_vector(asked, scene.tints[3]).hits:
        stored = scene.tints[scene.ids.index(hit.id)]
        np.testing.assert_allclose(hit.vector, stored, atol=1e-6)
    without = scene.searcher.by_vector(replace(asked, with_vectors=False), scene.tints[3])
    assert {hit.vector is None for hit in without.hits} == {True}


def test_point_is_found_by_id_before_key(scene: Scene) -> None:
    """An id is a UUID in any spelling; a key that looks like another point's id does not hide it.

    Keys that are UUIDs work where no point has that id.
    """
    target, other = scene.ids[1], "0f0e0d0c-0b0a-4009-8807-060504030201"
    for key in (target, other):
        scene.store.upsert("toys", [Point(point_id(key), {"toy": QUERY}, {"named": key})])
    try:
        for spelling in (target, target.upper(), target.replace("-", ""), f"{{{target}}}"):
            assert scene.searcher.point("toys", spelling).payload["n"] == 1
        assert scene.searcher.point("toys", other).payload == {"named": other}
        assert scene.searcher.point("toys", "1").id == target
    finally:
        scene.store.delete("toys", Filter(must=(Equals("named", target),)))
        scene.store.delete("toys", Filter(must=(Equals("named", other),)))


def test_a_stored_query_needs_the_vector_that_is_compared(scene: Scene) -> None:
    """A point may lack one of the collection's vectors: the answer says which, and of what."""
    scene.store.upsert("toys", [Point(point_id("bare"), {"toy": QUERY}, {"n": -1})])
    try:
        assert scene.searcher.by_id(scene.target(), "bare").hits
        with pytest.raises(InvalidArgument, match="point 'bare' has no vector 'tint'") as caught:
            scene.searcher.by_id(scene.target(vector=TINT), "bare")
        assert caught.value.metadata == {"field": "vector_name"}
    finally:
        scene.store.delete("toys", Filter(must=(Equals("n", -1),)))


@pytest.mark.parametrize("reference", ["nobody", "0f0e0d0c-0b0a-4009-8807-060504030201"])
def test_point_that_is_not_there_is_not_found(scene: Scene, reference: str) -> None:
    """The answer names the collection and what was asked for."""
    with pytest.raises(NotFound, match=f"'toys' has no point with id or key '{reference}'") as got:
        scene.searcher.point("toys", reference)
    assert got.value.metadata == {"id": reference}


def test_point_has_the_vectors_that_are_asked_for(scene: Scene) -> None:
    """None by default."""
    assert scene.searcher.point("toys", "3").vectors == {}
    found = scene.searcher.point("toys", "3", vectors=("tint",)).vectors
    assert list(found) == ["tint"]
    np.testing.assert_allclose(found["tint"], scene.tints[3], atol=1e-6)
