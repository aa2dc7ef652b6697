"""A stream of requests answered concurrently, in the order in which they finish. Pure asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from embedder.flow.admission import Gate

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Room:
    """The room of one request: at a ``gate`` that all streams share, so many items and bytes."""

    gate: Gate
    size: int
    items: int = 1


@dataclass(frozen=True, slots=True)
class Flow(Generic[A]):
    """How much of one stream may be under way.

    Attributes:
        max_items: the most requests that are read before the receiver has taken their responses,
            at least 1.
        room: where a request gets its room, and how much; it gives it back when it is answered.
        stop: once set, no more requests are read or let in; those under way are answered.
    """

    max_items: int
    room: Callable[[A], Room]
    stop: asyncio.Event


async def answer_stream(
    requests: AsyncIterator[A], answer: Callable[[A], Coroutine[Any, Any, B]], *, flow: Flow[A]
) -> AsyncGenerator[B, None]:
    """One response per request, as they finish; close it (``aclosing``) to end all its tasks.

    A request is read only when there is room, so a sender is slowed down to the speed at which it
    is served. A response gives its room back only when the next one is asked for, so a receiver
    that stops reading stops the stream. ``answer`` is started in the order of the requests.

    Raises:
        Exception: whatever ``requests`` or ``answer`` raised; all other tasks are then cancelled.
    """
    done: asyncio.Queue[asyncio.Task[B] | None] = asyncio.Queue()
    room = asyncio.Semaphore(flow.max_items)
    tasks: set[asyncio.Task[B]] = set()

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                request = await anext(requests, None)
                if request is None:
                    return
                place = flow.room(request)
                await place.gate.enter(place.size, items=place.items)
                # No await from here to the callback: a request that has entered will leave.
                task = asyncio.create_task(answer(request))
                tasks.add(task)
                task.add_done_callback(partial(leave, place))
        finally:
            done.put_nowait(None)

    def leave(place: Room, task: asyncio.Task[B]) -> None:
        place.gate.leave(place.size, items=place.items)
        done.put_nowait(task)

    async def stop() -> None:
        await flow.stop.wait()
        reader.cancel()

    reader = asyncio.create_task(read())
    stopper = asyncio.create_task(stop())
    try:
        reading = True
        while reading or tasks:
            task = await done.get()
            if task is None:
                reading = False
                if not flow.stop.is_set():
                    await reader  # raises what the sender's stream raised
                continue
            tasks.discard(task)
            yield task.result()
            room.release()
    finally:
        for owned in (reader, stopper, *tasks):
            owned.cancel()
        await asyncio.gather(reader, stopper, *tasks, return_exceptions=True)
