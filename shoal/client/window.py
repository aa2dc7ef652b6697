"""The bookkeeping of an ingestion: which items are unfinished, and on which stream.

Pure: no thread, no loop and no network. Whoever drives it lets one caller in at a time, and wakes
those who wait after each change.
"""

from __future__ import annotations

from collections import deque

from shoal.client.messages_ingest import from_ingest_response
from shoal.client.values import IngestOutcome
from shoal.errors import InvalidArgument, ServiceUnavailable
from shoal.v1 import embedder_pb2

WINDOW = 256
"""The default size: enough unfinished items to keep the batches of an embedder on a GPU full."""


class Stream:
    """One of the streams of an ingestion.

    Attributes:
        names: The names of the items that were sent and not answered, by sequence.
        unfinished: Items that were read for this stream and whose outcome is not taken.
        complete: All its requests were sent, because there are no more items.
        ended: There are no more answers.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.unfinished = 0
        self.complete = False
        self.ended = False


class Window:
    """At most ``size`` unfinished items, an equal share on each stream (at least one).

    An item is unfinished from when it is read until its outcome is taken, also if it is not sent.

    Attributes:
        streams: The streams.
        closed: No more items are wanted.
        reading: Somebody is reading from the caller's iterator; only one at a time may.
        item_error: What the caller's iterator raised.
    """

    def __init__(self, size: int, *, streams: int) -> None:
        if streams < 1:
            raise InvalidArgument(f"streams: expected at least 1, got {streams}", field="streams")
        if size < 1:
            raise InvalidArgument(f"window: expected at least 1 item, got {size}", field="window")
        self.streams = [Stream() for _ in range(streams)]
        self.closed = False
        self.reading = False
        self.item_error: BaseException | None = None
        self._call_error: BaseException | None = None
        self._share = max(1, size // streams)
        self._sequence = 0
        self._exhausted = False
        self._left = False
        self._ready: deque[tuple[Stream, IngestOutcome]] = deque()

    # Reading

    @property
    def over(self) -> bool:
        """Whether no more items are to be read."""
        return self.closed or self._exhausted

    def has_room(self, stream: Stream) -> bool:
        """Whether one more item may be read for ``stream``."""
        return stream.unfinished < self._share

    def begin_to_read(self, stream: Stream) -> bool:
        """Counts an item that is about to be read for ``stream``; False if none is to be read.

        The item counts before it is read, so that no stream holds one without room for it while
        another stream has some.
        """
        if self.over:
            stream.complete = self._exhausted
            return False
        stream.unfinished += 1
        self.reading = True
        return True

    def end_reading(self) -> int:
        """Ends the turn of whoever was reading; the number of the item that was read."""
        self.reading = False
        self._sequence += 1
        return self._sequence - 1

    def exhaust(self, error: BaseException | None = None) -> None:
        """Ends the reading for good: there are no more items, or the iterator raised ``error``."""
        self.reading = False
        self._exhausted = True
        self.item_error = error

    # Answers

    def finish(self, stream: Stream, outcome: IngestOutcome) -> None:
        """Takes an outcome that needs no answer: the item is not sent."""
        self._ready.append((stream, outcome))

    def send(self, stream: Stream, sequence: int, name: str) -> bool:
        """Expects an answer for the item ``sequence``; False if it is not to be sent any more."""
        if self.closed:
            return False
        stream.names[sequence] = name
        return True

    def answer(self, stream: Stream, response: embedder_pb2.IngestResponse) -> None:
        """Matches an answer with its item. Each item has one outcome, whatever else is answered."""
        name = stream.names.pop(response.sequence, None)
        if name is not None:
            self.finish(stream, from_ingest_response(response, name=name))

    def end(self, stream: Stream, error: BaseException | None) -> None:
        """Ends ``stream``, by ``error`` or by the server. If that is too early, all streams end."""
        stream.ended = True
        if not self._left:
            self._call_error = self._call_error or error
        if error is not None or not stream.complete:
            self.closed = True

    # Outcomes

    @property
    def settled(self) -> bool:
        """Whether an outcome is there to take, or no more will come.

        Once closed, no more will come from a stream that still waits for the caller's next item.
        """
        return bool(self._ready) or all(
            stream.ended or (self.closed and not stream.names) for stream in self.streams
        )

    def take(self) -> tuple[Stream, IngestOutcome] | None:
        """The next outcome and its stream, which has more room now; None after the last."""
        if not self._ready:
            return None
        stream, outcome = self._ready.popleft()
        stream.unfinished -= 1
        return stream, outcome

    def leave(self) -> None:
        """Ends the ingestion: from now on, calls fail because they are cancelled here."""
        self.closed = self._left = True

    def check(self) -> None:
        """Raises the error that ended the ingestion too early, if there is one."""
        if self._call_error is not None:
            raise self._call_error
        if self.item_error is not None:
            raise self.item_error
        unanswered = sum(len(stream.names) for stream in self.streams)
        if unanswered or not all(stream.complete for stream in self.streams):
            raise ServiceUnavailable(
                f"the server ended the stream with {unanswered} items unanswered"
            )
