"""The calls of both clients, against a real gRPC server whose answers one can predict."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from clients import Fake, make_items

from shoal import errors, vectors
from shoal.client import (
    AnyOf,
    Client,
    Empty,
    Filter,
    Gates,
    Hdbscan,
    ItemFailure,
    KMeans,
    Range,
    RunOptions,
    RunState,
    SearchOptions,
    StoredId,
    Text,
)
from shoal.rpc.status import item_error
from shoal.v1 import clusterer_pb2, common_pb2, embedder_pb2, embedder_pb2_grpc, search_pb2


def test_embed_answers_per_image(client: Client, fake: Fake) -> None:
    """A batch has a vector or a failure for each image, in order."""
    vector = vectors.unit(np.array([3.0, 4.0], np.float32))
    good = embedder_pb2.EmbedResult(
        vector=common_pb2.Vector(values=vectors.encode(vector), dim=2, fingerprint="f")
    )
    bad = embedder_pb2.EmbedResult(error=item_error(errors.ImageEmpty("no bytes")))
    fake.answers = [embedder_pb2.EmbedResponse(results=[good, bad])]
    first, second = client.embed([b"a", b""])
    assert first.vector is not None
    np.testing.assert_array_equal(first.vector, vector)
    assert (first.fingerprint, first.failure) == ("f", None)
    assert second.vector is None
    assert second.failure == ItemFailure("IMAGE_EMPTY", "no bytes")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.search(StoredId("k"), limit=-1),
        lambda client: client.search(StoredId("k"), within=2**63),
        lambda client: client.search(StoredId("\ud800")),
        lambda client: client.clusters(exemplars=2**32),
        lambda client: client.sample_vectors(seed=-1),
        lambda client: client.start_run(KMeans(k=-1)),
        lambda client: client.embed_text(["\ud800"]),
        lambda client: list(client.runs(clustering="\ud800")),
    ],
)
def test_a_value_that_no_field_holds_is_an_invalid_argument(
    client: Client, fake: Fake, call: Callable[[Client], object]
) -> None:
    """Numbers out of range and texts that are not Unicode fail unsent, as errors of Shoal's."""
    with pytest.raises(errors.InvalidArgument, match="request: "):
        call(client)
    assert not fake.requests


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.info(),
        lambda client: next(client.watch("r")),
        lambda client: next(client.ingest(make_items("a"))),
        lambda client: next(client.ingest(make_items("a"), streams=3)),
    ],
)
def test_a_closed_client_says_so(client: Client, call: Callable[[Client], object]) -> None:
    """Also where a call would open a connection more."""
    client.close()
    with pytest.raises(errors.InvalidArgument, match="the client is closed"):
        call(client)


def test_closing_beside_first_calls_is_safe() -> None:
    """A first call while another thread closes is an error, and no crash of the process."""
    calls: list[Callable[[Client], object]] = [
        lambda client: client.info(),
        lambda client: client.clusterings(),
        lambda client: client.collection(),
        lambda client: client.get_run("r"),
    ]

    def try_call(call: Callable[[Client], object], client: Client) -> None:
        with pytest.raises(errors.ShoalError):
            call(client)

    with futures.ThreadPoolExecutor(len(calls)) as threads:
        for _ in range(50):
            client = Client("127.0.0.1:1")
            under_way = [threads.submit(try_call, call, client) for call in calls]
            client.close()
            for each in under_way:
                each.result(10)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"bytes", "image"),
        (StoredId("k"), "id"),
        (Text("a cat"), "text"),
        (np.array([0.6, 0.8], np.float32), "vector"),
    ],
)
def test_search_sends_each_kind_of_query(
    client: Client, fake: Fake, query: Any, field: str
) -> None:
    """Bytes are an image, an array is a vector, ids and texts say so."""
    fake.answers = [search_pb2.SearchResponse()]
    client.search(query)
    assert fake.requests[0].WhichOneof("query") == field


