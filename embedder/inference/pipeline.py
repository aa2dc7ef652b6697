"""One encoder at work: images and texts wait for a worker, and run in batches.

Where the model runs on the cores that also decode, a worker decodes its batch itself: each change
of threads costs about a tenth of a millisecond, and twice as many threads as cores win nothing. For
a GPU the decoder's threads decode an image before it waits for the model; for several encoders the
fleet has one image decoded for all of them.

Owns the threads of one encoder's inference. How many images may be on this way at once is decided
by the callers (``embedder.flow.admission``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from embedder import metrics
from embedder.config import EmbedderConfig
from embedder.encoding.canary import Canary, Runs, Times
from embedder.encoding.encoder import Encoder
from embedder.flow.batching import Batcher, Patience, Portion
from embedder.images.decoding import MAX_BATCH_MS, Decoder, Encoded, MoreThanSaid, Pixels
from shoal import vectors
from shoal.errors import InvalidArgument, OperatorError, ShoalError

Vector = npt.NDArray[np.float32]
"""float32 (D,), of unit length."""

_Image: TypeAlias = Encoded | Pixels
"""One image, encoded or decoded."""


_MODEL_MS = 5.0
"""The cost of the model for one image, as far as it matters for whose turn it is: the bundled
encoder's on one core is twice this, a GPU's a hundredth."""


def _weight(image: _Image) -> float:
    """The cost of an image for whose turn it is, ms."""
    return _MODEL_MS + (image.cost.ms if isinstance(image, Encoded) else 0.0)


class Pipeline:
    """Turns images and texts into the vectors of one encoder."""

    def __init__(
        self, encoder: Encoder, config: EmbedderConfig, decoder: Decoder, *, run_size: int
    ) -> None:
        """Prepares; ``start`` begins. One run of the model has at most ``run_size`` images."""
        self.encoder = encoder
        self.run_size = run_size
        self._workers_decode = config.runtime.on_cpu
        self._decoder = decoder
        self._inferring = ThreadPoolExecutor(config.inferences, "shoal-infer")
        self._images: Batcher[_Image, Vector] = Batcher(
            self._infer_images,
            name="inference",
            workers=config.inferences,
            portion=Portion(
                config.batch,
                spread=config.runtime.on_cpu,
                # The images of a batch wait for each other's decoding.
                weight=MAX_BATCH_MS + config.batch * _MODEL_MS,
                weigh=_weight,
            ),
            watch=metrics.queue("inference"),
        )
        self._texts: Batcher[str, Vector] = Batcher(
            self._infer_texts,
            name="text inference",
            workers=1,
            portion=Portion(config.batch),
            watch=metrics.queue("text"),
        )
        self._runs = Runs(name=encoder.name, give_up_s=config.give_up_s)
        self._canary = Canary(
            self._self_test,
            name=encoder.name,
            times=Times(config.canary_interval_s, config.canary_timeout_s, config.give_up_s),
        )

    def start(self) -> None:
        """Starts the workers, as tasks of the running loop."""
        self._images.start()
        self._texts.start()

    async def close(self) -> None:
        """Answers the items that wait, then ends the threads."""
        try:
            await asyncio.gather(self._images.close(), self._texts.close(), self._canary.close())
        finally:
            self._inferring.shutdown(wait=False, cancel_futures=True)

    async def embed(self, data: bytes, patience: Patience) -> Vector:
        """The vector (D,) of an encoded image.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            OperatorError: the model failed on it.
            ServiceUnavailable: the service is shutting down, or the model fails its self-test.
        """
        image, specs = self._decoder.weighed(data), self.encoder.preprocessings
        if self._workers_decode and not self._decoder.is_slow(image):
            try:
                return await self._embed(image, patience)
            except MoreThanSaid:
                pixels = await self._decoder.decode_apart(data, specs, patience)
        else:
            pixels = await self._decoder.decode_in_turn(data, specs, patience)
        return await self._embed(pixels, patience)

    async def embed_pixels(self, pixels: Pixels, patience: Patience) -> Vector:
        """The vector (D,) of an image that is decoded for this encoder; raises as ``embed``."""
        return await self._embed(pixels, patience)

    async def _embed(self, image: _Image, patience: Patience) -> Vector:
        self._canary.trust()
        vector = await self._images.submit(image, patience)
        self._canary.trust()  # the model may have gone wrong meanwhile
        return vector

    async def embed_text(self, text: str, patience: Patience) -> Vector:
        """The vector (D,) of a text; raises as ``embed``, and Unsupported without a text tower."""
        self._canary.trust()
        vector = await self._texts.submit(text, patience)
        self._canary.trust()
        return vector

    def check(self) -> None:
        """Returns if the model's last self-test gave its reference vectors.

        Raises:
            SelfTestFailed, OperatorError: the self-test failed, or does not end.
            Unrecoverable: the model has been wrong for long, or one of its runs does not end.
        """
        self._runs.check()
        self._canary.check()

    async def _self_test(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inferring, self._self_test_now)

    def _self_test_now(self) -> None:
        with self._runs.under_way():
            self.encoder.self_test()

    async def _infer_images(self, batch: Sequence[_Image]) -> list[Vector | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run_images, batch)

    def _run_images(self, batch: Sequence[_Image]) -> list[Vector | Exception]:
        decoded = [self._decoded(image) for image in batch]
        good = [pixels for pixels in decoded if not isinstance(pixels, ShoalError)]
        found = iter(self._vectors(good))
        return [next(found) if isinstance(image, tuple) else image for image in decoded]

    def _decoded(self, image: _Image) -> Pixels | ShoalError:
        if not isinstance(image, Encoded):
            return image
        try:
            return self._decoder.decode_now(image, self.encoder.preprocessings)
        except ShoalError as exc:
            return exc

    def _vectors(self, images: Sequence[Pixels]) -> list[Vector | Exception]:
        """The vectors of ``images``, which run in pieces of ``run_size``."""
        answers = list[Vector | Exception]()
        for at in range(0, len(images), self.run_size):
            with metrics.INFERENCE_SECONDS.time(), self._runs.under_way():
                parts = zip(*images[at : at + self.run_size], strict=True)
                rows = self.encoder.embed([np.stack(part) for part in parts])
            answers += [self._checked(row) for row in rows]
        return answers

    async def _infer_texts(self, batch: Sequence[str]) -> list[Vector | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run_texts, batch)

    def _run_texts(self, batch: Sequence[str]) -> list[Vector | Exception]:
        with metrics.INFERENCE_SECONDS.time(), self._runs.under_way():
            rows = self.encoder.embed_texts(batch)
        return [self._checked(row) for row in rows]

    def _checked(self, vector: Vector) -> Vector | Exception:
        """The vector if it may be stored: an image that the model turns into NaN fails alone."""
        try:
            # A copy: a view would keep the whole batch alive for as long as one vector is.
            return vectors.check_unit(vector.copy(), self.encoder.dim)
        except InvalidArgument as exc:
            error = OperatorError(f"encoder {self.encoder.name} gave no usable {exc.message}")
            error.__cause__ = exc
            return error
