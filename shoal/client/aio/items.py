"""The items of an asynchronous ingestion, wherever they come from."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ThreadedItems(Generic[T]):
    """The items of an ordinary iterable, which may block: a thread of its own reads them.

    It reads an item when one is asked for, and never ahead. The thread ends with ``close``, or
    with the program if the iterable never returns.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._asked: queue.SimpleQueue[asyncio.Future[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        """The items."""
        return self

    async def __anext__(self) -> T:
        """The next item; raises what the iterable raises."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._read_all, name="shoal-ingest-items", daemon=True
            )
            self._thread.start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.put(future)
        return await future

    def close(self) -> None:
        """Ends the thread once the iterable returns."""
        self._asked.put(None)

    def _read_all(self) -> None:
        items: Iterator[T] | None = None
        while (future := self._asked.get()) is not None:
            value: Any = None
            error: BaseException | None = None
            try:
                items = iter(self._items) if items is None else items
                value = next(items)
            except StopIteration:
                error = StopAsyncIteration()
            except BaseException as exc:  # noqa: BLE001 - whoever awaits the item raises it
                error = exc
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, value, error)
            except RuntimeError:  # the loop is closed: nobody awaits the item any more
                return


def _settle(future: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    if future.done():  # whoever asked has gone
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def as_async(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    """``items``, to be read with ``async for``."""
    if isinstance(items, AsyncIterable):
        return aiter(items)
    return ThreadedItems(items)