@pytest.mark.parametrize(("within", "scope"), [("any", "any"), ("auto", "auto"), (0, "cluster")])
def test_search_sends_where_to_look(
    client: Client, fake: Fake, within: str | int, scope: str
) -> None:
    """Within is a word or a cluster's id; cluster 0 is a cluster."""
    fake.answers = [search_pb2.SearchResponse()]
    client.search(StoredId("k"), within=within)
    assert fake.requests[0].within.WhichOneof("scope") == scope


@pytest.mark.parametrize("within", ["here", "3", True])
def test_search_refuses_other_places(client: Client, within: Any) -> None:
    """Nothing but any, auto or a number says where to look."""
    with pytest.raises(errors.InvalidArgument, match="within: expected"):
        client.search(StoredId("k"), within=within)


def test_search_refuses_a_vector_that_is_not_of_unit_length(client: Client) -> None:
    """A query vector is checked before it is sent."""
    with pytest.raises(errors.InvalidArgument, match="expected length 1"):
        client.search(np.array([1.0, 1.0], np.float32))


def test_search_filter_keeps_types(client: Client, fake: Fake) -> None:
    """A bool is no number; lists, ranges and absence have conditions of their own."""
    fake.answers = [search_pb2.SearchResponse()]
    where = Filter(
        must=[("a", True), ("b", 3), ("c", "x"), ("d", AnyOf([1, "y"]))],
        should=[("e", Range(gte=1, lt=2))],
        must_not=[("f", Empty())],
    )
    client.search(StoredId("k"), options=SearchOptions(where=where, min_score=0.0))
    request = fake.requests[0]
    a, b, c, d = request.filter.must
    assert a.equals.WhichOneof("kind") == "bool_value"
    assert b.equals.number_value == 3
    assert c.equals.string_value == "x"
    assert [each.WhichOneof("kind") for each in d.any_of.values] == ["number_value", "string_value"]
    bounds = request.filter.should[0].range
    assert (bounds.gte, bounds.lt, bounds.HasField("lte")) == (1, 2, False)
    assert request.filter.must_not[0].empty is True
    assert request.HasField("min_score")


def test_search_tells_cluster_0_from_no_cluster(client: Client, fake: Fake) -> None:
    """An absent cluster is None, and whole numbers of a payload come back as int."""
    first = search_pb2.Hit(id="1", score=0.5, cluster=0)
    first.payload.update({"n": 3, "x": 0.5, "list": [1, None, {"deep": True}]})
    answer = search_pb2.SearchResponse(hits=[first, search_pb2.Hit(id="2")], run="r")
    fake.answers = [answer]
    result = client.search(StoredId("k"))
    assert (result.run, result.cluster) == ("r", None)
    assert [hit.cluster for hit in result.hits] == [0, None]
    payload = result.hits[0].payload
    assert payload == {"n": 3, "x": 0.5, "list": [1, None, {"deep": True}]}
    assert isinstance(payload["n"], int)


def test_cluster_follows_the_run_to_its_end(client: Client, fake: Fake) -> None:
    """Each change reaches the callback; the last state is returned."""
    running = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_RUNNING)
    done = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_SUCCEEDED, active=True)
    fake.answers = [running, [running, running, done]]
    seen: list[RunState] = []
    run = client.cluster(KMeans(k=3), on_change=lambda run: seen.append(run.state))
    assert seen == [RunState.RUNNING, RunState.RUNNING, RunState.SUCCEEDED]
    assert (run.state, run.active) == (RunState.SUCCEEDED, True)


def test_start_run_sends_options_and_a_new_request_id(client: Client, fake: Fake) -> None:
    """What is not given stays absent; every mutation has a UUID of its own."""
    fake.answers = [clusterer_pb2.Run(), clusterer_pb2.Run(), clusterer_pb2.Clustering()]
    options = RunOptions(seed=7, plan_only=True, gates=Gates(max_moved_share=0.0))
    client.start_run(KMeans(k="auto", n_init=2), options=options)
    client.start_run(Hdbscan(min_cluster_size=5))
    client.rollback()
    first, second, third = fake.requests
    assert first.config.kmeans.WhichOneof("count") == "auto"
    assert (first.config.seed, first.plan_only) == (7, True)
    assert first.gates.HasField("max_moved_share")
    assert not first.gates.HasField("max_noise_share")
    assert not second.HasField("gates")
    assert second.config.hdbscan.min_cluster_size == 5
    assert len({first.request_id, second.request_id, third.request_id}) == 3


