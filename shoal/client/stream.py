"""The sending side of an ingestion: a lazy, bounded window of items in flight, on a few streams.

gRPC pulls the requests of each stream from a thread of its own, so what the sides share is behind
one lock. An item is read only when there is room for it; its bytes are let go once sent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc

from shoal.client.messages_ingest import IngestTarget, from_ingest_response, to_ingest_request
from shoal.client.values import IngestItem, IngestOutcome, IngestStatus, ItemFailure
from shoal.errors import InvalidArgument, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from shoal.v1 import embedder_pb2

    Responses: TypeAlias = grpc.CallIterator[embedder_pb2.IngestResponse]
    IngestCall: TypeAlias = Callable[[Iterator[embedder_pb2.IngestRequest]], Responses]


class _Stream:
    """The state of one stream, behind the lock of its ingestion.

    Attributes:
        names: Of what is sent and not answered, by sequence.
        unfinished: Items that were read for this stream and whose outcome is not taken.
        room: Notified when there is room for another.
        complete: All its requests were read, because there are no more items.
        ended: There are no more answers.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.names: dict[int, str] = {}
        self.unfinished = 0
        self.room = threading.Condition(lock)
        self.complete = False
        self.ended = False


class Ingestion:
    """Turns items into requests of one or more streams, and matches the answers.

    The streams take from the same items, each as it has room. At most ``window`` items are
    unfinished, an equal share on each stream (at least one). An item is unfinished from when it is
    read until its outcome is taken, whoever decided that. An IngestOutcome among the items was
    decided by the caller (a file that cannot be read): it is not sent, and comes out as it is. An
    item whose message would be larger than the target's ``max_bytes`` fails unsent.
    """

    def __init__(
        self,
        items: Iterable[IngestItem | IngestOutcome],
        target: IngestTarget,
        *,
        window: int,
    ) -> None:
        if window < 1:
            msg = f"window: expected at least 1 item, got {window}"
            raise InvalidArgument(msg, field="window")
        self._items = enumerate(items)
        self._target = target
        self._window = window
        self._share = window  # of one stream
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._ready: deque[tuple[_Stream, IngestOutcome]] = deque()
        self._answered = threading.Condition(self._lock)  # more is ready, or a stream has ended
        self._reading = False  # a thread is in the caller's iterator: one at a time, as in a loop
        self._turn = threading.Condition(self._lock)  # none is any more
        self._closed = False  # no more items are wanted
        self._left = False  # nor outcomes: what the calls say from now on is of our cancelling
        self._exhausted = False  # there are no more items
        self._item_error: Exception | None = None
        self._call_error: Exception | None = None

    def exchange(self, calls: Sequence[IngestCall]) -> Iterator[IngestOutcome]:
        """Send the items, each through one of ``calls``, a stub's Ingest; one outcome per item.

        When one call fails no more is sent, and what the others have sent is still answered.

        Raises:
            grpc.RpcError: a call failed; outcomes so far hold.
            ServiceUnavailable: the server ended a stream before the items ended.
        """
        self._streams = [_Stream(self._lock) for _ in calls]
        self._share = max(1, self._window // len(calls))
        under_way: list[Responses] = []
        try:
            for stream, call in zip(self._streams, calls, strict=True):
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
            self._close()
            for responses in under_way:
                responses.cancel()  # type: ignore[no-untyped-call]  # untyped in grpc-stubs
        if self._call_error is not None:
            raise self._call_error
        if self._item_error is not None:
            raise self._item_error
        unanswered = sum(len(stream.names) for stream in self._streams)
        if unanswered or not all(stream.complete for stream in self._streams):
            msg = f"the server ended the stream with {unanswered} items unanswered"
            raise ServiceUnavailable(msg)

    def _requests(self, stream: _Stream) -> Iterator[embedder_pb2.IngestRequest]:
        """The requests of ``stream``; blocks while its share is full, ends early once closed."""
        while self._begin_to_read(stream):
            try:
                sequence, item = next(self._items)
            except StopIteration:
                self._exhaust()
            except Exception as exc:  # noqa: BLE001 - any error of the caller's own iterable
                # What was sent before it is still answered, and then it is raised to the caller.
                self._exhaust(exc)
            else:
                self._let_read()
                request = self._accept(stream, item, sequence=sequence)
                if request is not None:
                    yield request

    def _begin_to_read(self, stream: _Stream) -> bool:
        """Wait for room, then for one's turn; False if nothing is to be read.

        Counts the item before it is read, so that none is held by a stream without room for it
        while another has some.
        """
        with self._lock:
            stream.room.wait_for(lambda: self._over or stream.unfinished < self._share)
            self._turn.wait_for(lambda: self._over or not self._reading)
            if self._over:
                stream.complete = self._exhausted
                return False
            stream.unfinished += 1
            self._reading = True
            return True

    @property
    def _over(self) -> bool:
        return self._closed or self._exhausted

    def _let_read(self) -> None:
        with self._lock:
            self._reading = False
            self._turn.notify()

    def _exhaust(self, error: Exception | None = None) -> None:
        with self._lock:
            self._exhausted = True
            self._item_error = error
            self._wake_senders()

    def _accept(
        self, stream: _Stream, item: IngestItem | IngestOutcome, *, sequence: int
    ) -> embedder_pb2.IngestRequest | None:
        """What to send for ``item``; None where its outcome is known already."""
        if isinstance(item, IngestOutcome):
            self._finish(stream, item)
            return None
        try:
            request = to_ingest_request(item, self._target, sequence=sequence)
        except InvalidArgument as exc:
            self._finish(stream, _refused(item, exc))
            return None
        with self._lock:
            if self._closed:
                return None
            stream.names[sequence] = _name(item)
        return request

    def _finish(self, stream: _Stream, outcome: IngestOutcome) -> None:
        with self._lock:
            self._ready.append((stream, outcome))
            self._answered.notify()

    def _receive(self, stream: _Stream, responses: Responses) -> None:
        """Match each answer with its item, until there are no more."""
        error: Exception | None = None
        try:
            for response in responses:
                with self._lock:
                    name = stream.names.pop(response.sequence, None)
                    if name is None:
                        continue  # one outcome per item, whatever the server says besides
                    self._ready.append((stream, from_ingest_response(response, name=name)))
                    self._answered.notify()
        except Exception as exc:  # noqa: BLE001 - raised to the caller, after the outcomes
            error = exc
        with self._lock:
            stream.ended = True
            if not self._left:
                self._call_error = self._call_error or error
            if error is not None or not stream.complete:
                self._closed = True  # the ingestion has failed: the other streams end too
                self._wake_senders()
            self._answered.notify()

    def _take(self) -> IngestOutcome | None:
        """The next outcome, which makes room for one more item; None after the last."""
        with self._lock:
            self._answered.wait_for(lambda: self._ready or self._is_answered())
            if not self._ready:
                return None
            stream, outcome = self._ready.popleft()
            stream.unfinished -= 1
            stream.room.notify()
            return outcome

    def _is_answered(self) -> bool:
        """Whether no outcome is to come.

        Once closed, not even of a stream that still waits for the caller's next item.
        """
        return all(stream.ended or (self._closed and not stream.names) for stream in self._streams)

    def _close(self) -> None:
        """Reads no more items, and wakes the senders."""
        with self._lock:
            self._closed = self._left = True
            self._wake_senders()

    def _wake_senders(self) -> None:
        self._turn.notify_all()
        for stream in self._streams:
            stream.room.notify_all()


def _name(item: IngestItem) -> str:
    return item.name or item.uri or item.key


def _refused(item: IngestItem, exc: InvalidArgument) -> IngestOutcome:
    failure = ItemFailure(exc.reason, exc.message, exc.metadata)
    return IngestOutcome(_name(item), IngestStatus.FAILED, item.key, failure=failure)
