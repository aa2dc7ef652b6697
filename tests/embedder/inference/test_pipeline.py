"""One encoder at work, where a stand-in for a model tells what it is given and when."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.encoding.config import RuntimeConfig
from embedder.flow.batching import Lane, Patience
from embedder.images import decoding
from embedder.images.cost import Cost
from embedder.images.decoding import Decoder
from embedder.inference.pipeline import Pipeline
from shoal.errors import (
    DeadlineExceeded,
    ImageUnsupportedFormat,
    OperatorError,
    SelfTestFailed,
    ServiceUnavailable,
    Unrecoverable,
)

pytestmark = pytest.mark.timeout(60)

SPECS = (load_artefact(bundled_artefact()).manifest.preprocessing,)
ON_GPU = RuntimeConfig(provider="cuda")
FOR_EVER = Patience()


class Colours:
    """An encoder whose vectors are mean colours, of unit length. It waits when told to.

    Of black it makes NaN; on white it chokes.
    """

    name = "colours"
    dim = 3
    preprocessings = SPECS

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.texts: list[list[str]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.reached = threading.Event()
        self.sound = True

    def embed(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        (images,) = pixels
        self.batches.append(len(images))
        self._wait()
        if (images == 255).all(axis=(1, 2, 3)).any():
            raise OperatorError("white")
        return _unit(images.mean(axis=(1, 2)))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts.append(list(texts))
        self._wait()
        return _unit(np.array([[len(text), 1, 0] if text else [0, 0, 0] for text in texts]))

    def self_test(self) -> None:
        if not self.sound:
            raise SelfTestFailed("not the reference vectors")

    def _wait(self) -> None:
        self.reached.set()
        assert self.may_run.wait(30)


def _unit(rows: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def flat(*colour: int, side: int = 32) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLACK, WHITE = flat(200, 0, 0), flat(0, 90, 0), flat(0, 0, 0), flat(255, 255, 255)
LARGE_RED = flat(200, 0, 0, side=1100)
BAD = b"this is not an image"


@asynccontextmanager
async def working(
    encoder: Colours, *, run_size: int = 8, **options: Any
) -> AsyncIterator[Pipeline]:
    config = EmbedderConfig(**options)
    decoder = Decoder(config.limits, threads=1, memory=config.decode_memory)
    decoder.start()
    pipeline = Pipeline(encoder, config, decoder, run_size=run_size)  # type: ignore[arg-type]
    pipeline.start()
    try:
        yield pipeline
    finally:
        encoder.may_run.set()
        await pipeline.close()
        await decoder.close()


async def reached(encoder: Colours) -> None:
    """Wait until the model is at work."""
    assert await asyncio.to_thread(encoder.reached.wait, 30)


async def refused(check: Callable[[], None]) -> Exception:
    """What ``check`` raises when it is asked often enough."""
    for _ in range(3000):
        try:
            check()
        except Exception as exc:  # noqa: BLE001 - told apart by whoever asks
            return exc
        await asyncio.sleep(0.01)
    pytest.fail("never refused")


def count(name: str, stage: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_embedder_{name}", {"stage": stage}) or 0.0


def test_each_image_of_a_batch_has_its_own_answer() -> None:
    """In order, run in pieces; what is no image, or what the model cannot do, fails alone."""

    async def scenario() -> None:
        encoder = Colours()
        async with working(encoder, run_size=2, inference_workers=1) as pipeline:
            data = [RED, BAD, GREEN, BLACK, RED]
            answers = await asyncio.gather(
                *(pipeline.embed(each, FOR_EVER) for each in data), return_exceptions=True
            )
        assert encoder.batches == [2, 2]
        for at, expected in ((0, [1, 0, 0]), (2, [0, 1, 0]), (4, [1, 0, 0])):
            assert isinstance(answers[at], np.ndarray)
            np.testing.assert_allclose(answers[at], expected, atol=1e-6)
        assert isinstance(answers[1], ImageUnsupportedFormat)
        assert isinstance(answers[3], OperatorError)
        assert str(answers[3]).startswith("encoder colours gave no usable ")

    asyncio.run(scenario())


def test_images_that_take_long_to_decode_are_not_all_in_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They wait for each other there: 200 ms of decoding and the model are a batch, or 8 images."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.may_run.clear()
        async with working(encoder, inference_workers=1) as pipeline:
            first = asyncio.create_task(pipeline.embed(RED, FOR_EVER))
            await reached(encoder)
            monkeypatch.setattr(decoding, "cost_of", lambda _: Cost(1000, 50.0, 1000))
            heavy = [asyncio.create_task(pipeline.embed(RED, FOR_EVER)) for _ in range(8)]
            await asyncio.sleep(0)
            monkeypatch.setattr(decoding, "cost_of", lambda _: Cost(1000, 1.0, 1000))
            light = [asyncio.create_task(pipeline.embed(RED, FOR_EVER)) for _ in range(8)]
            await asyncio.sleep(0)
            encoder.may_run.set()
            await asyncio.gather(first, *heavy, *light)
        assert encoder.batches == [1, 4, 7, 5]

    asyncio.run(scenario())


@pytest.mark.parametrize("said", [Cost(1000, 1.0, 1000), Cost(2_000_000, 51.0, 1000)])
def test_a_slow_image_is_decoded_apart_and_then_run(
    said: Cost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its header says that it is slow, or says too little: it has its vector."""
    apart: list[Cost] = []

    async def scenario() -> None:
        encoder = Colours()
        async with working(encoder, inference_workers=1) as pipeline:
            decode = pipeline._decoder._apart.decode

            async def watched(image: Any, patience: Patience) -> Any:
                apart.append(image.cost)
                return await decode(image, patience)

            monkeypatch.setattr(pipeline._decoder._apart, "decode", watched)
            monkeypatch.setattr(decoding, "cost_of", lambda _: said)
            vector = await pipeline.embed(LARGE_RED, FOR_EVER)
        np.testing.assert_allclose(vector, [1, 0, 0], atol=1e-6)
        assert encoder.batches == [1]

    asyncio.run(scenario())
    assert len(apart) == 1
    assert apart[0].ms > 50


