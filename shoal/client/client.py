"""The blocking client. Every call but ``ingest`` is declared in ``calls`` and carried out here.

Thread-safe. Every call has a timeout but those that are long by nature (``ingest``, ``watch``).
Every failure is a ShoalError; a failure of one item of a batch or stream is a value.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, Self

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
from shoal.client.connections import Connections
from shoal.client.failures import asking
from shoal.client.messages_ingest import IngestTarget
from shoal.client.settings import ADDRESS, TIMEOUT_S, Addresses, channels_of
from shoal.client.stream import Ingestion
from shoal.client.values import IngestItem, IngestOutcome
from shoal.client.window import WINDOW, Window
from shoal.rpc.config import MAX_MESSAGE_BYTES
from shoal.v1 import embedder_pb2_grpc

if TYPE_CHECKING:
    from shoal.client.methods import Method, RunOptions
    from shoal.client.runs import Run


def _call(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method that sends a request and gives back the answer's value."""

    @method_of(build, owner="Client")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with asking(self._connections):
            call = build(*args, **kwargs)
        with self._connections.translating(call):
            response = self._connections.call(call)
        return call.parse(response)

    return method


def _stream(
    build: Callable[P, Stream[T]],
) -> Callable[Concatenate[Client, P], Generator[T, None, None]]:
    """The method that gives back a stream's values; closing the generator ends the stream."""

    @method_of(build, owner="Client", returns="Generator[{}, None, None]")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        with asking(self._connections):
            stream = build(*args, **kwargs)
        yield from self._values(stream)

    return method


def _pages(build: Callable[P, Pages[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """The method that gives back the values of all pages, each page read when it is needed."""

    @method_of(build, owner="Client", returns="Iterator[{}]")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with asking(self._connections):
            pages = build(*args, **kwargs)
        yield from self._all_pages(pages)

    return method


def _gathered(build: Callable[P, Gathered[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method that gives back all pages, or a whole stream, as one value."""

    @method_of(build, owner="Client")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with asking(self._connections):
            gathered = build(*args, **kwargs)
        gatherer, parts = gathered.gatherer(), gathered.parts
        for part in self._values(parts) if isinstance(parts, Stream) else self._all_pages(parts):
            gatherer.add(part)
        return gatherer.value()

    return method


class Client:
    """A connection to a Shoal server, to a set of them behind one address, or to one per service.

        with Client("localhost:7800") as shoal:
            for outcome in shoal.ingest(IngestItem(path.read_bytes()) for path in paths):
                print(outcome.name, outcome.status)
            shoal.cluster(KMeans(k=10))
            result = shoal.search(photo, within="auto", limit=20)

    Nothing is sent before the first call, so a wrong address is reported by that.
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
        """Connects on first use.

        Args:
            address: HOST:PORT of a server with all services, or the addresses of several servers.
            token: Bearer token, if the server wants one.
            tls: Encrypt, and verify the server by the system's authorities.
            tls_ca: PEM file of the authority to verify the server by instead; implies ``tls``.
            timeout_s: Seconds that a call may take.
            via_proxy: Go through the proxy that ``https_proxy`` or ``http_proxy`` names in the
                environment; a loopback address is reached directly all the same.

        Raises:
            ConfigError: the file cannot be read, or a value is out of range.
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
        self._connections = Connections(channels)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connections; calls under way fail with Cancelled."""
        self._connections.close()

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

    def cluster(
        self,
        method: Method,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        options: RunOptions | None = None,
        on_change: Callable[[Run], object] | None = None,
    ) -> Run:
        """Starts a run and follows it to its end, which may be a failure: look at its ``state``.

        ``on_change`` gets the run now and after each change. ``start_run`` does not wait.
        """
        run = self.start_run(method, collection=collection, clustering=clustering, options=options)
        for run in self.watch(run.id, collection=collection):  # noqa: B020 - the newest state
            if on_change is not None:
                on_change(run)
        return run

    def ingest(
        self,
        items: Iterable[IngestItem | IngestOutcome],
        *,
        collection: str = COLLECTION,
        encoders: Sequence[str] = (),
        window: int = WINDOW,
        streams: int = 1,
    ) -> Generator[IngestOutcome, None, None]:
        """Stores ``items``; one outcome per item, in the order in which they finish.

        Items are read lazily, from other threads, one at a time, when fewer than ``window`` have
        no outcome yet or one that was not taken. An item that cannot be sent FAILED, and touches
        no other.
        An outcome other than FAILED means that the point survives a crash of the server. To
        resume after an interruption, send everything again: what is there costs little and
        changes nothing. An IngestOutcome among the items is passed through without being sent.
        ``encoders`` names those that fill the collection; by default the server's first for a new
        collection, and those that it has for another.
        ``streams`` is how many share the window, each over a connection of its own. One is served
        by one process, which suffices unless the server has several. Two items with one key are
        stored in their order by one stream, by several in any.
        Closing the iterator early ends the streams.

        Raises:
            InvalidArgument: ``window`` or ``streams`` is below 1.
            ServiceUnavailable: a connection broke; outcomes so far hold.
        """
        ingestion = Ingestion(
            items,
            IngestTarget(collection, tuple(encoders), self._max_message_bytes),
            Window(window, streams=streams),
        )
        calls = [
            embedder_pb2_grpc.EmbedderServiceStub(channel).Ingest
            for channel in self._connections.several(streams)
        ]
        with self._connections.ingesting():
            yield from ingestion.exchange(calls)

    def _values(self, stream: Stream[T]) -> Generator[T, None, None]:
        with self._connections.translating(stream):
            responses = self._connections.call(stream)
        try:
            while True:
                with self._connections.translating(stream):
                    response = next(responses, None)
                if response is None:
                    return
                yield stream.parse(response)
        finally:
            responses.cancel()

    def _all_pages(self, pages: Pages[T]) -> Iterator[T]:
        while True:
            with self._connections.translating(pages):
                page = self._connections.call(pages)
            yield from pages.parse(page)
            if not pages.next_request(page):
                return
