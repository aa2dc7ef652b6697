"""The bookkeeping of an ingestion, driven by hand."""

from __future__ import annotations

import pytest

from shoal.client import IngestOutcome, IngestStatus
from shoal.client.window import Stream, Window
from shoal.errors import InvalidArgument, ServiceUnavailable
from shoal.v1 import embedder_pb2


def read(window: Window, stream: Stream) -> int:
    """Reads one item for ``stream`` and sends it; its number."""
    assert window.begin_to_read(stream)
    number = window.end_reading()
    assert window.send(stream, number, f"<{number}>")
    return number


def answer(number: int) -> embedder_pb2.IngestResponse:
    response = embedder_pb2.IngestResponse(sequence=number, key=str(number))
    response.result.status = embedder_pb2.INGEST_STATUS_STORED
    return response


def outcome(name: str = "x") -> IngestOutcome:
    return IngestOutcome(name, IngestStatus.FAILED)


@pytest.mark.parametrize(
    ("size", "streams", "share"), [(4, 1, 4), (4, 2, 2), (5, 2, 2), (1, 3, 1), (3, 3, 1), (1, 1, 1)]
)
def test_each_stream_has_an_equal_share(size: int, streams: int, share: int) -> None:
    """At least one, and together never more than the window unless streams are more."""
    window = Window(size, streams=streams)
    assert len(window.streams) == streams
    for stream in window.streams:
        for _ in range(share):
            assert window.has_room(stream)
            read(window, stream)
        assert not window.has_room(stream)


def test_room_is_made_by_taking_an_outcome() -> None:
    """Not by the answer: an outcome that nobody takes keeps its place."""
    window = Window(1, streams=1)
    (stream,) = window.streams
    number = read(window, stream)
    window.answer(stream, answer(number))
    assert not window.has_room(stream)
    taken = window.take()
    assert taken is not None
    assert (taken[0], taken[1].name, taken[1].status) == (stream, "<0>", IngestStatus.STORED)
    assert window.has_room(stream)
    assert window.take() is None


def test_an_item_counts_while_it_is_read() -> None:
    """Somebody is reading from the begin to the end of it, and its room is taken already."""
    window = Window(1, streams=1)
    (stream,) = window.streams
    assert not window.reading
    assert window.begin_to_read(stream)
    assert window.reading
    assert not window.has_room(stream)
    assert window.end_reading() == 0
    assert not window.reading


def test_items_are_numbered_from_0_over_all_streams() -> None:
    """A number is given once."""
    window = Window(8, streams=2)
    first, second = window.streams
    assert [read(window, s) for s in (first, second, first, second)] == [0, 1, 2, 3]


def test_an_answer_counts_once_and_on_its_own_stream() -> None:
    """Twice the same answer, and one to an item of another stream or of none, is no outcome."""
    window = Window(8, streams=2)
    first, second = window.streams
    number = read(window, first)
    window.answer(second, answer(number))
    window.answer(first, answer(99))
    assert window.take() is None
    window.answer(first, answer(number))
    window.answer(first, answer(number))
    assert window.take() is not None
    assert window.take() is None


def test_outcomes_come_in_the_order_in_which_they_are_known() -> None:
    """Decided here or by the server."""
    window = Window(8, streams=1)
    (stream,) = window.streams
    a, b = read(window, stream), read(window, stream)
    window.begin_to_read(stream)
    window.answer(stream, answer(b))
    window.end_reading()
    window.finish(stream, outcome("mine"))
    window.answer(stream, answer(a))
    assert [window.take()[1].name for _ in range(3)] == ["<1>", "mine", "<0>"]  # type: ignore[index]


def test_all_is_well_when_every_item_is_answered() -> None:
    """The items end, the streams end, nothing is left: no error."""
    window = Window(8, streams=2)
    numbers = [read(window, stream) for stream in window.streams]
    assert not window.over
    assert window.begin_to_read(window.streams[0])
    window.exhaust()
    assert (window.over, window.closed, window.reading) == (True, False, False)
    for stream, number in zip(window.streams, numbers, strict=True):
        assert not window.begin_to_read(stream)
        assert stream.complete
        window.answer(stream, answer(number))
        window.end(stream, None)
        assert window.take() is not None
        assert not window.closed
    assert window.settled
    window.check()


def test_it_is_settled_when_there_is_an_outcome_or_will_be_none() -> None:
    """A stream that may still answer keeps the caller waiting."""
    window = Window(8, streams=2)
    first, second = window.streams
    number = read(window, first)
    assert not window.settled
    window.answer(first, answer(number))
    assert window.settled
    window.take()
    assert not window.settled
    for stream in (first, second):
        stream.complete = True
    window.end(first, None)
    assert not window.settled
    window.end(second, None)
    assert window.settled


def test_once_closed_only_sent_items_are_waited_for() -> None:
    """The caller's next item may be an hour away."""
    window = Window(8, streams=2)
    first, second = window.streams
    number = read(window, second)
    assert window.begin_to_read(first)
    window.end(first, LookupError("gone"))
    assert window.closed
    assert not window.settled
    assert not window.send(first, window.end_reading(), "late")
    window.answer(second, answer(number))
    window.take()
    assert window.settled
    with pytest.raises(LookupError, match="gone"):
        window.check()


def test_the_first_error_of_a_call_is_told() -> None:
    """Before what the items raised; and none of those that our own cancelling makes."""
    window = Window(8, streams=3)
    first, second, third = window.streams
    window.exhaust(KeyError("items"))
    assert window.over
    window.end(first, LookupError("first"))
    window.end(second, LookupError("second"))
    with pytest.raises(LookupError, match="first"):
        window.check()
    window.leave()
    window.end(third, LookupError("third"))
    with pytest.raises(LookupError, match="first"):
        window.check()


def test_after_leaving_errors_are_our_own() -> None:
    """Nothing more is read, and a cancelled call is no failure."""
    window = Window(8, streams=1)
    (stream,) = window.streams
    window.leave()
    assert (window.closed, window.over) == (True, True)
    assert not window.begin_to_read(stream)
    assert not stream.complete
    window.end(stream, LookupError("cancelled"))
    with pytest.raises(ServiceUnavailable, match="with 0 items unanswered"):
        window.check()


def test_an_error_of_the_items_is_told_at_the_end() -> None:
    """Where no call failed."""
    window = Window(8, streams=1)
    (stream,) = window.streams
    window.exhaust(KeyError("items"))
    assert not window.begin_to_read(stream)
    window.end(stream, None)
    with pytest.raises(KeyError, match="items"):
        window.check()


def test_a_stream_that_ends_early_ends_all() -> None:
    """Without an error too, if items are unanswered or were not read yet."""
    unread = Window(8, streams=2)
    unread.end(unread.streams[0], None)
    assert unread.closed
    with pytest.raises(ServiceUnavailable, match="ended the stream with 0 items unanswered"):
        unread.check()

    unanswered = Window(8, streams=1)
    (stream,) = unanswered.streams
    read(unanswered, stream)
    unanswered.exhaust()
    unanswered.begin_to_read(stream)
    unanswered.end(stream, None)
    with pytest.raises(ServiceUnavailable, match="ended the stream with 1 items unanswered"):
        unanswered.check()


@pytest.mark.parametrize(("size", "streams", "field"), [(0, 1, "window"), (1, 0, "streams")])
def test_there_is_room_and_a_stream(size: int, streams: int, field: str) -> None:
    """At least one of each."""
    with pytest.raises(InvalidArgument, match=f"{field}: expected at least 1") as caught:
        Window(size, streams=streams)
    assert caught.value.metadata == {"field": field}
