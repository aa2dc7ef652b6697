"""Ingestion by both clients: each item once, lazily, and its own outcome whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clients import Fake, make_items

from shoal import errors
from shoal.client import Client, IngestItem, IngestOutcome, IngestStatus, ItemFailure
from shoal.client.messages import from_struct
from shoal.rpc.channel import MAX_MESSAGE_BYTES


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


def test_ingest_sends_whether_fields_are_merged(client: Client, fake: Fake) -> None:
    """Each item says it for itself; by default it does not."""
    items = [IngestItem(b"x", "k", merge_fields=True), IngestItem(b"x", "l")]
    list(client.ingest(items))
    assert [request.merge_fields for request in fake.requests] == [True, False]


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
