"""Decodes images: in the calling thread, in the decoder's own threads, or, if slow, apart."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from embedder import metrics
from embedder.encoding.manifest import Preprocessing
from embedder.flow.batching import Batcher, Patience, Portion
from embedder.images.apart import Apart, SlowImage
from embedder.images.cost import SLOW_MS, UNKNOWN_PIXELS, Cost, cost_of, unknown_cost
from embedder.images.limits import DecodeMemory, ImageLimits
from embedder.images.preprocess import UInt8, decode_for
from shoal.errors import ImageTooManyPixels, ShoalError

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
MAX_BATCH_MS: Final = 4 * SLOW_MS
"""The most that the images of such a batch cost; a single image may cost more. They wait for each
other."""
_STEP: Final = 2**20
"""The pixels of an image are held to what its header seemed to say, in steps of this many."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image, and what it will cost to decode."""

    data: bytes
    cost: Cost


class MoreThanSaid(ImageTooManyPixels):
    """The image has more pixels than its header seemed to say: it has to be decoded apart."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An encoded image, and the preprocessings to prepare it for."""

    image: Encoded
    specs: tuple[Preprocessing, ...]


class Decoder:
    """Decodes within ``limits``; slow images in processes of their own."""

    def __init__(self, limits: ImageLimits, *, threads: int, memory: DecodeMemory) -> None:
        """Prepares; ``threads`` serve ``decode_in_turn``, from ``start`` to ``close``."""
        self._limits = limits
        self._memory = memory
        self._threads = ThreadPoolExecutor(threads, "shoal-decode")
        portion: Portion[_Job] = Portion(
            MAX_BATCH, weight=MAX_BATCH_MS, weigh=lambda job: job.image.cost.ms
        )
        self._jobs: Batcher[_Job, Pixels] = Batcher(
            self._decode_jobs,
            name="decoding",
            workers=threads,
            portion=portion,
            watch=metrics.queue("decoding"),
        )
        self._apart = Apart(limits, processes=threads, memory=memory.apart)

    def start(self) -> None:
        """Starts the workers, as tasks of the running loop."""
        self._jobs.start()
        self._apart.start()

    async def close(self) -> None:
        """Decodes the images that wait, then ends threads and processes."""
        try:
            await asyncio.gather(self._jobs.close(), self._apart.close())
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def weighed(self, data: bytes) -> Encoded:
        """``data`` with its cost. An image that is refused by its header costs nearly nothing."""
        cost = cost_of(data)
        if cost.pixels > self._limits.max_pixels:
            cost = unknown_cost(UNKNOWN_PIXELS, 0)
        return Encoded(data, cost)

    def is_slow(self, image: Encoded) -> bool:
        """Whether the image is decoded apart from the others."""
        return image.cost.ms > SLOW_MS or image.cost.memory > self._memory.each

    def decode_now(self, image: Encoded, specs: tuple[Preprocessing, ...]) -> Pixels:
        """The pixels of ``image`` for each of ``specs``, from one decode; blocks. Thread-safe.

        Raises:
            MoreThanSaid: the image has more pixels than its cost says.
            ImageInvalid: the bytes are not an image within the limits.
        """
        limits = _at_most(self._limits, -(-image.cost.pixels // _STEP))
        with metrics.DECODE_SECONDS.time():
            try:
                return decode_for(image.data, limits=limits, specs=specs)
            except ImageTooManyPixels as exc:
                most = self._limits.max_pixels
                if int(exc.metadata.get("pixels", most + 1)) <= most:
                    raise MoreThanSaid(exc.message) from None
                # Refused again, with the limit that its sender is to know.
                return decode_for(image.data, limits=self._limits, specs=specs)

    async def decode_in_turn(
        self, data: bytes, specs: tuple[Preprocessing, ...], patience: Patience
    ) -> Pixels:
        """The pixels of ``data`` for each of ``specs``, when it is this image's turn.

        It is decoded in a thread, or apart if it is slow.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            ServiceUnavailable: the service is shutting down.
        """
        image = self.weighed(data)
        if self.is_slow(image):
            return await self._apart.decode(SlowImage(data, image.cost, specs), patience)
        try:
            return await self._jobs.submit(_Job(image, specs), patience)
        except MoreThanSaid:
            return await self.decode_apart(data, specs, patience)

    async def decode_apart(
        self, data: bytes, specs: tuple[Preprocessing, ...], patience: Patience
    ) -> Pixels:
        """The pixels of an image that has more of them than it said; raises as before."""
        cost = unknown_cost(self._limits.max_pixels, len(data))
        return await self._apart.decode(SlowImage(data, cost, specs), patience)

    async def _decode_jobs(self, batch: Sequence[_Job]) -> list[Pixels | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode_all, batch)

    def _decode_all(self, batch: Sequence[_Job]) -> list[Pixels | Exception]:
        return [self._answer(job) for job in batch]

    def _answer(self, job: _Job) -> Pixels | Exception:
        try:
            return self.decode_now(job.image, job.specs)
        except ShoalError as exc:
            return exc


@functools.cache
def _at_most(limits: ImageLimits, steps: int) -> ImageLimits:
    """``limits`` with at most so many steps of pixels."""
    return replace(limits, max_pixels=min(limits.max_pixels, max(1, steps) * _STEP))
