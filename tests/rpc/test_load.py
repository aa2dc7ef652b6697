"""How many calls a server takes, and the memory that it gives back after a flood."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.errors import Overloaded
from shoal.rpc import load as loads
from shoal.rpc.load import LARGE_BYTES, Left, Load, give_back, give_back_regularly
from shoal.rpc.requests import RequestReader
from shoal.rpc.status import from_rpc_error
from shoal.v1 import embedder_pb2


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def begun(load: Load, connection: str, stack: ExitStack, count: int) -> int:
    """How many of ``count`` calls the connection may begin."""
    for number in range(count):
        try:
            stack.enter_context(load.call(connection))
        except Overloaded:
            return number
    return count


def test_load_leaves_room_for_others_the_fuller_it_is() -> None:
    """Few connections with many calls never shut a new one out; what has ended counts no more."""
    load = Load(most=1000)
    with ExitStack() as stack:
        assert begun(load, "greedy", stack, 2000) == 500
        assert [begun(load, f"next {n}", stack, 2000) for n in range(7)] == [64] * 7
        assert load.total == 948
        assert begun(load, "last", stack, 2000) == 52
        assert load.total == 1000
        with pytest.raises(Overloaded) as caught:
            stack.enter_context(load.call("greedy"))
        assert caught.value.message == (
            "the server has 1000 calls in progress, 500 of them of this connection: "
            "expected at most 64 of one connection then"
        )
        assert [begun(load, f"new {n}", stack, 2000) for n in range(50)] == [4] * 50
    assert load.total == 0
    assert not load._calls


def test_load_is_left_by_a_call_that_fails() -> None:
    """Whatever ends it."""
    load = Load()
    with pytest.raises(ZeroDivisionError), load.call("a"):
        raise ZeroDivisionError
    assert load.total == 0


def test_load_tells_once_what_has_left_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood that is over, or a large message; not a flood that goes on, and not a few calls."""
    monkeypatch.setattr(loads, "_FLOOD", 8)
    load = Load()
    with ExitStack() as few:
        begun(load, "a", few, 7)
    assert load.left() is Left.NOTHING
    with ExitStack() as flood:
        begun(load, "a", flood, 8)
        assert load.left() is Left.NOTHING
    with load.call("a"), load.call("a"):
        assert load.left() is Left.CALLS
        assert load.left() is Left.NOTHING
    load.note_large()
    assert load.left() is Left.LARGE_MESSAGES
    assert load.left() is Left.NOTHING


def test_memory_that_nobody_uses_goes_back() -> None:
    """The C library would keep it: a block that is in use lies behind it."""
    for left in (Left.CALLS, Left.LARGE_MESSAGES):
        give_back(left)
        before = resident()
        blocks = [bytes(2000) for _ in range(40_000)]
        last = bytes(2000)
        del blocks
        give_back(left)
        assert resident() - before < 20 * 2**20
        del last


def test_circles_are_collected_after_many_calls_only() -> None:
    """Cancelled calls leave circles; a large message leaves none that are worth the time."""

    class Circle:
        """Refers to itself."""

        def __init__(self) -> None:
            self.own = self

    gc.disable()
    try:
        alive = weakref.ref(Circle())
        give_back(Left.LARGE_MESSAGES)
        assert alive() is not None
        give_back(Left.CALLS)
        assert alive() is None
    finally:
        gc.enable()


def test_memory_is_given_back_after_a_flood(until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it is over, and once."""
    given: list[Left] = []
    monkeypatch.setattr(loads, "give_back", given.append)

    async def scenario() -> None:
        load = Load()
        giving = asyncio.create_task(give_back_regularly(load, every_s=0.0))
        await asyncio.sleep(0.01)
        assert given == []
        load.note_large()
        await until(lambda: bool(given))
        await asyncio.sleep(0.01)
        assert given == [Left.LARGE_MESSAGES]
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)

    asyncio.run(scenario())


def test_server_counts_its_calls_and_looks_after_them(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """Calls and streams count while they are open; a large message is noticed; the task ends."""

    async def scenario() -> None:
        embedder = fake_embedder(release=asyncio.Event())
        async with serving(embedder) as running:
            server = running.server
            call = asyncio.create_task(_embed(running, bytes(LARGE_BYTES)))
            await embedder.entered.wait()
            embedder.entered.clear()
            stream = running.embedder.Ingest()
            await stream.write(embedder_pb2.IngestRequest(sequence=1))
            await stream.read()
            assert server._load.total == 2
            assert server._load.left() is Left.LARGE_MESSAGES
            assert not server._giving_back.done()
            embedder.release.set()
            await call
            stream.cancel()
            await until(lambda: not server._load.total)
        assert server._giving_back.cancelled()

    asyncio.run(scenario())


async def _embed(running: Any, data: bytes) -> None:
    await running.embedder.Embed(embedder_pb2.EmbedRequest(images=[{"data": data}]))


def test_server_that_is_full_refuses_calls_and_says_that_it_is_alive(
    serving: Any, fake_embedder: Any
) -> None:
    """A connection with many open streams is told so; another, and a health check, are served."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            running.server._load._most = 128
            streams = [running.embedder.Ingest() for _ in range(64)]
            for stream in streams:
                await stream.write(embedder_pb2.IngestRequest(sequence=1))
                await stream.read()
            with pytest.raises(grpc.RpcError) as caught:
                await running.embedder.Embed(embedder_pb2.EmbedRequest())
            error = from_rpc_error(caught.value, "here")
            assert isinstance(error, Overloaded)
            assert "64 of them of this connection" in error.message
            check = running.channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(b"") == b"\x08\x01"
            async with grpc.aio.insecure_channel(
                running.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as other:
                await other.unary_unary("/shoal.v1.EmbedderService/Embed")(b"")
            for stream in streams:
                stream.cancel()

    asyncio.run(scenario())


def test_requests_of_many_bytes_are_noticed() -> None:
    """From LARGE_BYTES on."""
    seen: list[int] = []
    embed = RequestReader(
        "/shoal.v1.EmbedderService/Embed",
        embedder_pb2.EmbedRequest.FromString,
        max_bytes=2**26,
        large=lambda: seen.append(1),
    )
    for more, count in ((-1, 0), (0, 1)):
        data = embedder_pb2.EmbedRequest(images=[{"data": bytes(LARGE_BYTES - 100)}])
        padding = LARGE_BYTES + more - data.ByteSize()
        data.encoder = "x" * (padding - 2)
        assert data.ByteSize() == LARGE_BYTES + more
        embed.read(data.SerializeToString())
        assert len(seen) == count
