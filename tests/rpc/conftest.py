"""Real servers on port 0 with small fake services behind the real stubs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.rpc.server import RpcServer, ServerConfig
from shoal.v1 import clusterer_pb2, clusterer_pb2_grpc, embedder_pb2, embedder_pb2_grpc


async def _forever() -> None:
    await asyncio.Event().wait()


@dataclass(eq=False)
class FakeEmbedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """Echoes; each test replaces what it is about."""

    name: str = "shoal.v1.EmbedderService"
    is_ready: bool = True
    ready_error: Exception | None = None
    ready_hangs: bool = False
    start_error: Exception | None = None
    stop_error: Exception | None = None
    starting: asyncio.Event | None = None
    error: BaseException | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event | None = None
    ended: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    ready_calls: int = 0

    def register(self, server: grpc.aio.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self, server)

    async def start(self) -> None:
        if self.starting is not None:
            await self.starting.wait()
        if self.start_error is not None:
            raise self.start_error
        self.events.append(f"start {self.name}")

    async def ready(self) -> bool:
        self.ready_calls += 1
        if self.ready_hangs:
            await _forever()
        if self.ready_error is not None:
            raise self.ready_error
        return self.is_ready

    def drain(self) -> None:
        pass

    async def stop(self, grace_s: float) -> None:
        self.events.append(f"stop {self.name}")
        self.stop_grace_s = grace_s
        if self.stop_error is not None:
            raise self.stop_error

    async def Embed(self, request: Any, context: Any) -> Any:
        self.entered.set()
        try:
            if self.release is not None:
                await self.release.wait()
            if self.error is not None:
                raise self.error
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return embedder_pb2.EmbedResponse(encoder=request.encoder)

    async def Ingest(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                self.entered.set()
                if self.error is not None and request.key == "bad":
                    raise self.error
                yield embedder_pb2.IngestResponse(sequence=request.sequence)
        finally:
            self.ended.append("ingest")


@dataclass(eq=False)
class FakeClusterer(clusterer_pb2_grpc.ClustererServiceServicer):
    """Streams three runs, or one and then an error."""

    name: str = "shoal.v1.ClustererService"
    is_ready: bool = True
    error: BaseException | None = None
    events: list[str] = field(default_factory=list)

    def register(self, server: grpc.aio.Server) -> None:
        clusterer_pb2_grpc.add_ClustererServiceServicer_to_server(self, server)

    async def start(self) -> None:
        self.events.append(f"start {self.name}")

    async def ready(self) -> bool:
        return self.is_ready

    def drain(self) -> None:
        pass

    async def stop(self, grace_s: float) -> None:
        self.events.append(f"stop {self.name}")

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield clusterer_pb2.Run(id="1")
        if self.error is not None:
            raise self.error
        yield clusterer_pb2.Run(id="2")
        yield clusterer_pb2.Run(id="3")


@dataclass
class Running:
    """A started server and a channel to it."""

    server: RpcServer
    port: int
    channel: grpc.aio.Channel
    embedder: Any
    clusterer: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def _serving(
    *services: Any,
    server: ServerConfig | None = None,
    client: Callable[[str], ChannelConfig] | None = None,
) -> AsyncIterator[Running]:
    rpc = RpcServer(
        server or ServerConfig(address="127.0.0.1:0", grace_s=5, health_interval_s=0.02), services
    )
    port = await rpc.start()
    address = f"127.0.0.1:{port}"
    try:
        async with open_aio_channel(
            client(address) if client else ChannelConfig(address=address)
        ) as channel:
            yield Running(
                rpc,
                port,
                channel,
                embedder_pb2_grpc.EmbedderServiceStub(channel),
                clusterer_pb2_grpc.ClustererServiceStub(channel),
            )
    finally:
        await rpc.stop()


async def _until(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], *, within_s: float = 20
) -> None:
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        if time.monotonic() > deadline:
            pytest.fail("the condition did not come true in time")
        await asyncio.sleep(0.005)


@pytest.fixture
def serving() -> Any:
    """Starts a server, as an async context manager."""
    return _serving


@pytest.fixture
def until() -> Any:
    """Polls a condition, with a deadline."""
    return _until


@pytest.fixture
def fake_embedder() -> type[FakeEmbedder]:
    return FakeEmbedder


@pytest.fixture
def fake_clusterer() -> type[FakeClusterer]:
    return FakeClusterer
