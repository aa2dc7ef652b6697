"""Slow images in processes of their own: real processes, real images."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.flow.batching import Patience
from embedder.images import apart
from embedder.images.apart import Apart, SlowImage
from embedder.images.apart_main import NICENESS
from embedder.images.cost import Cost, cost_of
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import decode
from shoal.errors import (
    DeadlineExceeded,
    ImageCorrupt,
    ImageTooManyPixels,
    OperatorError,
    ServiceUnavailable,
)

SPECS = (load_artefact(bundled_artefact()).manifest.preprocessing,)
LIMITS = ImageLimits()
MIB = 2**20


@asynccontextmanager
async def decoding(*, processes: int = 1, memory: int = 1000 * MIB) -> AsyncIterator[Apart]:
    made = Apart(LIMITS, processes=processes, memory=memory)
    made.start()
    try:
        yield made
    finally:
        await made.close()


def slow(data: bytes, *, ms: float = 100.0, memory: int = MIB) -> SlowImage:
    return SlowImage(data, Cost(1000, ms, memory), SPECS)


def large() -> bytes:
    """A PNG of 64 megapixels, which takes a process most of a second to refuse or to decode."""
    buffer = io.BytesIO()
    Image.new("L", (7000, 7000)).save(buffer, "PNG")
    return buffer.getvalue()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for another process, or for the loop."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells when it comes true
            await asyncio.sleep(0.001)


def pids(decoder: Apart) -> list[int]:
    return [each._process.pid for each in decoder._all if each._process is not None]


def test_apart_gives_the_same_pixels_and_errors(images: Any) -> None:
    """Several at once, each in its place; a bad one fails alone, with its own error."""

    async def scenario() -> list[Any]:
        async with decoding(processes=2) as decoder:
            jobs = (
                decoder.decode(slow(data), Patience())
                for data in (images.china, images.truncated, images.flower)
            )
            answers = await asyncio.gather(*jobs, return_exceptions=True)
            assert len(pids(decoder)) == 2
            assert all(os.getpriority(os.PRIO_PROCESS, pid) >= NICENESS for pid in pids(decoder))
            # In our session, or niceness would mean nothing; not in our group, for Ctrl-C.
            assert {os.getsid(pid) for pid in pids(decoder)} == {os.getsid(0)}
            assert os.getpgid(0) not in {os.getpgid(pid) for pid in pids(decoder)}
            return list(answers)

    china, truncated, flower = asyncio.run(scenario())
    assert isinstance(truncated, ImageCorrupt)
    for answer, data in ((china, images.china), (flower, images.flower)):
        np.testing.assert_array_equal(answer[0], decode(data, limits=LIMITS, spec=SPECS[0]))


def test_apart_starts_nothing_before_the_first_image_and_ends_with_the_server(images: Any) -> None:
    """No process is there without need, and none is left behind."""

    async def scenario() -> None:
        async with decoding() as decoder:
            assert pids(decoder) == []
            await decoder.decode(slow(images.china), Patience())
            (pid,) = pids(decoder)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(ServiceUnavailable):
            await decoder.decode(slow(images.china), Patience())

    asyncio.run(scenario())


def test_apart_ends_an_idle_process_and_starts_another(
    images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory goes back; the next image is decoded all the same."""

    async def scenario() -> None:
        async with decoding() as decoder:
            monkeypatch.setattr(apart, "IDLE_S", 0.0)
            await decoder.decode(slow(images.china), Patience())
            await until(lambda: not pids(decoder))
            monkeypatch.setattr(apart, "IDLE_S", 60.0)
            await decoder.decode(slow(images.china), Patience())
            (pid,) = pids(decoder)
            await decoder.decode(slow(images.flower), Patience())
            assert pids(decoder) == [pid]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGSEGV, ImageCorrupt), (signal.SIGKILL, OperatorError)]
)
def test_apart_loses_one_image_with_a_process(
    images: Any, number: signal.Signals, error: type[Exception]
) -> None:
    """A decoder that crashes is the image's fault, one that is killed is not; the next works."""

    async def scenario() -> None:
        async with decoding() as decoder:
            await decoder.decode(slow(images.china), Patience())
            (pid,) = pids(decoder)
            under_way = asyncio.create_task(decoder.decode(slow(large()), Patience()))
            await until(lambda: not decoder._idle)
            os.kill(pid, number)
            with pytest.raises(error, match=f"signal {number.value}"):
                await under_way
            await decoder.decode(slow(images.china), Patience())
            assert pids(decoder) != [pid]

    asyncio.run(scenario())


