"""From a URI to its bytes: chooses the source, and bounds the number, time and memory of reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from embedder import metrics
from embedder.flow.admission import Gate
from embedder.locations.config import LocationsConfig
from embedder.locations.files import Files
from embedder.locations.objects import Objects
from embedder.locations.slots import Slots
from embedder.locations.sources import Source, not_allowed, shown
from embedder.locations.web import Web
from shoal.errors import LocationUnavailable, Unsupported

P = ParamSpec("P")
T = TypeVar("T")


class Locations:
    """Reads images from allowed places."""

    def __init__(self, config: LocationsConfig) -> None:
        """Prepares; nothing is connected to yet.

        Raises:
            ConfigError: the package for an object store is not installed.
        """
        self._config = config
        self._room = Gate("locations", config.capacity)
        objects = Objects(config.prefixes)
        self._web = Web(config)
        sources: dict[str, Source] = {
            "file": Files(config.roots),
            "http": self._web,
            "https": self._web,
        }
        self._sources = {scheme: sources.get(scheme, objects) for scheme in config.schemes}
        self._slots = {
            scheme: Slots(scheme, config.concurrency, patience_s=config.timeout_s)
            for scheme in config.schemes
        }
        if "http" in self._slots:
            self._slots["http"] = self._slots["https"]  # they share connections too

    @asynccontextmanager
    async def read(self, uri: str, *, max_bytes: int) -> AsyncIterator[bytes]:
        """The bytes at ``uri``. They count against the memory until the context is left.

        Raises:
            Unsupported: the place is not allowed.
            InvalidArgument: the URI is malformed, or names something that is not a file.
            ImageTooLarge: there are more than ``max_bytes``.
            NotFound: there is nothing at ``uri``.
            LocationUnavailable: the place cannot be read now or not in time, or all reads of its
                kind that may run at the same time hang.
        """
        source, slots = self._source(uri)
        held: list[int] = []
        try:
            try:
                async with slots.take() as thread, asyncio.timeout(self._config.timeout_s) as clock:
                    means = _Means(self._room, held, thread, clock)
                    with metrics.READ_SECONDS.time():
                        data = await source.read(uri, max_bytes=max_bytes, means=means)
            except TimeoutError as exc:
                seconds = self._config.timeout_s
                msg = f"image {shown(uri)}: expected within {seconds:g} s, it took longer"
                raise LocationUnavailable(msg) from exc
            yield data
        finally:
            for size in held:
                self._room.leave(size)

    async def close(self) -> None:
        """Closes connections and ends the threads, without waiting for one that hangs."""
        for slots in self._slots.values():
            slots.close()
        await self._web.close()

    def _source(self, uri: str) -> tuple[Source, Slots]:
        if not self._sources:
            msg = "image.uri: this server reads no locations; send the bytes in image.data"
            raise Unsupported(msg, field="image.uri")
        scheme = uri.partition(":")[0].lower()
        if scheme not in self._sources:
            raise not_allowed(uri)
        return self._sources[scheme], self._slots[scheme]


class _Means:
    """What one read may use: memory shared by all reads, the thread of a slot, and a clock."""

    def __init__(
        self, room: Gate, held: list[int], thread: Executor, clock: asyncio.Timeout
    ) -> None:
        """Prepares; each reservation is appended to ``held``, in bytes."""
        self._room = room
        self._held = held
        self._thread = thread
        self._clock = clock

    async def reserve(self, size: int) -> None:
        """Waits for memory. The clock stands still meanwhile: the place is not to blame."""
        loop = asyncio.get_running_loop()
        due, since = self._clock.when(), loop.time()
        self._clock.reschedule(None)
        await self._room.enter(size)
        self._held.append(size)
        if due is not None:
            self._clock.reschedule(due + loop.time() - since)

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``call``, run in the slot's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(call, *args, **kwargs))