def test_callers_take_turns_at_the_model() -> None:
    """One with many images does not hold up another's one."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.may_run.clear()
        order: list[str] = []
        async with working(encoder, inference_workers=1, max_batch=1) as pipeline:

            async def embed(name: str, caller: str) -> None:
                await pipeline.embed(RED, Patience(caller=caller))
                order.append(name)

            tasks = [asyncio.create_task(embed(f"a{n}", "a")) for n in range(4)]
            await reached(encoder)
            tasks.append(asyncio.create_task(embed("b", "b")))
            await asyncio.sleep(0)
            encoder.may_run.set()
            await asyncio.gather(*tasks)
        assert order.index("b") <= 2

    asyncio.run(scenario())


def test_an_image_on_which_the_model_chokes_fails_alone() -> None:
    """The others of its batch are run again, one by one."""

    async def scenario() -> None:
        encoder = Colours()
        async with working(encoder, inference_workers=1) as pipeline:
            answers = await asyncio.gather(
                *(pipeline.embed(each, FOR_EVER) for each in (RED, WHITE, GREEN)),
                return_exceptions=True,
            )
        assert encoder.batches == [3, 1, 1, 1]
        assert [isinstance(answer, OperatorError) for answer in answers] == [False, True, False]

    asyncio.run(scenario())


def test_a_vector_does_not_keep_the_batch_that_it_came_from() -> None:
    """Each answer is an array of its own, not a view."""

    async def scenario() -> None:
        async with working(Colours(), inference_workers=1) as pipeline:
            vectors = await asyncio.gather(*(pipeline.embed(RED, FOR_EVER) for _ in range(3)))
            vectors += [await pipeline.embed_text("text", FOR_EVER)]
        assert all(vector.base is None and vector.flags.owndata for vector in vectors)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("runtime", "threads"), [(RuntimeConfig(), "shoal-infer"), (ON_GPU, "shoal-decode")]
)
def test_who_decodes(runtime: RuntimeConfig, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the thread that runs the model; for a GPU, the decoder's, before the image waits."""
    names: list[str] = []
    decode = decoding.decode_for

    def watching(data: bytes, **options: Any) -> Any:
        names.append(threading.current_thread().name)
        return decode(data, **options)

    monkeypatch.setattr(decoding, "decode_for", watching)

    async def scenario() -> None:
        async with working(Colours(), runtime=runtime, inference_workers=1) as pipeline:
            np.testing.assert_allclose(await pipeline.embed(RED, FOR_EVER), [1, 0, 0], atol=1e-6)
            with pytest.raises(ImageUnsupportedFormat):
                await pipeline.embed(BAD, FOR_EVER)
            names_before = len(names)
            pixels = decode(GREEN, limits=EmbedderConfig().limits, specs=SPECS)
            vector = await pipeline.embed_pixels(pixels, FOR_EVER)
            np.testing.assert_allclose(vector, [0, 1, 0], atol=1e-6)
            assert len(names) == names_before, "what is decoded is not decoded again"

    asyncio.run(scenario())
    assert {name.rpartition("_")[0] for name in names} == {threads}


