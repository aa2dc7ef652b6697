from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.struct_pb2 import Value
from reclustering import DIM, blobs
from searching import FINGERPRINT, Scene, searching

from search.listing import farthest_first
from shoal import vectors
from shoal.errors import NotFound, Overloaded, ShoalError, Unauthenticated
from shoal.rpc.status import from_rpc_error
from shoal.store import Point, Store, StoreConfig, open_store, point_id
from shoal.store.model import Collection, Filter, IdIn
from shoal.v1 import common_pb2
from shoal.v1 import search_pb2 as pb
from shoal.values import VectorInfo


@pytest.fixture(params=["embedded", "memory"])
def scene(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Scene]:
    config = (
        StoreConfig(path=quick_path / "store")
        if request.param == "embedded"
        else StoreConfig(in_memory=True)
    )
    with open_store(config) as store, searching(store) as made:
        yield made


def messages(vector: np.ndarray) -> common_pb2.Vector:
    return common_pb2.Vector(values=vectors.encode(vector), dim=len(vector))


def brute(scene: Scene, query: np.ndarray, keep: Callable[[str], bool]) -> list[str]:
    """Ids by cosine to ``query``, nearest first, of the points that ``keep`` keeps."""
    kept = [i for i, one in enumerate(scene.ids) if keep(one)]
    scores = scene.vectors[kept] @ query
    return [scene.ids[kept[at]] for at in np.argsort(-scores, kind="stable")]