def test_apart_gives_up_an_image_that_never_ends(
    images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends, and the next image has another."""

    async def scenario() -> None:
        async with decoding() as decoder:
            monkeypatch.setattr(apart, "GIVE_UP_S", 0.0)
            with pytest.raises(ImageCorrupt, match="got none within 0 s"):
                await decoder.decode(slow(large()), Patience())
            assert pids(decoder) == []
            monkeypatch.setattr(apart, "GIVE_UP_S", 60.0)
            await decoder.decode(slow(images.china), Patience())

    asyncio.run(scenario())


def test_apart_keeps_to_its_memory(images: Any) -> None:
    """Images that together need more wait for each other; one that needs more alone is refused."""
    most = 10 * MIB

    async def scenario() -> None:
        async with decoding(processes=3, memory=most) as decoder:
            held: list[int] = []
            taken = decoder._taken

            def watched() -> Any:
                held.append(decoder._room.bytes)
                return taken()

            decoder._taken = watched  # type: ignore[method-assign]
            job = slow(images.china, memory=4 * MIB)
            await asyncio.gather(*(decoder.decode(job, Patience()) for _ in range(6)))
            assert max(held) == 8 * MIB
            await decoder.decode(slow(images.china, memory=most), Patience())
            with pytest.raises(ImageTooManyPixels) as caught:
                await decoder.decode(slow(images.china, memory=most + 1), Patience())
            assert "takes at most 10 MiB to decode" in caught.value.message
            assert "--max-decode-memory-mib" in caught.value.message
            assert caught.value.metadata == {"pixels": "1000"}

    asyncio.run(scenario())


def test_apart_stops_between_two_images_for_who_has_gone(images: Any) -> None:
    """Late and abandoned images never reach a process; callers take turns by what theirs cost."""
    order: list[str] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with decoding() as decoder:

            async def decoded(name: str, patience: Patience, ms: float = 100.0) -> None:
                await decoder.decode(slow(images.china, ms=ms), patience)
                order.append(name)

            first = asyncio.create_task(decoded("first", Patience(caller="a")))
            await until(lambda: bool(decoder._all))
            soon = loop.time() + 0.001
            late = asyncio.create_task(decoded("late", Patience(deadline=soon, caller="a")))
            gone = asyncio.create_task(decoded("gone", Patience(caller="a")))
            many = [
                asyncio.create_task(decoded(f"a{number}", Patience(caller="a")))
                for number in range(3)
            ]
            few = [
                asyncio.create_task(decoded(f"b{number}", Patience(caller="b"), 50))
                for number in range(2)
            ]
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(first, *many, *few)
            with pytest.raises(DeadlineExceeded):
                await late
            assert gone.cancelled()

    asyncio.run(scenario())
    assert sorted(order) == ["a0", "a1", "a2", "b0", "b1", "first"]
    assert order.index("b1") < order.index("a1")


def test_apart_process_ends_with_its_parent(images: Any) -> None:
    """However the parent dies: the other end of the pipe is closed then."""

    async def scenario() -> None:
        async with decoding() as decoder:
            await decoder.decode(slow(images.china), Patience())
            (process,) = decoder._all
            assert process._process is not None
            assert process._pipe is not None
            process._pipe.close()
            assert await asyncio.to_thread(process._process.wait, 20) == 0

    asyncio.run(scenario())


def test_cost_of_the_slow_image_is_slow() -> None:
    """What these tests call slow is slow by its header."""
    assert cost_of(large()).ms > 500
