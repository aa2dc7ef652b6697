"""Decoding in threads of its own: in turn, together, each answer in its place."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import Artefact, bundled_artefact, load_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from embedder.flow.batching import Lane, Patience
from embedder.images import decoding
from embedder.images.cost import SLOW_MS, Cost, cost_of, unknown_cost
from embedder.images.decoding import MAX_BATCH, Decoder, Encoded, MoreThanSaid
from embedder.images.limits import DecodeMemory, ImageLimits
from embedder.images.preprocess import decode
from embedder.inference.fleet import Fleet
from shoal.errors import DeadlineExceeded, ImageCorrupt, ImageTooManyPixels, ServiceUnavailable

SPECS = (load_artefact(bundled_artefact()).manifest.preprocessing,)
LIMITS = ImageLimits()
MEMORY = DecodeMemory(each=2**26, apart=2**30)


@asynccontextmanager
async def decoder(*, threads: int) -> AsyncIterator[Decoder]:
    made = Decoder(LIMITS, threads=threads, memory=MEMORY)
    made.start()
    try:
        yield made
    finally:
        await made.close()


class Held:
    """Decodes nothing before it is told to, and remembers what it was given, in order."""

    seconds = 0.0

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self._begun = threading.Event()
        self.seen: list[bytes] = []

    def __call__(self, data: bytes, **_: Any) -> tuple[np.ndarray, ...]:
        self.seen.append(data)
        self._begun.set()
        assert self.may_run.wait(60)
        time.sleep(self.seconds)
        return (np.zeros((224, 224, 3), np.uint8),)

    async def begun(self) -> None:
        """Return when a thread is at its first image."""
        assert await asyncio.to_thread(self._begun.wait, 60)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    made = Held()
    monkeypatch.setattr(decoding, "decode_for", made)
    return made


def test_every_image_gets_its_own_pixels_and_a_bad_one_fails_alone(images: Any) -> None:
    """Many at once, more than threads: the pixels are those of ``decode``, in their slots."""
    given = [images.china, images.truncated, images.flower, *images.digits, images.text]

    async def scenario() -> list[Any]:
        async with decoder(threads=2) as threads:
            jobs = (threads.decode_in_turn(data, SPECS, Patience()) for data in given)
            return await asyncio.gather(*jobs, return_exceptions=True)

    answers = asyncio.run(scenario())
    bad = {1, len(given) - 1}
    assert isinstance(answers[1], ImageCorrupt)
    assert {at for at, answer in enumerate(answers) if isinstance(answer, Exception)} == bad
    for at, data in enumerate(given):
        if at not in bad:
            (pixels,) = answers[at]
            np.testing.assert_array_equal(pixels, decode(data, limits=LIMITS, spec=SPECS[0]))


def test_a_query_comes_before_the_rest_of_a_bulk_load(held: Held) -> None:
    """With all threads busy and a stream's images waiting, a call is in the very next batch."""

    async def scenario() -> None:
        async with decoder(threads=1) as threads:
            stream = [
                asyncio.create_task(
                    threads.decode_in_turn(b"stream %d" % number, SPECS, Patience(Lane.STREAM))
                )
                for number in range(4 * MAX_BATCH)
            ]
            await held.begun()
            call = asyncio.create_task(threads.decode_in_turn(b"call", SPECS, Patience(Lane.CALL)))
            await asyncio.sleep(0)
            held.may_run.set()
            await asyncio.gather(call, *stream)

    asyncio.run(scenario())
    assert held.seen.index(b"call") <= MAX_BATCH + 1
    assert len(held.seen) == 4 * MAX_BATCH + 1


