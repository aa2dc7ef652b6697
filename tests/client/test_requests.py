"""Each method of both clients: which request it sends, and what its answer becomes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from clients import Fake, make_items
from google.protobuf.message import Message

from shoal import errors, vectors
from shoal.client import (
    Client,
    Collection,
    Drift,
    Duplicate,
    DuplicateGroup,
    EmbeddingVectors,
    EncoderInfo,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Lineage,
    Method,
    Naming,
    RunOptions,
    RunState,
    Schedule,
    ScpHead,
    SearchOptions,
    StoredId,
    TextCentroids,
    VectorInfo,
)
from shoal.v1 import clusterer_pb2, common_pb2, embedder_pb2, search_pb2

UNIT = vectors.unit(np.array([3.0, 4.0], np.float32))
VECTOR = common_pb2.Vector(values=vectors.encode(UNIT), dim=2, fingerprint="f")

CASES: dict[str, tuple[Callable[[Client], Any], Message]] = {
    "info": (lambda c: c.info(), embedder_pb2.GetInfoRequest()),
    "embed": (
        lambda c: c.embed([b"1", b"2"], encoder="e", fingerprint="f"),
        embedder_pb2.EmbedRequest(
            images=[common_pb2.Image(data=b"1"), common_pb2.Image(data=b"2")],
            encoder="e",
            fingerprint="f",
        ),
    ),
    "embed text": (
        lambda c: c.embed_text(["a", "b"], encoder="e", fingerprint="f"),
        embedder_pb2.EmbedTextRequest(texts=["a", "b"], encoder="e", fingerprint="f"),
    ),
    "get run": (
        lambda c: c.get_run("r", collection="c"),
        clusterer_pb2.GetRunRequest(collection="c", run="r"),
    ),
    "watch": (
        lambda c: list(c.watch("r", collection="c")),
        clusterer_pb2.WatchRunRequest(collection="c", run="r"),
    ),
    "runs": (
        lambda c: list(c.runs(collection="c", clustering="k")),
        clusterer_pb2.ListRunsRequest(collection="c", clustering="k"),
    ),
    "cancel": (
        lambda c: c.cancel("r", collection="c"),
        clusterer_pb2.CancelRunRequest(collection="c", run="r"),
    ),
    "clustering": (
        lambda c: c.clustering("k", collection="c"),
        clusterer_pb2.GetClusteringRequest(collection="c", clustering="k"),
    ),
    "clusterings": (
        lambda c: c.clusterings(collection="c"),
        clusterer_pb2.ListClusteringsRequest(collection="c"),
    ),
    "remove schedule": (
        lambda c: c.remove_schedule(collection="c", clustering="k"),
        clusterer_pb2.SetScheduleRequest(collection="c", clustering="k"),
    ),
    "duplicates": (
        lambda c: list(c.duplicates(collection="c", vector="v", min_cosine=0.5)),
        clusterer_pb2.ListDuplicatesRequest(collection="c", vector="v", min_cosine=0.5),
    ),
    "sample vectors": (
        lambda c: c.sample_vectors(collection="c", vector="v", size=3, seed=4),
        clusterer_pb2.SampleVectorsRequest(collection="c", vector="v", size=3, seed=4),
    ),
    "clusters": (
        lambda c: c.clusters(collection="c", clustering="k", exemplars=0),
        search_pb2.ListClustersRequest(collection="c", clustering="k", exemplars=0),
    ),
    "get cluster": (
        lambda c: c.get_cluster(0, collection="c", clustering="k", exemplars=0),
        search_pb2.GetClusterRequest(collection="c", clustering="k", cluster=0, exemplars=0),
    ),
    "point": (
        lambda c: c.point("i", collection="c", clustering="k", with_vectors=True),
        search_pb2.GetPointRequest(collection="c", id="i", clustering="k", with_vectors=True),
    ),
    "collection": (
        lambda c: c.collection("c"),
        search_pb2.GetCollectionRequest(collection="c"),
    ),
    "collections": (lambda c: list(c.collections()), search_pb2.ListCollectionsRequest()),
    "search": (
        lambda c: c.search(
            StoredId("i"),
            collection="c",
            within=-1,
            limit=7,
            options=SearchOptions(
                clustering="k",
                offset=3,
                min_score=0.0,
                vector="v",
                with_vectors=True,
                approximate=True,
            ),
        ),
        search_pb2.SearchRequest(
            collection="c",
            id="i",
            within=search_pb2.Within(cluster=-1),
            limit=7,
            filter=common_pb2.Filter(),
            clustering="k",
            offset=3,
            min_score=0.0,
            vector_name="v",
            with_vectors=True,
            approximate=True,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_request_says_what_was_asked(client: Client, fake: Fake, name: str) -> None:
    """Each argument is in its field, and nothing else is; the token of no page is sent."""
    call, request = CASES[name]
    fake.error = errors.Conflict("as expected")
    with pytest.raises(errors.Conflict, match="as expected"):
        call(client)
    assert fake.requests == [request]


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        (
            lambda c: c.search(StoredId("i")),
            search_pb2.SearchRequest(
                collection="images",
                id="i",
                within=search_pb2.Within(any=True),
                limit=10,
                filter=common_pb2.Filter(),
                clustering="default",
            ),
        ),
        (
            lambda c: c.clusters(),
            search_pb2.ListClustersRequest(collection="images", clustering="default", exemplars=3),
        ),
        (
            lambda c: c.get_cluster(2),
            search_pb2.GetClusterRequest(
                collection="images", clustering="default", cluster=2, exemplars=10
            ),
        ),
        (
            lambda c: c.point("i"),
            search_pb2.GetPointRequest(collection="images", id="i", clustering="default"),
        ),
        (lambda c: c.collection(), search_pb2.GetCollectionRequest(collection="images")),
        (lambda c: list(c.runs()), clusterer_pb2.ListRunsRequest(collection="images")),
        (
            lambda c: c.clustering(),
            clusterer_pb2.GetClusteringRequest(collection="images", clustering="default"),
        ),
        (
            lambda c: list(c.duplicates()),
            clusterer_pb2.ListDuplicatesRequest(collection="images"),
        ),
        (lambda c: c.sample_vectors(), clusterer_pb2.SampleVectorsRequest(collection="images")),
        (
            lambda c: c.remove_schedule(),
            clusterer_pb2.SetScheduleRequest(collection="images", clustering="default"),
        ),
    ],
)
def test_request_has_the_defaults(
    client: Client, fake: Fake, call: Callable[[Client], Any], request_: Message
) -> None:
    """The collection "images" and the clustering "default"; what is not said stays absent."""
    fake.error = errors.Conflict("as expected")
    with pytest.raises(errors.Conflict):
        call(client)
    assert fake.requests == [request_]


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (
            KMeans(3, n_init=2, max_iterations=4, mini_batch=5),
            {"kmeans": clusterer_pb2.KMeans(k=3, n_init=2, max_iterations=4, mini_batch=5)},
        ),
        (
            KMeans("auto"),
            {"kmeans": clusterer_pb2.KMeans(auto=clusterer_pb2.AutoCount(min=2, max=9))},
        ),
        (
            GaussianMixture(3, reduced_dim=4),
            {"gmm": clusterer_pb2.GaussianMixture(k=3, reduced_dim=4)},
        ),
        (
            GaussianMixture("auto"),
            {"gmm": clusterer_pb2.GaussianMixture(auto=clusterer_pb2.AutoCount(min=2, max=9))},
        ),
        (
            Hdbscan(3, 2, "pca", 5, 0.0),
            {
                "hdbscan": clusterer_pb2.Hdbscan(
                    min_cluster_size=3,
                    min_samples=2,
                    reduction="pca",
                    reduced_dim=5,
                    noise_threshold=0.0,
                )
            },
        ),
        (ScpHead("h", retrain=True), {"scp": clusterer_pb2.ScpHead(head="h", retrain=True)}),
        (
            TextCentroids(("a", "b"), fixed=True),
            {"text": clusterer_pb2.TextCentroids(texts=["a", "b"], fixed=True)},
        ),
        (
            EmbeddingVectors(layer=0, min_cluster_size=3),
            {"evoc": clusterer_pb2.EmbeddingVectors(layer=0, min_cluster_size=3)},
        ),
        (
            EmbeddingVectors(layer="coarsest"),
            {"evoc": clusterer_pb2.EmbeddingVectors(coarsest=True)},
        ),
        (EmbeddingVectors(), {"evoc": clusterer_pb2.EmbeddingVectors()}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_each_method_is_sent_whole(
    client: Client, fake: Fake, method: Method, config: dict[str, Any]
) -> None:
    """Every parameter of a method, and the options that go with it; a schedule has the same."""
    options = RunOptions(
        seed=1,
        sample_size=2,
        vector="v",
        cold_start=True,
        plan_only=True,
        force=True,
        k_min=2,
        k_max=9,
        duplicate_cosine=0.0,
        noise_only=True,
        naming=Naming(("f", "g"), {"cat": UNIT}),
    )
    expected = clusterer_pb2.CreateRunRequest(
        collection="c",
        clustering="k",
        config=clusterer_pb2.ClusteringConfig(
            seed=1, sample_size=2, vector="v", cold_start=True, duplicate_cosine=0.0, **config
        ),
        plan_only=True,
        force=True,
        noise_only=True,
        naming=clusterer_pb2.Naming(
            fields=["f", "g"],
            vocabulary=[{"text": "cat", "vector": vectors.encode(UNIT)}],  # type: ignore[list-item]
        ),
    )
    fake.answers = [clusterer_pb2.Run(id="r"), clusterer_pb2.Clustering(name="k")]
    assert client.start_run(method, collection="c", clustering="k", options=options).id == "r"
    schedule = Schedule(cron="5 * * * *", only_if_due=True)
    made = client.set_schedule(schedule, method, collection="c", clustering="k", options=options)
    assert made.name == "k"
    started, scheduled = fake.requests
    assert uuid.UUID(started.request_id)
    started.request_id = ""
    assert started == expected
    assert scheduled == clusterer_pb2.SetScheduleRequest(
        collection="c",
        clustering="k",
        schedule=clusterer_pb2.Schedule(cron="5 * * * *", only_if_due=True, request=expected),
    )


def test_schedule_by_interval_has_no_cron(client: Client, fake: Fake) -> None:
    """Seconds become a duration, to the nanosecond."""
    fake.answers = [clusterer_pb2.Clustering()]
    client.set_schedule(Schedule(interval_s=90.5), KMeans(2))
    (request,) = fake.requests
    assert request.schedule.WhichOneof("when") == "interval"
    assert request.schedule.interval.ToMilliseconds() == 90_500
    assert not request.schedule.only_if_due


def test_rollback_names_the_clustering_and_itself(client: Client, fake: Fake) -> None:
    """A rollback that is sent twice is one rollback: it has an id of its own."""
    fake.answers = [clusterer_pb2.Clustering(active_run="r0")]
    assert client.rollback(collection="c", clustering="k").active_run == "r0"
    (request,) = fake.requests
    assert (request.collection, request.clustering) == ("c", "k")
    assert uuid.UUID(request.request_id)


def test_clustering_comes_back_whole(client: Client, fake: Fake) -> None:
    """With the drift and the schedule if there are any, and times that are aware."""
    message = clusterer_pb2.Clustering(
        collection="c",
        name="k",
        active_run="r2",
        previous_run="r1",
        clusters=3,
        assigned=4,
        unassigned=5,
        running="r3",
        drift=clusterer_pb2.Drift(
            newcomers=1,
            noise_share=0.25,
            run_noise_share=0.5,
            confidence=0.75,
            run_confidence=0.125,
            psi=2.0,
            due=True,
            signs=["a", "b"],
        ),
        schedule=clusterer_pb2.Schedule(only_if_due=True, last_run="r0"),
    )
    message.changed_at.FromDatetime(datetime(2024, 1, 2, tzinfo=UTC))
    message.schedule.interval.FromMilliseconds(1500)
    fake.answers = [
        clusterer_pb2.ListClusteringsResponse(
            clusterings=[message, clusterer_pb2.Clustering(name="x")]
        )
    ]
    first, second = client.clusterings()
    assert (first.collection, first.name, first.active_run) == ("c", "k", "r2")
    assert (first.previous_run, first.running) == ("r1", "r3")
    assert (first.clusters, first.assigned, first.unassigned) == (3, 4, 5)
    assert first.changed_at == datetime(2024, 1, 2, tzinfo=UTC)
    assert first.drift == Drift(1, 0.25, 0.5, 0.75, 0.125, 2.0, True, ("a", "b"))
    assert first.schedule == Schedule(interval_s=1.5, only_if_due=True, last_run="r0")
    assert (second.drift, second.schedule, second.changed_at) == (None, None, None)


def test_cluster_comes_back_whole(client: Client, fake: Fake) -> None:
    """With its lineage, its exemplars and the run that it is of."""
    message = search_pb2.Cluster(id=3, size=4, name="cats", cohesion=0.5, run="r")
    message.exemplars.add(id="1", score=0.25, cluster=3)
    message.lineage.CopyFrom(
        clusterer_pb2.Lineage(
            cluster=3, kind=clusterer_pb2.LINEAGE_KIND_CONTINUED, size=9, related=[1], overlap=0.75
        )
    )
    fake.answers = [message, search_pb2.Cluster()]
    found = client.get_cluster(3)
    assert (found.id, found.size, found.name, found.cohesion, found.run) == (3, 4, "cats", 0.5, "r")
    assert [(hit.id, hit.score, hit.cluster) for hit in found.exemplars] == [("1", 0.25, 3)]
    assert found.lineage == Lineage(3, "continued", 9, (1,), 0.75)
    assert client.get_cluster(3).lineage is None


def test_duplicates_come_in_groups(client: Client, fake: Fake) -> None:
    """A group counts members that are not listed too."""
    group = clusterer_pb2.DuplicateGroup(size=9)
    group.members.add(id="1", key="k", uri="u", cosine=1.0)
    group.members.add(id="2", key="l", uri="v", cosine=0.5)
    fake.answers = [[group, clusterer_pb2.DuplicateGroup(size=2)]]
    first, second = client.duplicates()
    assert first == DuplicateGroup(
        (Duplicate("1", "k", "u", 1.0), Duplicate("2", "l", "v", 0.5)), 9
    )
    assert second.size == 2


def test_sample_is_put_together(client: Client, fake: Fake) -> None:
    """Blocks of any length join to one matrix; fewer points than announced are what there is."""
    rows = vectors.unit(np.random.default_rng(0).normal(size=(5, 2)))

    def block(first: int, last: int) -> clusterer_pb2.SampledVectors:
        return clusterer_pb2.SampledVectors(
            ids=[str(i) for i in range(first, last)],
            uris=[f"u{i}" for i in range(first, last)],
            vectors=vectors.encode(rows[first:last]),
        )

    info = common_pb2.VectorInfo(name="v", dim=2, fingerprint="f")
    opening = clusterer_pb2.SampledVectors(vector=info, total=6)
    fake.answers = [[opening, block(0, 2), block(2, 5)], [opening], []]
    found = client.sample_vectors()
    assert (found.vector, found.fingerprint) == ("v", "f")
    assert found.ids == ("0", "1", "2", "3", "4")
    assert found.uris == ("u0", "u1", "u2", "u3", "u4")
    np.testing.assert_array_equal(found.vectors, rows)
    assert client.sample_vectors().vectors.shape == (0, 2)
    with pytest.raises(errors.ServiceUnavailable, match="ended the sample before it began"):
        client.sample_vectors()


def test_info_and_collections_come_back_whole(client: Client, fake: Fake) -> None:
    """Encoders and vectors in the server's order, with all that is known of them."""
    info = embedder_pb2.GetInfoResponse(
        version="1",
        max_image_bytes=2,
        max_image_pixels=3,
        max_batch_images=4,
        uri_schemes=["https"],
    )
    info.encoders.add(
        name="e",
        dim=2,
        fingerprint="f",
        provider="cpu",
        has_text=True,
        license="l",
        source="s",
        loaded=True,
        parts=["a", "b"],
    )
    first = search_pb2.Collection(name="a", points=3, clusterings=["k"])
    first.vectors.add(name="v", dim=2, fingerprint="f")
    first.created_at.FromDatetime(datetime(2024, 1, 2, tzinfo=UTC))
    fake.answers = [
        info,
        search_pb2.ListCollectionsResponse(collections=[first], next_page_token="a"),
        search_pb2.ListCollectionsResponse(collections=[search_pb2.Collection(name="b")]),
    ]
    found = client.info()
    assert found.encoders == (EncoderInfo("e", 2, "f", "cpu", True, "l", "s", True, ("a", "b")),)
    assert (found.version, found.uri_schemes) == ("1", ("https",))
    assert (found.max_image_bytes, found.max_image_pixels, found.max_batch_images) == (2, 3, 4)
    one, other = client.collections()
    assert one == Collection(
        "a", 3, (VectorInfo("v", 2, "f"),), ("k",), datetime(2024, 1, 2, tzinfo=UTC)
    )
    assert (other.name, other.created_at) == ("b", None)
    assert [request.page_token for request in fake.requests[1:]] == ["", "a"]


