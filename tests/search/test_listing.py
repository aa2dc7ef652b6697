"""The list of clusters: order, pages, live counts and exemplars."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from clustered import CLUSTERS, COUNT, DIM, UNASSIGNED, Spy, cluster_in_a, fill, make_live

from search import listing
from search.listing import Listing, farthest_first
from search.snapshots import Snapshots
from shoal.errors import Conflict, InvalidArgument, NotFound
from shoal.rpc.pages import AnswerRoom
from shoal.store import Equals, Filter, IdIn, StoreConfig, open_store, point_id
from shoal.v1 import clusterer_pb2
from shoal.v1 import search_pb2 as pb
from shoal.vectors import NOISE, Vectors, joined, unit

MEMBERS = {c: [i for i in range(COUNT - 1) if cluster_in_a(i) == c] for c in (*CLUSTERS, NOISE)}


class Scene:
    """A store with the points of ``clustered``, and what lists its clusters."""

    def __init__(self, store: Spy) -> None:
        self.store = store
        self.toys, self.tints = fill(store)
        self.listing = Listing(store, Snapshots(store, 4))

    def nearest(self, direction: Vectors, cluster: int, vectors: Vectors) -> list[str]:
        """The ids of the members of ``cluster``, nearest to ``direction`` first."""
        order = np.argsort(-(vectors @ direction), kind="stable")
        return [point_id(str(i)) for i in order if i in MEMBERS[cluster]]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with open_store(StoreConfig(in_memory=True)) as store:
        yield Scene(Spy(store))


@pytest.fixture
def live(scene: Scene) -> Scene:
    """The scene with run r:1 live in slot a, whose clusters 2, 3 and 7 have 15, 15 and 15 points.

    One point less for cluster 3: cluster 7 comes before it.
    """
    make_live(scene.store, "r:1", "a")
    scene.store.delete("toys", Filter(must=(IdIn([point_id("1")]),)))
    return scene


def clusters(scene: Scene, **fields: object) -> pb.ListClustersResponse:
    request = pb.ListClustersRequest(collection="toys", **fields)  # type: ignore[arg-type]
    return scene.listing.clusters(request)


def cluster(scene: Scene, number: int, **fields: object) -> pb.Cluster:
    request = pb.GetClusterRequest(collection="toys", cluster=number, **fields)  # type: ignore[arg-type]
    return scene.listing.cluster(request)


def test_clusters_come_largest_first_and_ties_by_id(live: Scene) -> None:
    """Sizes are counted now, and are not those of the run's records."""
    listed = clusters(live)
    assert [(c.id, c.size) for c in listed.clusters] == [(2, 15), (7, 15), (3, 14)]
    assert (listed.noise, listed.unassigned, listed.run) == (14, 1, "r:1")
    assert listed.next_page_token == ""


def test_a_cluster_without_points_is_listed_last(live: Scene) -> None:
    """A cluster whose points were all deleted has a size of 0, less than 1, and no exemplars."""
    live.store.delete("toys", Filter(must=(Equals("clusters.default.a", 2),)))
    but_one = tuple(Equals("n", number) for number in MEMBERS[7][:1])
    live.store.delete("toys", Filter(must=(Equals("clusters.default.a", 7),), must_not=but_one))
    assert [(c.id, c.size) for c in clusters(live).clusters] == [(3, 14), (7, 1), (2, 0)]
    last = clusters(live).clusters[-1]
    assert (last.id, last.size, len(last.exemplars)) == (2, 0, 0)