def reason(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = from_rpc_error(caught.value, "test")
    return error.reason, error.message


def assert_same_hits(one: pb.SearchResponse, other: pb.SearchResponse) -> None:
    """The same ids; the last bit of a score depends on where NumPy finds the query in memory."""
    assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
    scores = [hit.score for hit in other.hits]
    assert [hit.score for hit in one.hits] == pytest.approx(scores, abs=1e-6)


def test_search_any_equals_brute_force(scene: Scene) -> None:
    """Without a restriction the hits are the nearest of all points, by NumPy's account."""
    query = blobs(1, seed=5)[0]
    found = scene.stub.Search(pb.SearchRequest(collection="toys", vector=messages(query), limit=30))
    assert [hit.id for hit in found.hits] == brute(scene, query, lambda _: True)[:30]
    assert found.hits[0].score == pytest.approx(float((scene.vectors @ query).max()), abs=1e-5)
    assert (found.run, found.HasField("cluster")) == ("", False)
    assert not found.hits[0].HasField("cluster")


def test_search_auto_is_exact_inside_the_querys_own_cluster(scene: Scene) -> None:
    """The query's cluster is the nearest centroid's; all hits are of it, and none is missed."""
    scene.bench.recluster(4)
    labels = scene.bench.labels()
    query = blobs(1, centres=4, seed=6, spread=0.3)[0]
    clusters = scene.bench.clusterings.clusters("default", scene.bench.state.pointer.active_run)
    own = clusters[int(np.argmax([c.centroid @ query for c in clusters]))].cluster

    found = scene.stub.Search(
        pb.SearchRequest(
            collection="toys", vector=messages(query), limit=20, within=pb.Within(auto=True)
        )
    )

    assert found.cluster == own
    assert found.run == scene.bench.state.pointer.active_run
    assert {hit.cluster for hit in found.hits} == {own}
    assert [hit.id for hit in found.hits] == brute(scene, query, lambda one: labels[one] == own)[
        :20
    ]


def test_search_by_image_asks_the_embedder(scene: Scene) -> None:
    """An image becomes the vector that the embedder gives; what it objects to is passed on."""
    query = blobs(1, seed=7)[0]
    image = common_pb2.Image(data=vectors.encode(query))
    by_image = scene.stub.Search(pb.SearchRequest(collection="toys", image=image))
    by_vector = scene.stub.Search(pb.SearchRequest(collection="toys", vector=messages(query)))
    assert_same_hits(by_image, by_vector)

    assert scene.embedder.asked == FINGERPRINT
    bad = pb.SearchRequest(collection="toys", image=common_pb2.Image(data=b"x"))
    assert reason(lambda: scene.stub.Search(bad)) == ("IMAGE_CORRUPT", "not a toy")

    scene.embedder.fingerprint = "e" * 64
    other = pb.SearchRequest(collection="toys", image=image)
    assert reason(lambda: scene.stub.Search(other))[0] == "ENCODER_MISMATCH"


def test_search_by_text_asks_the_embedder(scene: Scene) -> None:
    """A text becomes the vector that the embedder gives, and is searched for as such."""
    axis = np.eye(DIM, dtype=np.float32)[3]
    by_text = scene.stub.Search(pb.SearchRequest(collection="toys", text="3"))
    by_vector = scene.stub.Search(pb.SearchRequest(collection="toys", vector=messages(axis)))
    assert_same_hits(by_text, by_vector)
    assert scene.embedder.asked == FINGERPRINT
    bad = pb.SearchRequest(collection="toys", text="three")
    assert reason(lambda: scene.stub.Search(bad)) == ("INVALID_ARGUMENT", "not a number")


@pytest.mark.parametrize(
    ("failure", "expected", "words"),
    [
        (NotFound("this server has clip"), "ENCODER_MISMATCH", "made with the encoder 'toy'"),
        (Unauthenticated("who are you"), "SERVICE_UNAVAILABLE", "search service's token"),
        (Overloaded("full"), "OVERLOADED", "full"),
    ],
)
def test_search_tells_what_an_embedders_failure_means(
    scene: Scene, failure: ShoalError, expected: str, words: str
) -> None:
    """The embedder's words are about its caller, the search service; the user's are translated."""
    scene.embedder.failure = failure
    request = pb.SearchRequest(collection="toys", image=common_pb2.Image(data=b"x"))
    got, message = reason(lambda: scene.stub.Search(request))
    assert got == expected
    assert words in message


def test_search_by_id_or_key_leaves_the_point_itself_out(scene: Scene) -> None:
    """A stored point finds its neighbours in its stored cluster, by its id and by its key."""
    scene.bench.recluster(4)
    labels = scene.bench.labels()
    me = scene.ids[3]
    by_id, by_key = (
        scene.stub.Search(
            pb.SearchRequest(collection="toys", id=ref, limit=7, within=pb.Within(auto=True))
        )
        for ref in (me, "3")
    )
    assert by_id == by_key
    assert by_id.cluster == labels[me]
    assert [hit.id for hit in by_id.hits] == brute(
        scene, scene.vectors[3], lambda one: one != me and labels[one] == labels[me]
    )[:7]


def test_search_filter_offset_and_score_narrow_the_hits(scene: Scene) -> None:
    """Payload filters, an offset and a least score mean what NumPy says they mean."""
    query = scene.vectors[0]
    low = common_pb2.Condition(field="n", range=common_pb2.Range(lt=50))
    request = pb.SearchRequest(
        collection="toys", vector=messages(query), filter=common_pb2.Filter(must=[low]), limit=10
    )
    expected = brute(scene, query, lambda one: scene.ids.index(one) < 50)
    assert [h.id for h in scene.stub.Search(request).hits] == expected[:10]
    request.offset = 4
    assert [h.id for h in scene.stub.Search(request).hits] == expected[4:14]
    request.min_score = 0.99999
    request.offset = 0
    assert [h.id for h in scene.stub.Search(request).hits] == expected[:1]

    one = common_pb2.Condition(field="n", equals=Value(number_value=7))
    request = pb.SearchRequest(
        collection="toys", vector=messages(query), filter=common_pb2.Filter(must=[one])
    )
    hits = scene.stub.Search(request).hits
    assert [(h.id, h.payload["n"]) for h in hits] == [(scene.ids[7], 7)]


def test_search_payload_never_shows_the_slots(scene: Scene) -> None:
    """Readers get the caller's fields; which slot means what is the pointer's business."""
    scene.bench.recluster(4)
    hit = scene.stub.Search(pb.SearchRequest(collection="toys", id="0", with_vectors=True)).hits[0]
    assert set(hit.payload.keys()) == {"n", "ingested_at"}
    stored = vectors.decode(hit.vector.values, hit.vector.dim)
    np.testing.assert_allclose(stored, scene.vectors[scene.ids.index(hit.id)], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected", "words"),
    [
        ({}, "INVALID_ARGUMENT", "expected an image, id, vector or text"),
        ({"id": "nobody"}, "NOT_FOUND", "'nobody'"),
        ({"vector": messages(np.ones(3, np.float32) / 3**0.5)}, "INVALID_ARGUMENT", r"(16,)"),
        ({"vector": messages(np.ones(DIM, np.float32))}, "INVALID_ARGUMENT", "length 1"),
        ({"vector": common_pb2.Vector(values=b"xx", dim=16)}, "INVALID_ARGUMENT", "64 bytes"),
        ({"id": "1", "limit": 10_001}, "INVALID_ARGUMENT", "limit"),
        ({"id": "1", "min_score": 2.0}, "INVALID_ARGUMENT", "min_score"),
        ({"id": "1", "within": pb.Within(cluster=99)}, "NOT_FOUND", "cluster 99"),
        ({"id": "1", "vector_name": "clip"}, "INVALID_ARGUMENT", "'clip'"),
        ({"id": "1", "collection": "none"}, "NOT_FOUND", "'none'"),
        ({"id": "1", "clustering": "nope"}, "NOT_FOUND", "'nope': expected one of default"),
        (
            {"id": "1", "filter": common_pb2.Filter(must=[common_pb2.Condition(field="n")])},
            "INVALID_ARGUMENT",
            "'n'",
        ),
    ],
)
def test_search_bad_request_says_what_was_expected(
    scene: Scene, fields: dict[str, Any], expected: str, words: str
) -> None:
    """Each bad request has its reason, and words that name the culprit."""
    scene.bench.recluster(2)
    request = pb.SearchRequest(**{"collection": "toys", **fields})
    got, message = reason(lambda: scene.stub.Search(request))
    assert got == expected
    assert words in message


def test_search_within_a_cluster_before_the_first_run_is_refused(scene: Scene) -> None:
    """There are no clusters to search in, and the answer says how to get some."""
    request = pb.SearchRequest(collection="toys", id="1", within=pb.Within(auto=True))
    assert reason(lambda: scene.stub.Search(request))[1].endswith("run `shoal cluster` first")


def test_a_clustering_that_is_not_there_is_refused_wherever_it_is_named(scene: Scene) -> None:
    """The default one may still be to come; any other name is a mistake."""
    where = {"collection": "toys", "clustering": "nope"}
    for call in (
        lambda: scene.stub.ListClusters(pb.ListClustersRequest(**where)),
        lambda: scene.stub.GetCluster(pb.GetClusterRequest(**where, cluster=0)),
        lambda: scene.stub.GetPoint(pb.GetPointRequest(**where, id="1")),
    ):
        got, message = reason(call)
        assert got == "NOT_FOUND"
        assert "'nope'" in message


def test_farthest_first_covers_what_is_there() -> None:
    """Two of three groups seen, the third is next; never a row twice; the first is kept."""
    vectors = np.concatenate([blobs(4, centres=1, spread=0.01), -blobs(4, centres=1, spread=0.01)])
    taken = farthest_first(vectors, 3)
    assert taken[0] == 0
    assert taken[1] >= 4
    assert sorted(farthest_first(vectors, 99)) == list(range(8))
    assert farthest_first(vectors, 1) == [0]


def test_clusters_are_listed_with_live_counts_and_exemplars(scene: Scene) -> None:
    """Largest first; the first exemplar is the member nearest to the centroid; counts are live."""
    scene.bench.recluster(4)
    labels = scene.bench.labels()
    scene.bench.store.delete("toys", Filter((IdIn(scene.ids[:8]),)))

    listed = scene.stub.ListClusters(pb.ListClustersRequest(collection="toys", exemplars=2))

    left = {one: labels[one] for one in scene.ids[8:]}
    sizes = [c.size for c in listed.clusters]
    assert sizes == sorted(sizes, reverse=True)
    assert {c.id: c.size for c in listed.clusters} == {
        label: sum(v == label for v in left.values()) for label in set(left.values())
    }
    records = scene.bench.clusterings.clusters("default", listed.run)
    for cluster in listed.clusters:
        centroid = next(r.centroid for r in records if r.cluster == cluster.id)
        expected = brute(scene, centroid, lambda one, c=cluster.id: left.get(one) == c)  # type: ignore[misc]
        # The second is the one least like the medoid, of the 32 nearest to the centroid.
        medoid = scene.vectors[scene.ids.index(expected[0])]
        unlike = brute(scene, medoid, lambda one, near=expected[:32]: one in near)[-1]  # type: ignore[misc]
        assert [hit.id for hit in cluster.exemplars] == [expected[0], unlike]
        assert cluster.lineage.kind == 2  # born
    assert (listed.noise, listed.unassigned) == (0, 0)


def test_clusters_are_paged_within_one_run(scene: Scene) -> None:
    """Pages join to the whole list; a token of another run is refused, not misread."""
    scene.bench.recluster(4)
    request = pb.ListClustersRequest(collection="toys", page_size=3)
    first = scene.stub.ListClusters(request)
    request.page_token = first.next_page_token
    second = scene.stub.ListClusters(request)
    assert len({c.id for c in (*first.clusters, *second.clusters)}) == 4
    assert second.next_page_token == ""

    scene.bench.recluster(5, warm_start=False)
    assert reason(lambda: scene.stub.ListClusters(request))[0] == "CONFLICT"


def test_clusters_before_the_first_run_are_none(scene: Scene) -> None:
    """An empty list, and the number of points that wait."""
    listed = scene.stub.ListClusters(pb.ListClustersRequest(collection="toys"))
    assert (len(listed.clusters), listed.run, listed.unassigned) == (0, "", 200)


def test_cluster_point_and_collection_are_read_one_by_one(scene: Scene) -> None:
    """GetCluster, GetPoint and GetCollection agree with the store."""
    scene.bench.recluster(3)
    labels = scene.bench.labels()
    cluster = scene.stub.GetCluster(pb.GetClusterRequest(collection="toys", cluster=1))
    assert cluster.size == sum(v == 1 for v in labels.values())
    assert len(cluster.exemplars) == 10

    point = scene.stub.GetPoint(pb.GetPointRequest(collection="toys", id="5", with_vectors=True))
    assert (point.id, point.cluster) == (scene.ids[5], labels[scene.ids[5]])
    stored = vectors.decode(point.vectors["toy"].values, DIM)
    np.testing.assert_allclose(stored, scene.vectors[5], atol=1e-6)

    collection = scene.stub.GetCollection(pb.GetCollectionRequest(collection="toys"))
    assert (collection.points, collection.vectors[0].dim) == (200, DIM)
    assert list(scene.stub.ListCollections(pb.ListCollectionsRequest()).collections) == [collection]


def test_collections_are_listed_by_name_in_pages(scene: Scene) -> None:
    """Every collection once, whatever the size of a page; a token is the last name before."""
    for name in ("zoo", "a-b", "a"):
        scene.bench.store.create_collection(name, [VectorInfo("vit_b.16", 4, "c" * 64)])
    for size, pages in ((0, 1), (1, 4), (2, 2), (3, 2), (4, 1)):
        found, token, count = list[str](), "", 0
        while count == 0 or token:
            request = pb.ListCollectionsRequest(page_size=size, page_token=token)
            page = scene.stub.ListCollections(request)
            found += [each.name for each in page.collections]
            token, count = page.next_page_token, count + 1
        assert (found, count) == (["a", "a-b", "toys", "zoo"], pages)
    past = scene.stub.ListCollections(pb.ListCollectionsRequest(page_token="zoo"))
    assert (len(past.collections), past.next_page_token) == (0, "")
    too_many = pb.ListCollectionsRequest(page_size=1001)
    assert reason(lambda: scene.stub.ListCollections(too_many))[0] == "INVALID_ARGUMENT"


def test_a_vectors_name_may_have_dots(scene: Scene) -> None:
    """Such as encoders have: it is searched, and shown, by that name."""
    name, vector = "vit_b.16", vectors.unit(np.arange(1, 5))
    store = scene.bench.store
    store.create_collection("dots", [VectorInfo(name, 4, "c" * 64)])
    store.upsert("dots", [Point(point_id("k"), {name: vector}, {"n": 1})])
    request = pb.SearchRequest(collection="dots", vector=messages(vector), vector_name=name)
    assert [hit.id for hit in scene.stub.Search(request).hits] == [point_id("k")]
    point = scene.stub.GetPoint(pb.GetPointRequest(collection="dots", id="k", with_vectors=True))
    assert list(point.vectors) == [name]


def test_search_by_image_reads_the_collection_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request asks is checked once, before the embedder is troubled."""
    read = list[str]()
    collection = type(scene.bench.store).collection

    def spy(store: Store, name: str) -> Collection:
        read.append(name)
        return collection(store, name)

    scene.bench.recluster(2)
    image = common_pb2.Image(data=vectors.encode(scene.vectors[0]))
    request = pb.SearchRequest(collection="toys", image=image)
    scene.stub.Search(request)  # the run's clusters are in memory from here on
    monkeypatch.setattr(type(scene.bench.store), "collection", spy)
    scene.stub.Search(request)
    assert read == ["toys"]
    scene.embedder.failure = Overloaded("not asked")
    request.limit = 10_001
    assert reason(lambda: scene.stub.Search(request))[0] == "INVALID_ARGUMENT"


def test_search_follows_the_pointer_at_once(scene: Scene) -> None:
    """After a cutover the next request sees the new run, although the old one was cached."""
    request = pb.SearchRequest(collection="toys", id="1", within=pb.Within(auto=True), limit=200)
    for k in (2, 5, 3):
        scene.bench.recluster(k, warm_start=False)
        labels = scene.bench.labels()
        found = scene.stub.Search(request)
        assert found.run == scene.bench.state.pointer.active_run
        assert {h.id for h in found.hits} == {
            one for one in scene.ids if labels[one] == labels[scene.ids[1]] and one != scene.ids[1]
        }
