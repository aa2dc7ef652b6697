"""Encoded images to pixels: in the calling thread, or in threads of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from embedder import metrics
from embedder.manifest import Preprocessing
from embedder.preprocess import ImageLimits, UInt8, decode_for

Pixels: TypeAlias = tuple[UInt8, ...]
"""One image, for each part of an encoder uint8 (H, W, 3)."""


class Decoder:
    """Decodes within ``limits``. Thread-safe."""

    def __init__(self, limits: ImageLimits, *, threads: int) -> None:
        """Prepare; ``threads`` is for ``elsewhere``."""
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, "shoal-decode")

    def here(self, data: bytes, specs: tuple[Preprocessing, ...]) -> Pixels:
        """The pixels of ``data`` for each of ``specs``, from one decode; blocks.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
        """
        with metrics.DECODE_SECONDS.time():
            return decode_for(data, limits=self._limits, specs=specs)

    async def elsewhere(self, data: bytes, specs: tuple[Preprocessing, ...]) -> Pixels:
        """As ``here``, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.here, data, specs)

    def close(self) -> None:
        """Give up the threads; what waits for one is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