def test_who_has_gone_is_not_decoded(held: Held) -> None:
    """Of what waits for a thread, the cancelled and the late never reach one."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with decoder(threads=1) as threads:
            first = asyncio.create_task(threads.decode_in_turn(b"first", SPECS, Patience()))
            await held.begun()
            until = loop.time() + 0.01
            soon = Patience(deadline=until)
            late = asyncio.create_task(threads.decode_in_turn(b"late", SPECS, soon))
            gone = asyncio.create_task(threads.decode_in_turn(b"gone", SPECS, Patience()))
            while loop.time() <= until:  # noqa: ASYNC110 - time itself is what it waits for
                await asyncio.sleep(0.001)
            gone.cancel()
            last = asyncio.create_task(threads.decode_in_turn(b"last", SPECS, Patience()))
            await asyncio.sleep(0)
            held.may_run.set()
            await asyncio.gather(first, last)
            with pytest.raises(DeadlineExceeded):
                await late

    asyncio.run(scenario())
    assert held.seen == [b"first", b"last"]


def test_closed_decoder_answers_what_waits_and_takes_nothing_new(images: Any) -> None:
    """What was submitted before is decoded; after, it is refused."""

    async def scenario() -> None:
        threads = Decoder(LIMITS, threads=1, memory=MEMORY)
        threads.start()
        waiting = [
            asyncio.create_task(threads.decode_in_turn(data, SPECS, Patience()))
            for data in images.digits
        ]
        await asyncio.sleep(0)
        await threads.close()
        assert all(pixels.shape == (224, 224, 3) for (pixels,) in await asyncio.gather(*waiting))
        with pytest.raises(ServiceUnavailable):
            await threads.decode_in_turn(images.china, SPECS, Patience())

    asyncio.run(scenario())


def test_images_that_are_decoded_together_run_together(held: Held) -> None:
    """A model that waits for decoding runs what a thread has decoded at once, not one by one."""
    count = 33
    held.seconds = 0.003
    ran: list[int] = []

    class Quick(Encoder):
        """Faster than any decoding: it makes one vector of every image."""

        def embed(self, pixels: Any) -> Any:
            ran.append(len(pixels[0]))
            return np.full((len(pixels[0]), self.dim), self.dim**-0.5, np.float32)

    def on_the_cpu(artefact: Artefact, config: RuntimeConfig) -> Encoder:
        """As a GPU's, but for where it runs."""
        assert not config.on_cpu
        return Quick.of(artefact, RuntimeConfig())

    async def scenario() -> None:
        gpu = RuntimeConfig(provider="cuda")
        config = EmbedderConfig(runtime=gpu, max_batch=16, decode_workers=1)
        fleet = Fleet(config, open_encoder=on_the_cpu)
        await fleet.start()
        ran.clear()
        tasks = [
            asyncio.create_task(fleet.embed(b"image", (fleet.default,), Patience()))
            for _ in range(count)
        ]
        await held.begun()
        held.may_run.set()
        await asyncio.gather(*tasks)
        await fleet.close()

    asyncio.run(scenario())
    assert sum(ran) == count
    assert len(ran) <= count // 8, ran


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_slow_images_are_decoded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their time, or by their memory; the others in the decoder's threads."""
    apart: list[tuple[bytes, float]] = []

    async def decode_apart(image: Any, _: Patience) -> Any:
        apart.append((image.data, image.cost.ms))
        return (np.zeros((224, 224, 3), np.uint8),)

    async def scenario() -> None:
        quick, slow = png(500), png(3000)
        async with decoder(threads=1) as made:
            monkeypatch.setattr(made._apart, "decode", decode_apart)
            for data in (quick, slow):
                await made.decode_in_turn(data, SPECS, Patience())
            assert apart == [(slow, cost_of(slow).ms)]
            assert made.is_slow(Encoded(b"", Cost(1, SLOW_MS + 0.1, 1)))
            assert not made.is_slow(Encoded(b"", Cost(1, SLOW_MS, MEMORY.each)))
            assert made.is_slow(Encoded(b"", Cost(1, 1, MEMORY.each + 1)))

    asyncio.run(scenario())


def test_an_image_with_more_pixels_than_it_said_is_decoded_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the header seemed to say is never believed: nothing is gained by a trick."""
    monkeypatch.setattr(decoding, "cost_of", lambda _: Cost(1000, 1.0, 1000))
    costs: list[Cost] = []

    async def scenario() -> None:
        async with decoder(threads=1) as made:
            decode_apart = made._apart.decode

            async def watched(image: Any, patience: Patience) -> Any:
                costs.append(image.cost)
                return await decode_apart(image, patience)

            monkeypatch.setattr(made._apart, "decode", watched)
            honest, liar = png(1000), png(1100)
            (pixels,) = await made.decode_in_turn(honest, SPECS, Patience())
            assert pixels.shape == (224, 224, 3)
            assert costs == []
            with pytest.raises(MoreThanSaid):
                made.decode_now(made.weighed(liar), SPECS)
            (pixels,) = await made.decode_in_turn(liar, SPECS, Patience())
            assert pixels.shape == (224, 224, 3)

    asyncio.run(scenario())
    assert costs == [unknown_cost(LIMITS.max_pixels, len(png(1100)))]


def test_an_image_past_the_limit_costs_nothing_and_is_told_the_limit(images: Any) -> None:
    """It is refused by its header, in a thread: no process starts for it."""

    async def scenario() -> None:
        async with decoder(threads=1) as made:
            assert made.weighed(images.huge).cost.ms < SLOW_MS
            for data in (images.huge, png(8000)):
                with pytest.raises(ImageTooManyPixels, match="expected at most 50000000 pixels"):
                    await made.decode_in_turn(data, SPECS, Patience())
            assert made._apart._all == []

    asyncio.run(scenario())


def test_memory_for_decoding_is_shared_by_threads_and_slow_images() -> None:
    """All of it together is the number that the operator sets."""
    shared = DecodeMemory.of(2**30, 2)
    assert shared == DecodeMemory(64 * 2**20, 2**30 - 2 * 64 * 2**20)
    little = DecodeMemory.of(100, 5)
    assert little == DecodeMemory(10, 50)