def test_cluster_tells_what_the_run_recorded(live: Scene) -> None:
    """Name, cohesion and lineage are those of the record; the lineage's size is the run's."""
    for found in (*clusters(live).clusters, cluster(live, 7)):
        assert (found.name, found.run) == (f"name {found.id}", "r:1")
        assert found.cohesion == pytest.approx(found.id / 10)
        assert found.lineage == clusterer_pb2.Lineage(
            cluster=found.id,
            kind=clusterer_pb2.LINEAGE_KIND_SPLIT,
            size=1000 + found.id,
            related=[found.id + 1],
        )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pages_join_to_the_whole_list(live: Scene, size: int) -> None:
    """Every cluster once, in order; a token comes exactly where more is to come."""
    found, token, pages = list[int](), "", 0
    while pages == 0 or token:
        page = clusters(live, page_size=size, page_token=token)
        assert page.run == "r:1"
        assert 1 <= len(page.clusters) <= size
        found += [c.id for c in page.clusters]
        token, pages = page.next_page_token, pages + 1
    assert found == [2, 7, 3]
    assert pages == -(-3 // size)


def test_pages_keep_the_order_of_the_first_one(live: Scene) -> None:
    """Each cluster comes once, though sizes change meanwhile; the sizes shown are the new ones."""
    first = clusters(live, page_size=1)
    assert [(c.id, c.size) for c in first.clusters] == [(2, 15)]
    but_one = tuple(Equals("n", number) for number in MEMBERS[7][:1])
    live.store.delete("toys", Filter(must=(Equals("clusters.default.a", 7),), must_not=but_one))
    live.store.delete("toys", Filter(must=(Equals("clusters.default.a", 2),)))
    second = clusters(live, page_size=1, page_token=first.next_page_token)
    third = clusters(live, page_size=1, page_token=second.next_page_token)
    assert [(c.id, c.size) for c in (*second.clusters, *third.clusters)] == [(7, 1), (3, 14)]
    assert third.next_page_token == ""
    again = clusters(live, page_size=9, page_token=first.next_page_token)
    assert [c.id for c in again.clusters] == [7, 3]


def test_a_page_token_of_another_run_is_refused(live: Scene) -> None:
    """Clusters of two runs are never joined; the answer says to start over."""
    token = clusters(live, page_size=1).next_page_token
    make_live(live.store, "r:2", "b")
    with pytest.raises(Conflict, match="is of run r:1, the active run is r:2: start over"):
        clusters(live, page_size=1, page_token=token)


def token_of(*ids: int) -> str:
    """The token of a page of run r:1 that begins with these clusters."""
    packed = zlib.compress(np.array(ids, "<i4").tobytes())
    return f"r:1:{base64.urlsafe_b64encode(packed).decode()}"


@pytest.mark.parametrize(
    "token",
    [
        "1",
        ":1",
        "r:1:x",
        "r:1:-1",
        "r:1:",
        "r:1:2",
        token_of(),
        token_of(2, 2),
        token_of(2, 4),
        token_of(2, 3, 7, 2),
        token_of(*range(10**6)),
        token_of(2)[3:],
        token_of(2)[:-4],
        token_of(2) + "!",
    ],
    ids=lambda token: token[:12],
)
def test_a_page_token_that_nobody_gave_is_refused(live: Scene, token: str) -> None:
    """A malformed token is the caller's mistake, and named."""
    with pytest.raises(InvalidArgument, match=r"page_token: no such page: '.*'") as caught:
        clusters(live, page_token=token)
    assert caught.value.metadata == {"field": "page_token"}


def test_page_and_exemplars_are_limited(live: Scene) -> None:
    """1000 clusters and 20 exemplars in a list, 1000 exemplars of one cluster."""
    assert clusters(live, page_size=1000, exemplars=20).clusters
    assert cluster(live, 2, exemplars=1000)
    with pytest.raises(InvalidArgument, match="page_size: expected 1 to 1000, got 1001"):
        clusters(live, page_size=1001)
    with pytest.raises(InvalidArgument, match="exemplars: expected 0 to 20, got 21") as caught:
        clusters(live, exemplars=21)
    assert caught.value.metadata == {"field": "exemplars"}
    with pytest.raises(InvalidArgument, match="exemplars: expected 0 to 1000, got 1001"):
        cluster(live, 2, exemplars=1001)


def test_exemplars_are_as_many_as_are_asked_for(live: Scene) -> None:
    """3 by default in a list and 10 of one cluster; 0 is none, and costs no search."""
    assert {len(c.exemplars) for c in clusters(live).clusters} == {3}
    assert {len(c.exemplars) for c in clusters(live, exemplars=5).clusters} == {5}
    assert len(cluster(live, 2).exemplars) == 10
    assert len(cluster(live, 2, exemplars=1000).exemplars) == 15
    live.store.queries.clear()
    assert not cluster(live, 2, exemplars=0).exemplars
    assert {len(c.exemplars) for c in clusters(live, exemplars=0).clusters} == {0}
    assert not live.store.queries


def test_exemplars_are_members_near_the_centroid(live: Scene) -> None:
    """Of 16 candidates for each; exact, of the cluster alone, the medoid first."""
    found = cluster(live, 2, exemplars=4)
    axis = np.eye(DIM, dtype=np.float32)[0]
    members = live.nearest(axis, 2, live.toys)
    assert found.exemplars[0].id == members[0]
    assert {hit.id for hit in found.exemplars} <= {*members}
    assert {hit.cluster for hit in found.exemplars} == {2}
    (query,) = live.store.queries
    assert (query.limit, query.exact, query.vector_name) == (64, True, "toy")
    cluster(live, 2, exemplars=40)
    cluster(live, 2, exemplars=600)
    assert [each.limit for each in live.store.queries[1:]] == [512, 600]


def test_farthest_first_takes_what_is_least_like_all_before_it() -> None:
    """Each next row has the smallest largest cosine to the rows taken; a naive loop agrees."""
    rows = unit(np.random.default_rng(5).normal(size=(30, 4)))
    taken = [0]
    while len(taken) < 12:
        left = [row for row in range(len(rows)) if row not in taken]
        taken.append(min(left, key=lambda row: float((rows[taken] @ rows[row]).max())))
    assert farthest_first(rows, 12) == taken


def test_exemplars_of_a_joint_vector_are_ranked_by_both_parts(scene: Scene) -> None:
    """Searched by the part that says most, but the medoid is the nearest in the joint space."""
    rng = np.random.default_rng(3)
    centroids = [
        joined([unit(rng.normal(size=DIM)) * 0.2, unit(rng.normal(size=3)) * 1.4]) for _ in CLUSTERS
    ]
    centroids = [unit(centroid) for centroid in centroids]
    make_live(scene.store, "r1", "a", vector="toy+tint", centroids=centroids)
    both = joined([scene.toys, scene.tints])
    for centroid, number in zip(centroids, CLUSTERS, strict=True):
        scene.store.queries.clear()
        found = cluster(scene, number, exemplars=2)
        (query,) = scene.store.queries
        assert query.vector_name == "tint"
        np.testing.assert_allclose(query.vector, unit(centroid[DIM:]), atol=1e-5)
        medoid = scene.nearest(centroid, number, both)[0]
        assert found.exemplars[0].id == medoid
        scores = both @ centroid
        for hit in found.exemplars:
            at = next(i for i in range(COUNT) if point_id(str(i)) == hit.id)
            assert hit.score == pytest.approx(float(scores[at]), abs=1e-5)


@pytest.mark.parametrize("number", [0, NOISE, 99])
def test_cluster_that_the_run_does_not_have_is_not_found(live: Scene, number: int) -> None:
    """Noise is no cluster."""
    with pytest.raises(NotFound, match=f"no cluster {number} in run r:1"):
        cluster(live, number)


def test_before_the_first_run_there_are_no_clusters(scene: Scene) -> None:
    """A list is empty and counts who waits; one cluster cannot be had."""
    listed = clusters(scene)
    assert (len(listed.clusters), listed.run, listed.unassigned) == (0, "", COUNT)
    with pytest.raises(Conflict, match="run `shoal cluster` first"):
        cluster(scene, 2)


def test_page_too_large_for_a_message_is_refused(
    live: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how many clusters fit, and that many do."""
    whole = clusters(live)
    sizes = [each.ByteSize() for each in whole.clusters]
    assert len(sizes) == len(CLUSTERS)
    monkeypatch.setattr(listing, "AnswerRoom", partial(AnswerRoom, sum(sizes) - 1))
    with pytest.raises(InvalidArgument, match=f"the first {len(sizes) - 1} entries fit"):
        clusters(live)
    assert len(clusters(live, page_size=len(sizes) - 1).clusters) == len(sizes) - 1
    monkeypatch.setattr(listing, "AnswerRoom", partial(AnswerRoom, sum(sizes)))
    assert clusters(live) == whole


def test_unassigned_points_are_counted_in_the_active_slot(live: Scene) -> None:
    """A point that has a cluster in the other slot only still waits for its own."""
    live.store.set_payload(
        "toys", {"b": 2}, where=Filter(must=(Equals("n", UNASSIGNED),)), key="clusters.default"
    )
    assert clusters(live).unassigned == 1
    make_live(live.store, "r:2", "b")
    assert clusters(live).unassigned == 0
