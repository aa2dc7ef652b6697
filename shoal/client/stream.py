"""The sending side of a blocking ingestion: a lazy, bounded window of items on a few streams.

gRPC pulls the requests of each stream from a thread of its own, so what the threads share is
behind one lock. An item is read only when there is room for it; its bytes are let go once sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import grpc

from shoal.client.messages_ingest import IngestTarget, name_of, prepared
from shoal.client.values import IngestItem, IngestOutcome
from shoal.client.window import Stream, Window

if TYPE_CHECKING:
    from shoal.v1 import embedder_pb2

    Responses: TypeAlias = grpc.CallIterator[embedder_pb2.IngestResponse]
    IngestCall: TypeAlias = Callable[[Iterator[embedder_pb2.IngestRequest]], Responses]


class Ingestion:
    """Turns items into requests of one or more streams, and matches the answers.

    The streams take from the same items, each as it has room. An IngestOutcome among the items
    was decided by the caller (a file that cannot be read): it is not sent, and comes out as it is.
    An item whose message would be larger than the target's ``max_bytes`` fails unsent.
    """

    def __init__(
        self, items: Iterable[IngestItem | IngestOutcome], target: IngestTarget, window: Window
    ) -> None:
        self._items = iter(items)
        self._target = target
        self._window = window
        self._lock = threading.Lock()
        self._room = {stream: threading.Condition(self._lock) for stream in window.streams}
        self._turn = threading.Condition(self._lock)  # nobody is reading any more
        self._settled = threading.Condition(self._lock)

    def exchange(self, calls: Sequence[IngestCall]) -> Iterator[IngestOutcome]:
        """Sends the items, each through one of ``calls``, a stub's Ingest; one outcome per item.

        When one call fails no more is sent, and what the others have sent is still answered.

        Raises:
            grpc.RpcError: a call failed; outcomes so far hold.
            ServiceUnavailable: the server ended a stream before the items ended.
        """
        under_way: list[Responses] = []
        try:
            for stream, call in zip(self._window.streams, calls, strict=True):
                responses = call(self._requests(stream))
                under_way.append(responses)
                # Answers are read in a thread of their own, so that an item that fails here comes
                # out at once: the window may be full of those while the server is silent.
                threading.Thread(
                    target=self._receive,
                    args=(stream, responses),
                    name="shoal-ingest-answers",
                    daemon=True,
                ).start()
            while (outcome := self._take()) is not None:
                yield outcome
        finally:
            with self._lock:
                self._window.leave()
                self._wake_senders()
            for responses in under_way:
                responses.cancel()  # type: ignore[no-untyped-call]  # untyped in grpc-stubs
        self._window.check()

    def _requests(self, stream: Stream) -> Iterator[embedder_pb2.IngestRequest]:
        """The requests of ``stream``; blocks while its share is full, ends early once closed."""
        while self._begin_to_read(stream):
            try:
                item = next(self._items)
            except StopIteration:
                self._exhaust()
            except Exception as exc:  # noqa: BLE001 - any error of the caller's own iterable
                # What was sent before it is still answered, and then it is raised to the caller.
                self._exhaust(exc)
            else:
                request = self._request(stream, item)
                if request is not None:
                    yield request

    def _begin_to_read(self, stream: Stream) -> bool:
        """Waits for room, then for the stream's turn; False if nothing is to be read."""
        window = self._window
        with self._lock:
            self._room[stream].wait_for(lambda: window.over or window.has_room(stream))
            self._turn.wait_for(lambda: window.over or not window.reading)
            return window.begin_to_read(stream)

    def _exhaust(self, error: Exception | None = None) -> None:
        with self._lock:
            self._window.exhaust(error)
            self._wake_senders()

    def _request(
        self, stream: Stream, item: IngestItem | IngestOutcome
    ) -> embedder_pb2.IngestRequest | None:
        """The request for ``item``; None if it is not sent."""
        with self._lock:
            sequence = self._window.end_reading()
            self._turn.notify()
        request = prepared(item, self._target, sequence=sequence)
        with self._lock:
            if isinstance(request, IngestOutcome):
                self._window.finish(stream, request)
                self._settled.notify()
                return None
            return request if self._window.send(stream, sequence, name_of(item)) else None

    def _receive(self, stream: Stream, responses: Responses) -> None:
        """Matches each answer with its item, until there are no more."""
        error: Exception | None = None
        try:
            for response in responses:
                with self._lock:
                    self._window.answer(stream, response)
                    self._settled.notify()
        except Exception as exc:  # noqa: BLE001 - raised to the caller, after the outcomes
            error = exc
        with self._lock:
            self._window.end(stream, error)
            if self._window.closed:
                self._wake_senders()
            self._settled.notify()

    def _take(self) -> IngestOutcome | None:
        """The next outcome, which makes room for one more item; None after the last."""
        with self._lock:
            self._settled.wait_for(lambda: self._window.settled)
            taken = self._window.take()
            if taken is None:
                return None
            stream, outcome = taken
            self._room[stream].notify()
            return outcome

    def _wake_senders(self) -> None:
        self._turn.notify_all()
        for room in self._room.values():
            room.notify_all()
