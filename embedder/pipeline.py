"""One encoder at work: images and texts wait for a worker, and run in batches.

Where the model runs on the same cores that decode, a worker decodes its batch itself: each
change of threads costs about a tenth of a millisecond, and nothing is won by having twice as many
threads as cores. Elsewhere (a GPU; several encoders for one image) images come decoded.

Owns the threads of one encoder's inference. How many images may be on this way at once is the
callers' business (``embedder.flow.admission``).
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
from embedder.images.decoding import Decoder, Pixels
from shoal import vectors
from shoal.errors import InvalidArgument, OperatorError, ShoalError

Vector = npt.NDArray[np.float32]
Picture: TypeAlias = bytes | Pixels
"""One image, encoded or decoded."""


_LATER = ShoalError("not yet")
"""Where a batch's answers wait for the model."""


class Pipeline:
    """Pixels and texts to the vectors of one encoder."""

    def __init__(
        self, encoder: Encoder, config: EmbedderConfig, decoder: Decoder, *, run_size: int
    ) -> None:
        """Prepare; ``start`` begins. ``run_size``: images of one run of the model, at most."""
        self.encoder = encoder
        self.run_size = run_size
        self.decodes = config.runtime.on_cpu
        """Whether it does better to be given images as they came."""
        self._config = config
        self._decoder = decoder
        self._inferring = ThreadPoolExecutor(config.inferences, "shoal-infer")
        self._images: Batcher[Picture, Vector] = Batcher(
            self._infer_images,
            name="inference",
            workers=config.inferences,
            portion=Portion(config.batch, spread=config.runtime.on_cpu),
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
        """Start the workers, as tasks of the running loop."""
        self._images.start()
        self._texts.start()

    async def close(self) -> None:
        """Answer what waits, then end the threads."""
        try:
            await asyncio.gather(self._images.close(), self._texts.close(), self._canary.close())
        finally:
            self._inferring.shutdown(wait=False, cancel_futures=True)

    async def embed(self, picture: Picture, patience: Patience) -> Vector:
        """The vector (D,) of an image.

        Raises:
            ImageInvalid: it is encoded, and not an image within the limits.
            DeadlineExceeded: its turn came too late.
            OperatorError: the model failed on it.
            ServiceUnavailable: the service is shutting down, or the model fails its self-test.
        """
        self._canary.trust()
        vector = await self._images.submit(picture, patience)
        self._canary.trust()  # it may have gone wrong meanwhile
        return vector

    async def embed_text(self, text: str, patience: Patience) -> Vector:
        """The vector (D,) of a text; raises as ``embed``, and Unsupported without a text tower."""
        self._canary.trust()
        vector = await self._texts.submit(text, patience)
        self._canary.trust()
        return vector

    def check(self) -> None:
        """Return if the model gave its reference vectors when it was last asked, a while ago.

        Raises:
            SelfTestFailed, OperatorError: it did not, or does not answer.
            Unrecoverable: it has been wrong for long, or a run of it does not end.
        """
        self._runs.check()
        self._canary.check()

    async def _self_test(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inferring, self._self_test_now)

    def _self_test_now(self) -> None:
        with self._runs.under_way():
            self.encoder.self_test()

    async def _infer_images(self, batch: Sequence[Picture]) -> list[Vector | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inferring, self._run_images, batch)

    def _run_images(self, batch: Sequence[Picture]) -> list[Vector | Exception]:
        answers = list[Vector | Exception]()
        good = list[Pixels]()
        for picture in batch:
            decoded = self._decoded(picture)
            if isinstance(decoded, ShoalError):
                answers.append(decoded)
            else:
                answers.append(_LATER)
                good.append(decoded)
        found = iter(self._vectors(good))
        return [next(found) if answer is _LATER else answer for answer in answers]

    def _decoded(self, picture: Picture) -> Pixels | ShoalError:
        if not isinstance(picture, bytes):
            return picture
        try:
            return self._decoder.decode_now(picture, self.encoder.preprocessings)
        except ShoalError as exc:
            return exc

    def _vectors(self, images: Sequence[Pixels]) -> list[Vector | Exception]:
        """The vectors of ``images``, run in pieces of the size that the model runs best at."""
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
        """A vector that may be stored; an image of which the model makes NaN costs only itself."""
        try:
            # A copy: a view would keep the whole batch alive for as long as one vector is.
            return vectors.check_unit(vector.copy(), self.encoder.dim)
        except InvalidArgument as exc:
            error = OperatorError(f"encoder {self.encoder.name} gave no usable {exc.message}")
            error.__cause__ = exc
            return error
