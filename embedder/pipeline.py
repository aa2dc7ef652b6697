"""One image's way to its vector: decode in a thread, wait for a worker, run in a batch.

Owns the threads of decoding and inference. How many images may be on this way at once is the
callers' business (``embedder.admission``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedder import metrics
from embedder.batching import Batcher, Lane
from embedder.config import EmbedderConfig
from embedder.encoder import Encoder
from embedder.preprocess import UInt8, decode
from shoal import vectors
from shoal.errors import InvalidArgument, OperatorError

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Patience:
    """In which lane an image waits, and until when (the loop's time; None: for ever)."""

    lane: Lane = Lane.CALL
    deadline: float | None = None


class Pipeline:
    """Image bytes to vectors."""

    def __init__(self, encoder: Encoder, config: EmbedderConfig) -> None:
        """Prepare; ``start`` begins."""
        self.encoder = encoder
        self._config = config
        self._decoding = ThreadPoolExecutor(config.decoders, "shoal-decode")
        self._inferring = ThreadPoolExecutor(config.inferences, "shoal-infer")
        self._batcher: Batcher[UInt8, Vector] = Batcher(
            self._infer, name="inference", workers=config.inferences, max_batch=config.batch
        )
        self._vouched_at = -float("inf")

    def start(self) -> None:
        """Start the workers, as tasks of the running loop."""
        self._batcher.start()

    async def close(self) -> None:
        """Answer what waits, then end the threads."""
        try:
            await self._batcher.close()
        finally:
            self._decoding.shutdown(wait=False, cancel_futures=True)
            self._inferring.shutdown(wait=False, cancel_futures=True)

    async def embed(self, data: bytes, patience: Patience) -> Vector:
        """The vector (D,) of an encoded image.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            OperatorError: the model failed on it.
            ServiceUnavailable: the service is shutting down.
        """
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoding, self._decode, data)
        return await self._batcher.submit(pixels, lane=patience.lane, deadline=patience.deadline)

    async def canary(self) -> None:
        """Return when the model gave its reference vectors a short while ago, or gives them now.

        Raises:
            SelfTestFailed, OperatorError: it does not.
        """
        if time.monotonic() - self._vouched_at < self._config.canary_interval_s:
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inferring, self.encoder.self_test)
        self._vouched_at = time.monotonic()

    def _decode(self, data: bytes) -> UInt8:
        with metrics.DECODE_SECONDS.time():
            return decode(data, limits=self._config.limits, spec=self.encoder.preprocessing)

    async def _infer(self, batch: Sequence[UInt8]) -> list[Vector | Exception]:
        metrics.BATCH.labels("inference").observe(len(batch))
        metrics.WAITING.labels("inference").set(len(self._batcher))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run, batch)

    def _run(self, batch: Sequence[UInt8]) -> list[Vector | Exception]:
        with metrics.INFERENCE_SECONDS.time():
            rows = self.encoder.embed(np.stack(batch))
        return [self._checked(row) for row in rows]

    def _checked(self, vector: Vector) -> Vector | Exception:
        """A vector that may be stored; an image of which the model makes NaN costs only itself."""
        try:
            # A copy: a view would keep the whole batch alive for as long as one vector is.
            return vectors.check_unit(vector.copy(), self.encoder.dim)
        except InvalidArgument as exc:
            error = OperatorError(f"encoder {self.encoder.name} gave no usable {exc.message}")
            error.__cause__ = exc
            return error
