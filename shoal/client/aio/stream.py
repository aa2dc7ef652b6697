"""The sending side of an asynchronous ingestion: as ``client.stream``, with tasks, not threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.client.aio.items import ThreadedItems
from shoal.client.messages_ingest import IngestTarget, name_of, prepared
from shoal.client.values import IngestItem, IngestOutcome
from shoal.client.window import Stream, Window

if TYPE_CHECKING:
    from shoal.v1 import embedder_pb2

    Responses: TypeAlias = Any  # an aio.StreamStreamCall, generic in the stubs only
    IngestCall: TypeAlias = Callable[[AsyncIterator[embedder_pb2.IngestRequest]], Responses]
    Items: TypeAlias = AsyncIterator[IngestItem | IngestOutcome]


class AsyncIngestion:
    """As ``Ingestion``. All of it runs in one loop, so that nothing needs a lock."""

    def __init__(self, items: Items, target: IngestTarget, window: Window) -> None:
        self._items = items
        self._target = target
        self._window = window
        self._change = asyncio.Event()
        self._reading: asyncio.Future[IngestItem | IngestOutcome] | None = None

    async def exchange(self, calls: Sequence[IngestCall]) -> AsyncGenerator[IngestOutcome, None]:
        """Sends the items, each through one of ``calls``, a stub's Ingest; one outcome per item.

        When one call fails no more is sent, and what the others have sent is still answered.

        Raises:
            grpc.RpcError: a call failed; outcomes so far hold.
            ServiceUnavailable: the server ended a stream before the items ended.
        """
        under_way: list[Responses] = []
        receivers: list[asyncio.Task[None]] = []
        try:
            for stream, call in zip(self._window.streams, calls, strict=True):
                responses = call(self._requests(stream))
                under_way.append(responses)
                receivers.append(asyncio.create_task(self._receive(stream, responses)))
            while True:
                await self._until(lambda: self._window.settled)
                taken = self._window.take()
                if taken is None:
                    break
                self._tell()
                yield taken[1]
        finally:
            self._window.leave()
            self._tell()
            for responses in under_way:
                responses.cancel()
            await self._end_reading()
            await asyncio.gather(*receivers)
        self._window.check()

    async def _requests(self, stream: Stream) -> AsyncIterator[embedder_pb2.IngestRequest]:
        """The requests of ``stream``; waits while its share is full, ends early once closed."""
        window = self._window
        while True:
            await self._until(
                lambda: window.over or (window.has_room(stream) and not window.reading)
            )
            if not window.begin_to_read(stream):
                return
            item = await self._read()
            if item is None:
                continue
            sequence = window.end_reading()
            request = prepared(item, self._target, sequence=sequence)
            if isinstance(request, IngestOutcome):
                window.finish(stream, request)
                self._tell()
            else:
                self._tell()  # the next stream may read
                if window.send(stream, sequence, name_of(item)):
                    yield request

    async def _read(self) -> IngestItem | IngestOutcome | None:
        """The next item; None if there are no more, or none is wanted any more."""
        self._reading = reading = asyncio.ensure_future(anext(self._items))
        reading.add_done_callback(lambda _: self._tell())
        await self._until(lambda: reading.done() or self._window.closed)
        if not reading.done():  # the caller's iterator may take its time; nobody waits for it
            return None
        try:
            return reading.result()
        except StopAsyncIteration:
            self._window.exhaust()
        except Exception as exc:  # noqa: BLE001 - any error of the caller's own iterator
            # What was sent before it is still answered, and then it is raised to the caller.
            self._window.exhaust(exc)
        except asyncio.CancelledError as exc:
            self._window.exhaust(exc)
        self._tell()
        return None

    async def _end_reading(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if isinstance(self._items, ThreadedItems):
            self._items.close()

    async def _receive(self, stream: Stream, responses: Responses) -> None:
        """Matches each answer with its item, until there are no more."""
        error: BaseException | None = None
        try:
            async for response in responses:
                self._window.answer(stream, response)
                self._tell()
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - as in ``_read``
            error = exc
        self._window.end(stream, error)
        self._tell()

    def _tell(self) -> None:
        """Wakes all who wait: something has changed."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._change.wait()
