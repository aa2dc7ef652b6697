"""The SDK against a real gRPC server with small servicers whose answers one can predict."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status

from shoal import errors, vectors
from shoal.client import (
    AnyOf,
    Client,
    Empty,
    Filter,
    Gates,
    Hdbscan,
    IngestItem,
    IngestOutcome,
    IngestStatus,
    ItemFailure,
    KMeans,
    Range,
    RunOptions,
    RunState,
    SearchOptions,
    StoredId,
    Text,
)
from shoal.client.messages import from_struct
from shoal.rpc.channel import MAX_MESSAGE_BYTES
from shoal.rpc.status import item_error, to_status
from shoal.v1 import (
    clusterer_pb2,
    clusterer_pb2_grpc,
    common_pb2,
    embedder_pb2,
    embedder_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)


class Fake(
    embedder_pb2_grpc.EmbedderServiceServicer,
    clusterer_pb2_grpc.ClustererServiceServicer,
    search_pb2_grpc.SearchServiceServicer,
):
    """Keeps each request; answers with the next of ``answers``, or fails with ``error``.

    ``Ingest`` stores what it gets: an item that begins with "bad" is refused, "drop" breaks the
    stream, "end" ends it, "last" is answered before that; "mute" is answered without an outcome,
    "odd" with a status that is not known.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.answers: list[Any] = []
        self.error: errors.ShoalError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.released = threading.Event()
        self.received = 0
        self.peers: list[str] = []

    def answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        if self.error is not None:
            abort(context, to_status(self.error))
        return self.answers.pop(0)

    Embed = EmbedText = GetInfo = answer
    CreateRun = GetRun = ListRuns = CancelRun = Rollback = GetClustering = answer
    Search = ListClusters = GetCluster = GetPoint = GetCollection = ListCollections = answer

    def WatchRun(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self.answer(request, context)

    def Ingest(
        self, requests: Iterator[embedder_pb2.IngestRequest], context: grpc.ServicerContext
    ) -> Iterator[embedder_pb2.IngestResponse]:
        self.peers.append(context.peer())
        for request in requests:
            self.received += 1
            self.requests.append(request)
            self.gate.wait(10)
            response = embedder_pb2.IngestResponse(sequence=request.sequence, key=request.key)
            data = request.image.data
            if data.startswith(b"wait"):
                self.released.wait(10)
            if data.startswith(b"drop"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if data.startswith(b"end"):
                return
            if data.startswith(b"bad"):
                response.error.CopyFrom(item_error(errors.ImageCorrupt("bad bytes")))
            elif data.startswith(b"odd"):
                response.result.status = 99  # type: ignore[assignment]
            elif not data.startswith(b"mute"):
                response.result.id = f"id-{request.key}"
                response.result.status = embedder_pb2.INGEST_STATUS_STORED
            yield response
            if data.startswith(b"last"):
                return


def abort(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    context.abort_with_status(rpc_status.to_status(status))


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(fake, server)
    clusterer_pb2_grpc.add_ClustererServiceServicer_to_server(fake, server)
    search_pb2_grpc.add_SearchServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}", timeout_s=10) as opened:
        yield opened
    fake.gate.set()
    server.stop(0).wait()


def make_items(*names: str) -> list[IngestItem]:
    return [IngestItem(data=name.encode(), key=name, name=f"<{name}>") for name in names]


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


def test_ingest_gives_each_item_its_own_outcome(client: Client) -> None:
    """One outcome per item, by name; a refused item does not touch the others."""
    found = list(client.ingest(make_items("a", "bad", "c"), collection="photos"))
    assert {each.name: each.status for each in found} == {
        "<a>": IngestStatus.STORED,
        "<bad>": IngestStatus.FAILED,
        "<c>": IngestStatus.STORED,
    }
    failure = next(each.failure for each in found if each.name == "<bad>")
    assert failure == ItemFailure("IMAGE_CORRUPT", "bad bytes")


def test_ingest_reads_no_more_than_the_window(client: Client, fake: Fake) -> None:
    """Items are read lazily: never more than ``window`` ahead of the answers."""
    read = 0
    ahead = 0
    answered = 0

    def items() -> Iterator[IngestItem]:
        nonlocal read, ahead
        for item in make_items(*map(str, range(50))):
            read += 1
            ahead = max(ahead, read - answered)
            yield item

    for _ in client.ingest(items(), window=4):
        answered += 1
    assert (read, answered, fake.received) == (50, 50, 50)
    assert ahead <= 4 + 2  # one item read and waiting for room, one answer not yet counted


def test_ingest_passes_outcomes_through(client: Client, fake: Fake) -> None:
    """An outcome among the items is not sent, and comes out as it is."""
    mine = IngestOutcome("x", IngestStatus.FAILED, failure=ItemFailure("UNREADABLE", "no"))
    a, b = make_items("a", "b")
    found = list(client.ingest([mine, a, mine, b, mine]))
    assert found.count(mine) == 3
    assert len(found) == 5
    assert fake.received == 2


def test_ingest_refuses_an_item_that_cannot_be_sent(client: Client, fake: Fake) -> None:
    """A payload that is not JSON and a key that is not UTF-8 fail alone, unsent."""
    wrong: Any = {"when": object()}
    items = [
        IngestItem(b"1", key="a", payload=wrong, name="payload"),
        IngestItem(b"2", key="\udcff", name="key"),
        IngestItem(b"3", key="c", name="good"),
    ]
    found = {each.name: each for each in client.ingest(items)}
    assert found["good"].status is IngestStatus.STORED
    for name in ("payload", "key"):
        failure = found[name].failure
        assert failure is not None
        assert failure.reason == "INVALID_ARGUMENT"
    assert fake.received == 1


def nested(levels: int) -> dict[str, Any]:
    """An object with ``levels`` objects in all, each but the first in another."""
    found: dict[str, Any] = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    "payload",
    [
        nested(33),
        nested(20_000),
        {"a": [[nested(31)]]},
        {"a": 10**400},
        {"a": {"b": [2**53 + 1]}},
        {"a": "\ud800"},
        {"a": object(), "b": "x" * 10_000},
    ],
    ids=[
        "deep",
        "very deep",
        "deep in lists",
        "huge number",
        "inexact number",
        "surrogate",
        "long",
    ],
)
def test_ingest_refuses_a_payload_that_protobuf_cannot_hold(
    client: Client, fake: Fake, payload: dict[str, Any]
) -> None:
    """What cannot be sent fails alone, in few words; the stream goes on."""
    a, c = make_items("a", "c")
    items = [a, IngestItem(b"b", key="b", payload=payload, name="<b>"), c]
    found = {each.name: each for each in client.ingest(items)}
    assert found["<a>"].status is found["<c>"].status is IngestStatus.STORED
    failure = found["<b>"].failure
    assert failure is not None
    assert failure.reason == "INVALID_ARGUMENT"
    assert failure.message.startswith("payload: expected")
    assert len(failure.message) < 400
    assert fake.received == 2


def test_ingest_sends_whole_numbers_as_they_are(client: Client, fake: Fake) -> None:
    """Every one that is sent arrives: also the large ones that a float64 happens to hold."""
    payload: dict[str, Any] = {"a": 2**53, "b": -(2**53), "c": 2**60, "d": 0}
    (found,) = client.ingest([IngestItem(b"b", key="b", payload=payload)])
    assert found.status is IngestStatus.STORED
    assert from_struct(fake.requests[0].payload) == payload


def test_ingest_sends_a_payload_of_32_levels(client: Client, fake: Fake) -> None:
    """32 levels, the most that are taken, arrive as they are."""
    (found,) = client.ingest([IngestItem(b"b", key="b", payload=nested(32))])
    assert found.status is IngestStatus.STORED
    assert from_struct(fake.requests[0].payload) == nested(32)


def test_ingest_refuses_an_item_larger_than_a_message(client: Client, fake: Fake) -> None:
    """What the channel would refuse, with the whole stream, fails alone and unsent."""
    a, d = make_items("a", "d")
    items = [
        a,
        IngestItem(bytes(MAX_MESSAGE_BYTES), key="b", name="image"),
        IngestItem(b"c", key="c", payload={"x": "y" * MAX_MESSAGE_BYTES}, name="payload"),
        d,
    ]
    found = {each.name: each for each in client.ingest(items)}
    assert found["<a>"].status is found["<d>"].status is IngestStatus.STORED
    reasons = {name: each.failure.reason for name, each in found.items() if each.failure}
    assert reasons == {"image": "IMAGE_TOO_LARGE", "payload": "INVALID_ARGUMENT"}
    assert fake.received == 2


@pytest.mark.parametrize("answer", ["mute", "odd"])
def test_ingest_answer_that_does_not_say_stored_is_a_failure(client: Client, answer: str) -> None:
    """Only a status that says so means that the point is stored."""
    first, second = client.ingest(make_items(answer, "a"), window=1)
    assert (first.status, second.status) == (IngestStatus.FAILED, IngestStatus.STORED)
    assert first.failure is not None
    assert first.failure.reason == "INTERNAL"


def test_ingest_bounds_failures_while_the_server_is_silent(client: Client, fake: Fake) -> None:
    """Items that fail here come out before any answer, and no more of them than the window."""
    fake.gate.clear()
    mine = IngestOutcome("x", IngestStatus.FAILED, failure=ItemFailure("UNREADABLE", "no"))
    read = 0

    def items() -> Iterator[IngestItem | IngestOutcome]:
        nonlocal read
        yield from make_items("a")
        for _ in range(100_000):
            read += 1
            yield mine

    outcomes = client.ingest(items(), window=4)
    assert [next(outcomes) for _ in range(10)] == [mine] * 10
    assert read <= 10 + 4 + 1  # one item read and waiting for room
    outcomes.close()


def test_ingest_of_nothing_but_failures_ends(client: Client, fake: Fake) -> None:
    """More failures than the window, and nothing to send: all come out, and that is the end."""
    mine = IngestOutcome("x", IngestStatus.FAILED, failure=ItemFailure("UNREADABLE", "no"))
    assert list(client.ingest([mine] * 50, window=4)) == [mine] * 50
    assert fake.received == 0


def test_ingest_error_of_the_items_comes_after_their_answers(client: Client) -> None:
    """What was sent before the caller's own iterable raised is answered; then it is raised."""

    def items() -> Iterator[IngestItem]:
        yield from make_items("a", "b")
        msg = "the disk is gone"
        raise LookupError(msg)

    outcomes = client.ingest(items())
    assert [next(outcomes).name, next(outcomes).name] == ["<a>", "<b>"]
    with pytest.raises(LookupError, match="the disk is gone"):
        next(outcomes)


def test_ingest_broken_connection_keeps_what_was_acknowledged(client: Client) -> None:
    """When the stream breaks, the outcomes so far have been given, and the error is ours."""
    outcomes = client.ingest(make_items("a", "b", "drop", *"efgh"), window=1)
    assert [next(outcomes).name, next(outcomes).name] == ["<a>", "<b>"]
    with pytest.raises(errors.ServiceUnavailable, match="gone"):
        next(outcomes)


def test_ingest_stream_ended_by_the_server_is_an_error(client: Client) -> None:
    """Items without an answer are never passed over in silence."""
    with pytest.raises(errors.ServiceUnavailable, match="1 items unanswered"):
        list(client.ingest(make_items("end"), window=1))


def test_ingest_stream_ended_before_the_items_is_an_error(client: Client) -> None:
    """Items that were not even read yet are not passed over in silence either."""
    ended = threading.Event()

    def items() -> Iterator[IngestItem]:
        yield from make_items("last")
        ended.wait(10)
        yield from make_items("b")

    outcomes = client.ingest(items())
    assert next(outcomes).status is IngestStatus.STORED
    with pytest.raises(errors.ServiceUnavailable, match="the server ended the stream"):
        next(outcomes)
    ended.set()


def test_ingest_left_early_stops_reading(client: Client, fake: Fake) -> None:
    """Closing the iterator ends the call and the reading, even with the window full."""
    read = 0

    def items() -> Iterator[IngestItem]:
        nonlocal read
        for index in range(1_000_000):
            read += 1
            yield IngestItem(b"x", key=str(index))

    outcomes = client.ingest(items(), window=2)
    next(outcomes)
    fake.gate.clear()
    outcomes.close()
    before = read
    fake.gate.set()
    assert len(list(client.ingest(make_items("a", "b")))) == 2
    assert read <= before + 1  # the one being read when the iterator was closed


def test_ingest_sends_over_several_connections(client: Client, fake: Fake) -> None:
    """Each item is sent once, by whichever stream; the streams share no connection."""
    names = [str(number) for number in range(200)]
    found = list(client.ingest(iter(make_items(*names)), window=12, streams=3))
    assert sorted(each.key for each in found) == sorted(names)
    assert {each.status for each in found} == {IngestStatus.STORED}
    assert sorted(request.key for request in fake.requests) == sorted(names)
    assert len(set(fake.peers)) == 3
    assert len(list(client.ingest(make_items("a"), streams=3))) == 1
    assert len(set(fake.peers)) == 3  # kept, and used again


def test_ingest_leaves_a_slow_stream_behind(client: Client, fake: Fake) -> None:
    """A stream takes as many items as it answers: a slow one holds up its share, no more."""
    names = ["wait", *map(str, range(60))]
    outcomes = client.ingest(make_items(*names), window=6, streams=2)
    before = {next(outcomes).key for _ in range(len(names) - 3)}  # 3 are on the slow one
    assert "wait" not in before
    fake.released.set()
    assert before | {each.key for each in outcomes} == set(names)


def test_ingest_reads_one_item_at_a_time(client: Client) -> None:
    """The caller's iterable is never entered by two streams at once."""
    inside = threading.Lock()

    class Items:
        left = 100

        def __iter__(self) -> Iterator[IngestItem]:
            return self

        def __next__(self) -> IngestItem:
            assert inside.acquire(blocking=False)
            try:
                threading.Event().wait(0.001)
                self.left -= 1
                if self.left < 0:
                    raise StopIteration
                return make_items(str(self.left))[0]
            finally:
                inside.release()

    assert len(list(client.ingest(Items(), streams=4))) == 100


def test_ingest_error_of_one_stream_ends_all(client: Client, fake: Fake) -> None:
    """What the other streams have sent is still answered; nothing more is read."""
    dropped = threading.Event()
    read = 0

    def items() -> Iterator[IngestItem]:
        nonlocal read
        yield from make_items("wait", "drop")
        dropped.wait(10)
        for number in range(1_000_000):
            read += 1
            yield from make_items(str(number))

    outcomes = client.ingest(items(), window=1, streams=2)
    threading.Timer(0.3, fake.released.set).start()
    assert next(outcomes).name == "<wait>"
    with pytest.raises(errors.ServiceUnavailable, match="gone"):
        next(outcomes)
    dropped.set()
    assert list(client.ingest(make_items("a", "b"), streams=2))
    assert read <= 1


def test_ingest_of_several_streams_ended_by_the_server_is_an_error(client: Client) -> None:
    """One that the server ends early ends all, and the error is that, not our cancelling them."""
    ended = threading.Event()

    def items() -> Iterator[IngestItem]:
        yield from make_items("last")
        ended.wait(10)
        yield from make_items("b")

    for _ in range(20):
        outcomes = client.ingest(items(), streams=3)
        assert next(outcomes).status is IngestStatus.STORED
        with pytest.raises(errors.ServiceUnavailable, match="the server ended the stream"):
            next(outcomes)
    ended.set()


def test_ingest_error_of_one_stream_does_not_wait_for_items(client: Client) -> None:
    """An ingestion that has failed says so, though the next item may be an hour away."""
    arrived = threading.Event()

    def items() -> Iterator[IngestItem]:
        yield from make_items("drop")
        arrived.wait(10)

    with pytest.raises(errors.ServiceUnavailable, match="gone"):
        next(client.ingest(items(), streams=3))
    assert not arrived.is_set()
    arrived.set()


def test_ingest_error_of_the_items_comes_after_the_answers_of_all_streams(
    client: Client, fake: Fake
) -> None:
    """With several streams too, what was sent before the caller's iterable raised is answered."""

    def items() -> Iterator[IngestItem]:
        yield from make_items("wait", "a", "b")
        msg = "the disk is gone"
        raise LookupError(msg)

    outcomes = client.ingest(items(), window=1, streams=2)
    found = [next(outcomes).name, next(outcomes).name]
    fake.released.set()
    assert {*found, next(outcomes).name} == {"<wait>", "<a>", "<b>"}
    with pytest.raises(LookupError, match="the disk is gone"):
        next(outcomes)


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


@pytest.mark.parametrize("streams", [0, -1])
def test_ingest_refuses_no_streams(client: Client, streams: int) -> None:
    """There is at least 1 stream."""
    with pytest.raises(errors.InvalidArgument, match="streams: expected at least 1"):
        list(client.ingest([], streams=streams))


@pytest.mark.parametrize("window", [0, -1])
def test_ingest_refuses_a_window_without_room(client: Client, window: int) -> None:
    """A window is at least 1 item."""
    with pytest.raises(errors.InvalidArgument, match="window: expected at least 1"):
        list(client.ingest([], window=window))


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


def test_unreachable_server_is_named() -> None:
    """Without a server, the first call fails with its address, on streams too."""
    with Client("127.0.0.1:9", timeout_s=5) as client:
        with pytest.raises(errors.ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            client.info()
        with pytest.raises(errors.ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            list(client.ingest(make_items("a")))


def test_call_has_a_deadline() -> None:
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
            Client(f"127.0.0.1:{port}", timeout_s=0.2) as hasty,
            pytest.raises(errors.DeadlineExceeded),
        ):
            hasty.info()
    finally:
        asleep.set()
        server.stop(0).wait()
