"""The sending side of an ingestion: a lazy, bounded window of items in flight.

gRPC pulls the requests from a thread of its own, so what the sides share is behind one
condition. An item is read only when there is room for it; its bytes are let go once sent.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import grpc

from shoal.client.values import IngestItem, IngestOutcome, IngestStatus, ItemFailure
from shoal.client.wire_ingest import IngestTarget, from_ingest_response, to_ingest_request
from shoal.errors import InvalidArgument, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from shoal.v1 import embedder_pb2

    IngestCall: TypeAlias = Callable[
        [Iterator[embedder_pb2.IngestRequest]],
        grpc.CallIterator[embedder_pb2.IngestResponse],
    ]


class IngestStream:
    """Turns items into requests, at most ``window`` of them unfinished, and matches answers.

    An item is unfinished from when it is read until its outcome is taken, whoever decided that.
    An IngestOutcome among the items was decided by the caller (a file that cannot be read): it
    is not sent, and comes out as it is. An item whose message would be larger than the target's
    ``max_bytes`` fails unsent.
    """

    def __init__(
        self,
        items: Iterable[IngestItem | IngestOutcome],
        target: IngestTarget,
        *,
        window: int,
    ) -> None:
        if window < 1:
            message = f"window: expected at least 1 item, got {window}"
            raise InvalidArgument(message, field="window")
        self._items = items
        self._target = target
        self._window = window
        self._changed = threading.Condition()
        self._names: dict[int, str] = {}  # of what is sent and not answered
        self._ready: deque[IngestOutcome] = deque()
        self._unfinished = 0
        self._closed = False  # no more items are wanted
        self._exhausted = False  # there are no more items
        self._ended = False  # there are no more answers
        self._item_error: Exception | None = None
        self._call_error: Exception | None = None

    def exchange(self, call: IngestCall) -> Iterator[IngestOutcome]:
        """Send the items through ``call``, the stub's Ingest; one outcome per item.

        Raises:
            grpc.RpcError: the call failed; outcomes so far hold.
            ServiceUnavailable: the server ended the stream before the items ended.
        """
        responses = call(self._requests())
        # Answers are read in a thread of their own, so that an item that fails here comes out
        # at once: the window may be full of those while the server has nothing to answer.
        receiver = threading.Thread(
            target=self._receive, args=(responses,), name="shoal-ingest-answers", daemon=True
        )
        receiver.start()
        try:
            while (outcome := self._take()) is not None:
                yield outcome
        finally:
            self._close()
            responses.cancel()  # type: ignore[no-untyped-call]  # untyped in grpc-stubs
        if self._call_error is not None:
            raise self._call_error
        if self._item_error is not None:
            raise self._item_error
        if self._names or not self._exhausted:
            message = f"the server ended the stream with {len(self._names)} items unanswered"
            raise ServiceUnavailable(message)

    def _requests(self) -> Iterator[embedder_pb2.IngestRequest]:
        """The requests; blocks while the window is full, ends early once closed.

        An exception of the items themselves ends the requests and is kept: what was
        sent before it is still answered, and then it is raised to the caller.
        """
        try:
            for sequence, item in enumerate(self._items):
                found = self._convert(item, sequence=sequence)
                if not self._enter(item, found, sequence=sequence):
                    return
                if not isinstance(found, IngestOutcome):
                    yield found
        except Exception as exc:  # noqa: BLE001 -- any error of the caller's own iterable
            self._item_error = exc
        self._exhausted = True

    def _convert(
        self, item: IngestItem | IngestOutcome, *, sequence: int
    ) -> embedder_pb2.IngestRequest | IngestOutcome:
        """What to send for ``item``, or its outcome where nothing is to be sent."""
        if isinstance(item, IngestOutcome):
            return item
        try:
            return to_ingest_request(item, self._target, sequence=sequence)
        except InvalidArgument as exc:
            return _refused(item, exc)

    def _enter(
        self,
        item: IngestItem | IngestOutcome,
        found: embedder_pb2.IngestRequest | IngestOutcome,
        *,
        sequence: int,
    ) -> bool:
        """Wait for room in the window and count the item; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._unfinished < self._window)
            if self._closed:
                return False
            self._unfinished += 1
            if isinstance(found, IngestOutcome):
                self._ready.append(found)
                self._changed.notify_all()
            elif isinstance(item, IngestItem):
                self._names[sequence] = _name(item)
            return True

    def _receive(self, responses: grpc.CallIterator[embedder_pb2.IngestResponse]) -> None:
        """Match each answer with its item, until there are no more."""
        try:
            for response in responses:
                with self._changed:
                    name = self._names.pop(response.sequence, None)
                    if name is None:
                        continue  # one outcome per item, whatever the server says besides
                    self._ready.append(from_ingest_response(response, name=name))
                    self._changed.notify_all()
        except Exception as exc:  # noqa: BLE001 -- raised to the caller, after the outcomes
            self._call_error = exc
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self) -> IngestOutcome | None:
        """The next outcome, which makes room for one more item; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if not self._ready:
                return None
            self._unfinished -= 1
            self._changed.notify_all()
            return self._ready.popleft()

    def _close(self) -> None:
        """Reads no more items, and wakes the sender."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _name(item: IngestItem) -> str:
    return item.name or item.uri or item.key


def _refused(item: IngestItem, exc: InvalidArgument) -> IngestOutcome:
    failure = ItemFailure(exc.reason, exc.message, exc.metadata)
    return IngestOutcome(_name(item), IngestStatus.FAILED, item.key, failure=failure)