@pytest.mark.parametrize(("runtime", "first"), [(RuntimeConfig(), 2), (ON_GPU, 4)])
def test_workers_share_images_on_a_cpu_and_not_on_a_gpu(runtime: RuntimeConfig, first: int) -> None:
    """A core each, they divide what waits; of one device, the first takes it all."""

    async def scenario() -> None:
        encoder = Colours()
        pixels = decoding.decode_for(RED, limits=EmbedderConfig().limits, specs=SPECS)
        options = {"runtime": runtime, "inference_workers": 2, "max_batch": 4}
        async with working(encoder, **options) as pipeline:
            await asyncio.gather(*(pipeline.embed_pixels(pixels, FOR_EVER) for _ in range(4)))
        assert encoder.batches[0] == first
        assert sum(encoder.batches) == 4

    asyncio.run(scenario())


def test_texts_are_embedded_together_and_apart_from_images() -> None:
    """In batches of one worker; a text of which the model makes NaN fails alone."""

    async def scenario() -> None:
        encoder = Colours()
        async with working(encoder, inference_workers=2, max_batch=3) as pipeline:
            answers = await asyncio.gather(
                *(pipeline.embed_text(text, FOR_EVER) for text in ("a", "", "bb", "ccc")),
                return_exceptions=True,
            )
        assert encoder.texts == [["a", "", "bb"], ["ccc"]]
        assert encoder.batches == []
        assert [isinstance(answer, OperatorError) for answer in answers] == [
            False,
            True,
            False,
            False,
        ]
        for at, length in ((0, 1), (2, 2), (3, 3)):
            np.testing.assert_allclose(
                answers[at], np.array([length, 1, 0]) / np.hypot(length, 1), rtol=1e-6
            )

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["image", "text"])
def test_patience_reaches_the_queue(kind: str) -> None:
    """An item whose deadline passes while the model is busy never reaches it; calls come first."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.may_run.clear()
        async with working(encoder, inference_workers=1, max_batch=1) as pipeline:

            def submit(number: int, patience: Patience) -> asyncio.Task[Any]:
                if kind == "text":
                    work = pipeline.embed_text("x" * number, patience)
                else:
                    work = pipeline.embed(flat(10 * number, 1, 0), patience)
                return asyncio.create_task(work)

            busy = submit(1, FOR_EVER)
            await reached(encoder)
            now = asyncio.get_running_loop().time()
            late = submit(2, Patience(deadline=now))
            bulk = [submit(number, Patience(Lane.STREAM)) for number in (3, 4)]
            call = submit(5, FOR_EVER)
            order: list[int] = []
            for number, task in zip((3, 4, 5), (*bulk, call), strict=True):
                task.add_done_callback(lambda _, number=number: order.append(number))
            await asyncio.sleep(0)
            encoder.may_run.set()
            await asyncio.gather(busy, *bulk, call)
            with pytest.raises(DeadlineExceeded):
                await late
        assert order == [3, 5, 4]
        assert len(encoder.texts if kind == "text" else encoder.batches) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_model_that_went_wrong_answers_nobody(kind: str) -> None:
    """Neither an item that was in it meanwhile nor one that comes after, which never reaches it."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.may_run.clear()
        options = {"inference_workers": 2, "canary_interval_s": 0.0}
        async with working(encoder, **options) as pipeline:

            def submit() -> asyncio.Task[Any]:
                texts = kind == "text"
                work = (
                    pipeline.embed_text("a", FOR_EVER) if texts else pipeline.embed(RED, FOR_EVER)
                )
                return asyncio.create_task(work)

            during = submit()
            await reached(encoder)
            encoder.sound = False
            assert isinstance(await refused(pipeline.check), SelfTestFailed)
            encoder.may_run.set()
            with pytest.raises(ServiceUnavailable, match="encoder colours fails its self-test"):
                await during
            runs = len(encoder.batches) + len(encoder.texts)
            with pytest.raises(ServiceUnavailable):
                await submit()
            assert len(encoder.batches) + len(encoder.texts) == runs

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_run_that_does_not_end_is_given_up(kind: str) -> None:
    """Whatever it is a run of: the process is to end, since the run never will."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.may_run.clear()
        async with working(encoder, inference_workers=2, give_up_s=0.1) as pipeline:
            pipeline.check()
            texts = kind == "text"
            work = pipeline.embed_text("a", FOR_EVER) if texts else pipeline.embed(RED, FOR_EVER)
            hanging = asyncio.create_task(work)
            await reached(encoder)
            error = await refused(pipeline.check)
            assert isinstance(error, Unrecoverable)
            assert "a run of encoder colours has not ended" in error.message
            encoder.may_run.set()
            await hanging
            pipeline.check()

    asyncio.run(scenario())


def test_a_self_test_that_hangs_is_a_run_too() -> None:
    """The canary gives its answer up after a while; the run that hangs is told all the same."""

    async def scenario() -> None:
        encoder = Colours()
        encoder.self_test = encoder._wait  # type: ignore[method-assign]
        encoder.may_run.clear()
        options = {"canary_interval_s": 0.0, "give_up_s": 0.1}
        async with working(encoder, inference_workers=2, **options) as pipeline:
            pipeline.check()
            await reached(encoder)
            assert isinstance(await refused(pipeline.check), Unrecoverable)

    asyncio.run(scenario())


def test_a_closed_pipeline_has_answered_what_waited_and_takes_nothing_new() -> None:
    """Images and texts; its threads end."""

    async def scenario() -> None:
        encoder = Colours()
        async with working(encoder, inference_workers=1) as pipeline:
            waiting = [
                *(asyncio.create_task(pipeline.embed(RED, FOR_EVER)) for _ in range(20)),
                *(asyncio.create_task(pipeline.embed_text("a", FOR_EVER)) for _ in range(20)),
            ]
            await asyncio.sleep(0)
            await pipeline.close()
            assert all(task.done() and not task.exception() for task in waiting)
            for work in (pipeline.embed(RED, FOR_EVER), pipeline.embed_text("a", FOR_EVER)):
                with pytest.raises(ServiceUnavailable):
                    await work

    asyncio.run(scenario())
    for thread in threading.enumerate():
        if thread.name.startswith("shoal-infer"):
            thread.join(10)
            assert not thread.is_alive()


def test_metrics_tell_of_each_stage() -> None:
    """Batches, and how long their items waited, of images and of texts; and the model's runs."""

    async def scenario() -> None:
        async with working(Colours(), inference_workers=1, run_size=2) as pipeline:
            await asyncio.gather(*(pipeline.embed(RED, FOR_EVER) for _ in range(3)))
            await asyncio.gather(*(pipeline.embed_text("a", FOR_EVER) for _ in range(2)))

    names = ("batch_items_count", "batch_items_sum", "queue_seconds_count")
    before = [count(name, stage) for stage in ("inference", "text") for name in names]
    runs = REGISTRY.get_sample_value("shoal_embedder_inference_seconds_count") or 0.0
    asyncio.run(scenario())
    after = [count(name, stage) for stage in ("inference", "text") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 3, 3, 1, 2, 2]
    assert count("queue_items", "inference") == count("queue_items", "text") == 0
    assert count("queue_seconds_sum", "inference") > 0
    assert REGISTRY.get_sample_value("shoal_embedder_inference_seconds_count") == runs + 3
