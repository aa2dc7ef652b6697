"""From a URI to its bytes: by which source, how many at once, for how long, in how much memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from embedder import metrics
from embedder.admission import Gate
from embedder.locations.config import LocationsConfig
from embedder.locations.files import Files
from embedder.locations.objects import Objects
from embedder.locations.sources import Source, not_allowed, shown
from embedder.locations.web import Web
from shoal.errors import LocationUnavailable, Unsupported


class Locations:
    """Reads images from allowed places."""

    def __init__(self, config: LocationsConfig) -> None:
        """Prepare; nothing is connected to yet.

        Raises:
            ConfigError: the package for an object store is not installed.
        """
        self._config = config
        self._threads = ThreadPoolExecutor(config.concurrency, "shoal-read")
        self._slots = asyncio.Semaphore(config.concurrency)
        self._room = Gate("locations", config.capacity)
        files = Files(config.roots, self._threads)
        objects = Objects(config.prefixes, self._threads)
        self._web = Web(config)
        own: dict[str, Source] = {"file": files, "http": self._web, "https": self._web}
        self._sources = {scheme: own.get(scheme, objects) for scheme in config.schemes}

    @asynccontextmanager
    async def read(self, uri: str, *, max_bytes: int) -> AsyncIterator[bytes]:
        """The bytes at ``uri``, which count as held until the context is left.

        Raises:
            Unsupported: the place is not among those that are allowed.
            InvalidArgument: the URI is malformed, or leads to what is not an image's file.
            ImageTooLarge: there are more than ``max_bytes``.
            NotFound: there is nothing.
            LocationUnavailable: it cannot be read now, or not in time.
        """
        held: list[int] = []

        async def reserve(size: int) -> None:
            await self._room.enter(size)
            held.append(size)

        source = self._source(uri)
        try:
            async with self._slots:
                try:
                    async with asyncio.timeout(self._config.timeout_s):
                        with metrics.READ_SECONDS.time():
                            data = await source.read(uri, max_bytes=max_bytes, reserve=reserve)
                except TimeoutError as exc:
                    seconds = self._config.timeout_s
                    msg = f"image {shown(uri)}: expected within {seconds:g} s, it took longer"
                    raise LocationUnavailable(msg) from exc
            yield data
        finally:
            for size in held:
                self._room.leave(size)

    async def close(self) -> None:
        """Close connections and give up the threads."""
        await self._web.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _source(self, uri: str) -> Source:
        if not self._sources:
            msg = "image.uri: this server reads no locations; send the bytes in image.data"
            raise Unsupported(msg, field="image.uri")
        found = self._sources.get(uri.partition(":")[0].lower())
        if found is None:
            raise not_allowed(uri)
        return found
