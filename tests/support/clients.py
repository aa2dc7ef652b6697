"""A server whose answers one can predict, and both clients behind one blocking face."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, Self

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from shoal import errors
from shoal.client import AsyncClient, IngestItem
from shoal.client.calls import SERVICES, Service
from shoal.rpc.status import item_error, to_status
from shoal.v1 import (
    clusterer_pb2_grpc,
    embedder_pb2,
    embedder_pb2_grpc,
    search_pb2_grpc,
)


class Fake(
    embedder_pb2_grpc.EmbedderServiceServicer,
    clusterer_pb2_grpc.ClustererServiceServicer,
    search_pb2_grpc.SearchServiceServicer,
):
    """Keeps each request; answers with the next of ``answers``, or fails with ``error``.

    ``Ingest`` stores what it gets: an item that begins with "bad" is refused, "drop" breaks the
    stream, "end" ends it, "last" is answered before that; "mute" is answered without an outcome,
    "odd" with a status that is not known.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.answers: list[Any] = []
        self.error: errors.ShoalError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.released = threading.Event()
        self.received = 0
        self.arrived = threading.Event()
        self.peers: list[str] = []

    def answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.error is not None:
            abort(context, to_status(self.error))
        return self.answers.pop(0)

    def stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self.answer(request, context)

    Embed = EmbedText = GetInfo = answer
    CreateRun = GetRun = ListRuns = CancelRun = Rollback = answer
    GetClustering = ListClusterings = SetSchedule = answer
    Search = ListClusters = GetCluster = GetPoint = GetCollection = ListCollections = answer
    WatchRun = ListDuplicates = SampleVectors = stream

    def Ingest(
        self, requests: Iterator[embedder_pb2.IngestRequest], context: grpc.ServicerContext
    ) -> Iterator[embedder_pb2.IngestResponse]:
        self.peers.append(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))
        for request in requests:
            self.received += 1
            self.arrived.set()
            self.requests.append(request)
            self.gate.wait(10)
            response = embedder_pb2.IngestResponse(sequence=request.sequence, key=request.key)
            data = request.image.data
            if data.startswith(b"wait"):
                self.released.wait(10)
            if data.startswith(b"drop"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if data.startswith(b"end"):
                return
            if data.startswith(b"bad"):
                response.error.CopyFrom(item_error(errors.ImageCorrupt("bad bytes")))
            elif data.startswith(b"odd"):
                response.result.status = 99  # type: ignore[assignment]
            elif not data.startswith(b"mute"):
                response.result.id = f"id-{request.key}"
                response.result.status = embedder_pb2.INGEST_STATUS_STORED
            yield response
            if data.startswith(b"last"):
                return


def abort(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    context.abort_with_status(rpc_status.to_status(status))


_ADD: dict[Service, Callable[[Any, grpc.Server], None]] = {
    "embedder": embedder_pb2_grpc.add_EmbedderServiceServicer_to_server,
    "clusterer": clusterer_pb2_grpc.add_ClustererServiceServicer_to_server,
    "search": search_pb2_grpc.add_SearchServiceServicer_to_server,
}


@contextmanager
def serving(fake: Fake, *services: Service) -> Iterator[str]:
    """A real server with ``fake`` behind ``services``, or all three; its HOST:PORT."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    for service in services or SERVICES:
        _ADD[service](fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        fake.gate.set()
        fake.released.set()
        server.stop(0).wait()


class Driven:
    """An AsyncClient with the face of a Client, so that the same tests hold for both.

    Its loop runs in a thread; what a method awaits or yields asynchronously is waited for.
    """

    def __init__(self, make: Callable[[], AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client")
        self._thread.start()
        self._generators: list[DrivenGenerator] = []
        self._client = make()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for generator in self._generators:
            generator.close()
        self.close()
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        left = [task for task in asyncio.all_tasks(self._loop) if not task.done()]
        self._loop.close()
        assert not left, left

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self.run(self._client.close())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found = method(*args, **kwargs)
            if not inspect.isasyncgen(found):
                return self.run(found)
            self._generators.append(DrivenGenerator(self, found))
            return self._generators[-1]

        return call


class DrivenGenerator:
    """An asynchronous generator with the face of a generator."""

    def __init__(self, driven: Driven, generator: Any) -> None:
        self._driven = driven
        self._generator = generator

    def __iter__(self) -> DrivenGenerator:
        return self

    def __next__(self) -> Any:
        async def following() -> Any:
            return await anext(self._generator, StopIteration)

        found = self._driven.run(following())
        if found is StopIteration:
            raise StopIteration
        return found

    def close(self) -> None:
        self._driven.run(self._generator.aclose())


def make_items(*names: str) -> list[IngestItem]:
    return [IngestItem(data=name.encode(), key=name, name=f"<{name}>") for name in names]
