"""The asynchronous client. Every call but ``ingest`` is declared in ``calls``, as ``Client``'s."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, Self

from shoal.client.aio.connections import AsyncConnections
from shoal.client.aio.items import as_async
from shoal.client.aio.stream import AsyncIngestion
from shoal.client.calls import (
    CLUSTERING,
    COLLECTION,
    Call,
    Gathered,
    P,
    Pages,
    Stream,
    T,
    clusterer,
    embedder,
    method_of,
    searcher,
)
from shoal.client.failures import asking
from shoal.client.messages_ingest import IngestTarget
from shoal.client.settings import ADDRESS, TIMEOUT_S, Addresses, channels_of
from shoal.client.values import IngestItem, IngestOutcome
from shoal.client.window import WINDOW, Window
from shoal.rpc.config import MAX_MESSAGE_BYTES
from shoal.v1 import embedder_pb2_grpc

if TYPE_CHECKING:
    from shoal.client.methods import Method, RunOptions
    from shoal.client.runs import Run

# Coroutine[object, ...] where others write Any: with Any, mypy takes what asyncio.gather gives back
# of two such calls for Any too.


def _call(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[object, object, T]]:
    """The method that sends a request and gives back the answer's value."""

    @method_of(build, owner="AsyncClient")
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with asking(self._connections):
            call = build(*args, **kwargs)
        async with self._connections.translating(call):
            response = await self._connections.call(call)
        return call.parse(response)

    return method


def _stream(
    build: Callable[P, Stream[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]]:
    """The method that gives back a stream's values; closing the generator ends the stream."""

    @method_of(build, owner="AsyncClient", returns="AsyncGenerator[{}, None]")
    async def method(
        self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        with asking(self._connections):
            stream = build(*args, **kwargs)
        async with aclosing(self._values(stream)) as values:
            async for value in values:
                yield value

    return method


def _pages(
    build: Callable[P, Pages[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]]:
    """The method that gives back the values of all pages, each page read when it is needed."""

    @method_of(build, owner="AsyncClient", returns="AsyncGenerator[{}, None]")
    async def method(
        self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        with asking(self._connections):
            pages = build(*args, **kwargs)
        async with aclosing(self._all_pages(pages)) as values:
            async for value in values:
                yield value

    return method


def _gathered(
    build: Callable[P, Gathered[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[object, object, T]]:
    """The method that gives back all pages, or a whole stream, as one value."""

    @method_of(build, owner="AsyncClient")
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with asking(self._connections):
            gathered = build(*args, **kwargs)
        gatherer, parts = gathered.gatherer(), gathered.parts
        several = self._values(parts) if isinstance(parts, Stream) else self._all_pages(parts)
        async with aclosing(several) as opened:
            async for part in opened:
                gatherer.add(part)
        return gatherer.value()

    return method


class AsyncClient:
    """A connection to a Shoal server, for programs that run an event loop.

        async with AsyncClient("localhost:7800") as shoal:
            async for outcome in shoal.ingest(IngestItem(path.read_bytes()) for path in paths):
                print(outcome.name, outcome.status)
            await shoal.cluster(KMeans(k=10))
            result = await shoal.search(photo, within="auto", limit=20)

    Its methods are those of ``Client``. It belongs to the loop that runs at its first call. A
    generator that is not read to its end is to be closed (``contextlib.aclosing``): that ends
    its stream.
    """

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        address: str | Addresses = ADDRESS,
        *,
        token: str | None = None,
        tls: bool = False,
        tls_ca: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        via_proxy: bool = False,
    ) -> None:
        """Connects on first use; the arguments are those of ``Client``.

        Raises:
            ConfigError: a value is out of range. That the file cannot be read is raised by the
                first call.
        """
        channels = channels_of(
            address,
            token=token,
            tls=tls,
            tls_ca=tls_ca,
            timeout_s=timeout_s,
            via_proxy=via_proxy,
        )
        self._max_message_bytes = MAX_MESSAGE_BYTES
        self._connections = AsyncConnections(channels)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls under way fail with Cancelled."""
        await self._connections.close()

    info = _call(embedder.info)
    embed = _call(embedder.embed)
    embed_text = _call(embedder.embed_text)

    start_run = _call(clusterer.start_run)
    watch = _stream(clusterer.watch)
    get_run = _call(clusterer.get_run)
    runs = _pages(clusterer.runs)
    cancel = _call(clusterer.cancel)
    rollback = _call(clusterer.rollback)
    clustering = _call(clusterer.clustering)
    clusterings = _call(clusterer.clusterings)
    set_schedule = _call(clusterer.set_schedule)
    remove_schedule = _call(clusterer.remove_schedule)
    duplicates = _stream(clusterer.duplicates)
    sample_vectors = _gathered(clusterer.sample_vectors)

    search = _call(searcher.search)
    clusters = _gathered(searcher.clusters)
    get_cluster = _call(searcher.get_cluster)
    point = _call(searcher.point)
    collection = _call(searcher.collection)
    collections = _pages(searcher.collections)

    async def cluster(
        self,
        method: Method,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        options: RunOptions | None = None,
        on_change: Callable[[Run], object] | None = None,
    ) -> Run:
        """Starts a run and follows it to its end, which may be a failure: look at its ``state``.

        ``on_change`` gets the run now and after each change; what it gives back is awaited if that
        is possible. ``start_run`` does not wait.
        """
        run = await self.start_run(
            method, collection=collection, clustering=clustering, options=options
        )
        async with aclosing(self.watch(run.id, collection=collection)) as changes:
            async for run in changes:
                told = on_change(run) if on_change is not None else None
                if inspect.isawaitable(told):
                    await told
        return run

    async def ingest(
        self,
        items: AsyncIterable[IngestItem | IngestOutcome] | Iterable[IngestItem | IngestOutcome],
        *,
        collection: str = COLLECTION,
        encoders: Sequence[str] = (),
        window: int = WINDOW,
        streams: int = 1,
    ) -> AsyncGenerator[IngestOutcome, None]:
        """Stores ``items``; one outcome per item, in the order in which they finish.

        As ``Client.ingest``. An ordinary iterable is read in a thread of its own, so that it may
        block; an asynchronous one in the loop.

        Raises:
            InvalidArgument: ``window`` or ``streams`` is below 1.
            ServiceUnavailable: a connection broke; outcomes so far hold.
        """
        ingestion = AsyncIngestion(
            as_async(items),
            IngestTarget(collection, tuple(encoders), self._max_message_bytes),
            Window(window, streams=streams),
        )
        calls = [
            embedder_pb2_grpc.EmbedderServiceStub(channel).Ingest
            for channel in self._connections.several(streams)
        ]
        async with aclosing(ingestion.exchange(calls)) as outcomes:
            while True:
                async with self._connections.answering("embedder"):
                    outcome = await anext(outcomes, None)
                if outcome is None:
                    return
                yield outcome

    async def _values(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        async with self._connections.translating(stream):
            responses = self._connections.call(stream)
        answers = aiter(responses)
        try:
            while True:
                async with self._connections.translating(stream):
                    response = await anext(answers, None)
                if response is None:
                    return
                yield stream.parse(response)
        finally:
            responses.cancel()

    async def _all_pages(self, pages: Pages[T]) -> AsyncGenerator[T, None]:
        while True:
            async with self._connections.translating(pages):
                page = await self._connections.call(pages)
            for value in pages.parse(page):
                yield value
            if not pages.next_request(page):
                return
