"""One encoder at work: pixels and texts wait for a worker, and run in batches.

Owns the threads of one encoder's inference. Decoding is ``embedder.fleet``'s; how many images
may be on this way at once is the callers' business (``embedder.admission``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from embedder import metrics
from embedder.batching import Batcher, Lane
from embedder.config import EmbedderConfig
from embedder.encoder import Encoder
from embedder.preprocess import UInt8
from shoal import vectors
from shoal.errors import InvalidArgument, OperatorError

Vector = npt.NDArray[np.float32]
Pixels: TypeAlias = tuple[UInt8, ...]
"""One image, for each part of an encoder uint8 (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class Patience:
    """In which lane an image waits, and until when (the loop's time; None: for ever)."""

    lane: Lane = Lane.CALL
    deadline: float | None = None


class Pipeline:
    """Pixels and texts to the vectors of one encoder."""

    def __init__(self, encoder: Encoder, config: EmbedderConfig) -> None:
        """Prepare; ``start`` begins."""
        self.encoder = encoder
        self._config = config
        self._inferring = ThreadPoolExecutor(config.inferences, "shoal-infer")
        self._images: Batcher[Pixels, Vector] = Batcher(
            self._infer_images, name="inference", workers=config.inferences, max_batch=config.batch
        )
        self._texts: Batcher[str, Vector] = Batcher(
            self._infer_texts, name="text inference", workers=1, max_batch=config.batch
        )
        self._vouched_at = time.monotonic()  # an encoder is proven right when it is opened

    def start(self) -> None:
        """Start the workers, as tasks of the running loop."""
        self._images.start()
        self._texts.start()

    async def close(self) -> None:
        """Answer what waits, then end the threads."""
        try:
            await asyncio.gather(self._images.close(), self._texts.close())
        finally:
            self._inferring.shutdown(wait=False, cancel_futures=True)

    async def embed(self, pixels: Pixels, patience: Patience) -> Vector:
        """The vector (D,) of a decoded image.

        Raises:
            DeadlineExceeded: its turn came too late.
            OperatorError: the model failed on it.
            ServiceUnavailable: the service is shutting down.
        """
        return await self._images.submit(pixels, lane=patience.lane, deadline=patience.deadline)

    async def embed_text(self, text: str, patience: Patience) -> Vector:
        """The vector (D,) of a text; raises as ``embed``, and Unsupported without a text tower."""
        return await self._texts.submit(text, lane=patience.lane, deadline=patience.deadline)

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

    async def _infer_images(self, batch: Sequence[Pixels]) -> list[Vector | Exception]:
        metrics.BATCH.labels("inference").observe(len(batch))
        metrics.WAITING.labels("inference").set(len(self._images))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run_images, batch)

    def _run_images(self, batch: Sequence[Pixels]) -> list[Vector | Exception]:
        with metrics.INFERENCE_SECONDS.time():
            rows = self.encoder.embed([np.stack(part) for part in zip(*batch, strict=True)])
        return [self._checked(row) for row in rows]

    async def _infer_texts(self, batch: Sequence[str]) -> list[Vector | Exception]:
        metrics.BATCH.labels("text").observe(len(batch))
        metrics.WAITING.labels("text").set(len(self._texts))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run_texts, batch)

    def _run_texts(self, batch: Sequence[str]) -> list[Vector | Exception]:
        with metrics.INFERENCE_SECONDS.time():
            rows = self.encoder.embed_texts(batch)
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