def test_point_and_hits_come_with_their_vectors(client: Client, fake: Fake) -> None:
    """By name for a point; a hit has the one that was compared."""
    point = search_pb2.Point(id="1", cluster=-1, vectors={"v": VECTOR})
    point.payload.update({"n": 1})
    hit = search_pb2.Hit(id="1", score=0.5, vector=VECTOR)
    fake.answers = [
        point,
        search_pb2.SearchResponse(hits=[hit], run="r", cluster=-1),
    ]
    found = client.point("1", with_vectors=True)
    assert (found.id, found.cluster, found.payload) == ("1", -1, {"n": 1})
    np.testing.assert_array_equal(found.vectors["v"], UNIT)
    result = client.search(UNIT)
    assert (result.run, result.cluster) == ("r", -1)
    np.testing.assert_array_equal(result.hits[0].vector, UNIT)
    assert fake.requests[1].vector == common_pb2.Vector(values=VECTOR.values, dim=2)


def test_watching_that_is_left_early_ends_the_call(client: Client, fake: Fake) -> None:
    """The server need not send all changes to nobody; the client goes on."""
    running = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_RUNNING)
    fake.answers = [[running] * 100_000, clusterer_pb2.Run(id="x")]
    changes = client.watch("r")
    assert next(changes).state is RunState.RUNNING
    changes.close()
    assert client.get_run("x").id == "x"


def test_token_goes_with_every_kind_of_call(make_client: Any, address: str, fake: Fake) -> None:
    """One answer, pages, streams and ingestions; without a token nothing is sent."""
    for token, sent in (("secret", "Bearer secret"), (None, None)):
        fake.answers = [
            search_pb2.Collection(),
            search_pb2.ListCollectionsResponse(),
            [clusterer_pb2.Run(id="r")],
        ]
        fake.metadata.clear()
        with make_client(address, token=token, timeout_s=10) as client:
            client.collection()
            list(client.collections())
            list(client.watch("r"))
            assert len(list(client.ingest(make_items("a", "b", "c"), streams=2))) == 3
        assert [each.get("authorization") for each in fake.metadata] == [sent] * 5
