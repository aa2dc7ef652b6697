"""Decodes images: in the calling thread, or in the decoder's own threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeAlias

from embedder import metrics
from embedder.encoding.manifest import Preprocessing
from embedder.flow.batching import Batcher, Patience, Portion
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import UInt8, decode_for
from shoal.errors import ShoalError

Pixels: TypeAlias = tuple[UInt8, ...]
"""One image: for each part of an encoder, uint8 (H, W, 3)."""

MAX_BATCH: Final = 16
"""The most images that a thread decodes before it hands them on, all together.

If it handed them on one by one, a model that is faster than decoding would run for one image at a
time. Such a run costs the decoding cores as much as a large batch, and a change of threads besides.
Measured on two cores with a stand-in for a GPU (1.5 ms a run and 0.07 ms an image, spinning), the
share served of the images that the cores can decode: 0.45 one by one, 0.60 by 8, 0.64 by 16, 0.65
by 32, whose answers come less evenly. (Measured when resizing took longer; not measured again.)
"""
MAX_BATCH_BYTES: Final = 8 * 2**20
"""The most encoded bytes of such a batch; a single image may have more. Large images take up to
seconds, and the others of their batch would wait for them."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An encoded image, and the preprocessings to prepare it for."""

    data: bytes
    specs: tuple[Preprocessing, ...]


class Decoder:
    """Decodes within ``limits``."""

    def __init__(self, limits: ImageLimits, *, threads: int) -> None:
        """Prepares; ``threads`` serve ``decode_in_turn``, from ``start`` to ``close``."""
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, "shoal-decode")
        portion: Portion[_Job] = Portion(
            MAX_BATCH, weight=MAX_BATCH_BYTES, weigh=lambda job: len(job.data)
        )
        self._jobs: Batcher[_Job, Pixels] = Batcher(
            self._decode_jobs,
            name="decoding",
            workers=threads,
            portion=portion,
            watch=metrics.queue("decoding"),
        )

    def start(self) -> None:
        """Starts the workers, as tasks of the running loop."""
        self._jobs.start()

    async def close(self) -> None:
        """Decodes the images that wait, then ends the threads."""
        try:
            await self._jobs.close()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def decode_now(self, data: bytes, specs: tuple[Preprocessing, ...]) -> Pixels:
        """The pixels of ``data`` for each of ``specs``, from one decode; blocks. Thread-safe.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
        """
        with metrics.DECODE_SECONDS.time():
            return decode_for(data, limits=self._limits, specs=specs)

    async def decode_in_turn(
        self, data: bytes, specs: tuple[Preprocessing, ...], patience: Patience
    ) -> Pixels:
        """As ``decode_now``, in a thread, when it is this image's turn.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            ServiceUnavailable: the service is shutting down.
        """
        return await self._jobs.submit(_Job(data, specs), patience)

    async def _decode_jobs(self, batch: Sequence[_Job]) -> list[Pixels | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode_all, batch)

    def _decode_all(self, batch: Sequence[_Job]) -> list[Pixels | Exception]:
        return [self._answer(job) for job in batch]

    def _answer(self, job: _Job) -> Pixels | Exception:
        try:
            return self.decode_now(job.data, job.specs)
        except ShoalError as exc:
            return exc