def test_run_comes_back_whole(client: Client, fake: Fake) -> None:
    """Enums are words, times are aware, configuration is one flat object."""
    run = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_REFUSED)
    run.stage = clusterer_pb2.RUN_STAGE_PLAN
    run.config.kmeans.k = 3
    run.config.seed = 5
    run.created_at.FromDatetime(datetime(2024, 1, 2, tzinfo=UTC))
    run.plan.clusters = 3
    run.plan.lineage.add(cluster=0, kind=clusterer_pb2.LINEAGE_KIND_BORN, size=4)
    stage = run.stage_times.add(stage=clusterer_pb2.RUN_STAGE_FIT)
    stage.duration.FromMilliseconds(1500)
    fake.answers = [run]
    found = client.get_run("r")
    assert (found.state, found.stage) == (RunState.REFUSED, "plan")
    assert found.config == {"method": "kmeans", "k": 3, "seed": 5}
    assert found.created_at == datetime(2024, 1, 2, tzinfo=UTC)
    assert found.ended_at is None
    assert found.stage_seconds == {"fit": 1.5}
    assert found.plan is not None
    assert (found.plan.silhouette, found.plan.lineage[0].kind) == (None, "born")


def test_pages_are_followed_to_the_last(client: Client, fake: Fake) -> None:
    """Lists come whole: each page is asked for with the token of the one before."""
    fake.answers = [
        clusterer_pb2.ListRunsResponse(runs=[clusterer_pb2.Run(id="1")], next_page_token="t"),
        clusterer_pb2.ListRunsResponse(runs=[clusterer_pb2.Run(id="2")]),
        search_pb2.ListClustersResponse(
            clusters=[search_pb2.Cluster(id=0)], next_page_token="u", run="r", noise=1
        ),
        search_pb2.ListClustersResponse(clusters=[search_pb2.Cluster(id=1)], run="r", noise=1),
    ]
    assert [run.id for run in client.runs()] == ["1", "2"]
    listed = client.clusters()
    assert [each.id for each in listed.clusters] == [0, 1]
    assert (listed.run, listed.noise) == ("r", 1)
    assert [request.page_token for request in fake.requests] == ["", "t", "", "u"]


def test_server_errors_are_rebuilt_by_class(client: Client, fake: Fake) -> None:
    """What a handler raised is what the caller catches, with its message and facts."""
    fake.error = errors.NotEnoughPoints("k = 9 is too large", k="9")
    with pytest.raises(errors.NotEnoughPoints, match="k = 9 is too large") as caught:
        client.start_run(KMeans(k=9))
    assert caught.value.metadata == {"k": "9"}
    with pytest.raises(errors.NotEnoughPoints):
        list(client.watch("r"))


def test_unreachable_server_is_named(make_client: Any) -> None:
    """Without a server, the first call fails with its address, on streams too."""
    with make_client("127.0.0.1:9", timeout_s=5) as client:
        with pytest.raises(errors.ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            client.info()
        with pytest.raises(errors.ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            list(client.ingest(make_items("a")))


def test_call_has_a_deadline(make_client: Any) -> None:
    """A server that does not answer fails the call with DeadlineExceeded."""
    asleep = threading.Event()

    class Asleep(embedder_pb2_grpc.EmbedderServiceServicer):
        def GetInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
            asleep.wait(10)

    server = grpc.server(futures.ThreadPoolExecutor(1))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Asleep(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            make_client(f"127.0.0.1:{port}", timeout_s=0.2) as hasty,
            pytest.raises(errors.DeadlineExceeded),
        ):
            hasty.info()
    finally:
        asleep.set()
        server.stop(0).wait()
