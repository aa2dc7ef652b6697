"""The Python SDK: one synchronous client for the three services behind one address.

Thread-safe. Every call has a timeout but those that are long by nature (``ingest``, ``watch``).
Every failure is a ShoalError; a failure of one item of a batch or stream is a value.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from pydantic import SecretStr

from shoal.client import messages, messages_runs
from shoal.client.connections import Connections
from shoal.client.messages_ingest import IngestTarget
from shoal.client.runs import (
    Cluster,
    Clustering,
    ClusterList,
    DuplicateGroup,
    Method,
    Run,
    RunOptions,
    Schedule,
    VectorSample,
)
from shoal.client.stream import Ingestion
from shoal.client.values import (
    Collection,
    Embedding,
    Info,
    IngestItem,
    IngestOutcome,
    Point,
    Query,
    SearchOptions,
    SearchResult,
)
from shoal.errors import InvalidArgument
from shoal.rpc.channel import ChannelConfig
from shoal.rpc.status import from_rpc_error
from shoal.v1 import (
    clusterer_pb2,
    clusterer_pb2_grpc,
    common_pb2,
    embedder_pb2,
    embedder_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

COLLECTION = "images"
CLUSTERING = "default"
WINDOW = 256
"""Unanswered items of an ingestion: enough to keep the batches full of an embedder on a GPU."""


class Client:
    """A connection to a Shoal server, or to a set of them behind one address.

        with Client("localhost:7800") as shoal:
            for outcome in shoal.ingest(IngestItem(path.read_bytes()) for path in paths):
                print(outcome.name, outcome.status)
            shoal.cluster(KMeans(k=10))
            result = shoal.search(photo, within="auto", limit=20)

    Nothing is sent before the first call, so a wrong address is reported by that.
    """

    def __init__(
        self,
        address: str = "localhost:7800",
        *,
        token: str | None = None,
        tls: bool = False,
        tls_ca: Path | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Connect on first use.

        Args:
            address: HOST:PORT.
            token: Bearer token, if the server wants one.
            tls: Encrypt, and verify the server by the system's authorities.
            tls_ca: PEM file of the authority to verify the server by instead; implies ``tls``.
            timeout_s: Seconds that a call may take.

        Raises:
            ConfigError: the file cannot be read, or a value is out of range.
        """
        config = ChannelConfig(
            address=address,
            token=SecretStr(token) if token else None,
            tls=tls or tls_ca is not None,
            tls_ca=tls_ca,
            timeout_s=timeout_s,
        )
        self._address = address
        self._max_message_bytes = config.max_message_bytes
        self._connections = Connections(config)
        channel = self._connections.first
        self._embedder = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self._clusterer = clusterer_pb2_grpc.ClustererServiceStub(channel)
        self._search = search_pb2_grpc.SearchServiceStub(channel)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way fail with Cancelled."""
        self._connections.close()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, self._address) from exc
        except ValueError as exc:  # of protobuf: a number out of range, a text that is not Unicode
            self._connections.check_open()
            raise InvalidArgument(f"request: {exc}") from exc

    # Embedder

    def info(self) -> Info:
        """What the server can embed, and its limits."""
        with self._translating():
            request = embedder_pb2.GetInfoRequest()
            return messages.from_info(self._embedder.GetInfo(request))

    def embed(self, images: Sequence[bytes], *, encoder: str = "") -> list[Embedding]:
        """One Embedding per image (an encoded file), in order; nothing is stored."""
        with self._translating():
            request = embedder_pb2.EmbedRequest(
                images=[common_pb2.Image(data=data) for data in images], encoder=encoder
            )
            response = self._embedder.Embed(request)
        return [messages.from_embed_result(result) for result in response.results]

    def embed_text(self, texts: Sequence[str], *, encoder: str = "") -> list[Embedding]:
        """One Embedding per text, in order; nothing is stored."""
        with self._translating():
            request = embedder_pb2.EmbedTextRequest(texts=texts, encoder=encoder)
            response = self._embedder.EmbedText(request)
        return [messages.from_embed_result(result) for result in response.results]

    def ingest(
        self,
        items: Iterable[IngestItem | IngestOutcome],
        *,
        collection: str = COLLECTION,
        encoders: Sequence[str] = (),
        window: int = WINDOW,
        streams: int = 1,
    ) -> Generator[IngestOutcome, None, None]:
        """Store ``items``; one outcome per item, in the order in which they finish.

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
        if streams < 1:
            msg = f"streams: expected at least 1, got {streams}"
            raise InvalidArgument(msg, field="streams")
        target = IngestTarget(collection, tuple(encoders), self._max_message_bytes)
        ingestion = Ingestion(items, target, window=window)
        calls = [
            embedder_pb2_grpc.EmbedderServiceStub(channel).Ingest
            for channel in self._connections.several(streams)
        ]
        try:
            yield from ingestion.exchange(calls)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, self._address) from exc

    # Clusterer

    def cluster(
        self,
        method: Method,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        options: RunOptions | None = None,
        on_change: Callable[[Run], object] | None = None,
    ) -> Run:
        """Start a run and follow it to its end, which may be a failure: look at its ``state``.

        ``on_change`` gets the run now and after each change. ``start_run`` does not wait.
        """
        run = self.start_run(method, collection=collection, clustering=clustering, options=options)
        for run in self.watch(run.id, collection=collection):  # noqa: B020 - the newest state
            if on_change is not None:
                on_change(run)
        return run

    def start_run(
        self,
        method: Method,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        options: RunOptions | None = None,
    ) -> Run:
        """Start a run and return it at once."""
        with self._translating():
            request = messages_runs.to_request(
                method, collection, clustering, options or RunOptions()
            )
            request.request_id = str(uuid.uuid4())
            response = self._clusterer.CreateRun(request)
        return messages_runs.from_run(response)

    def watch(self, run: str, *, collection: str = COLLECTION) -> Generator[Run, None, None]:
        """The run now and after each change, until it has ended."""
        with self._translating():
            request = clusterer_pb2.WatchRunRequest(collection=collection, run=run)
            call = self._clusterer.WatchRun(request)
            try:
                for response in call:
                    yield messages_runs.from_run(response)
            finally:
                call.cancel()

    def get_run(self, run: str, *, collection: str = COLLECTION) -> Run:
        """The run with this id, or the only one whose id begins so (at least 4 characters)."""
        with self._translating():
            request = clusterer_pb2.GetRunRequest(collection=collection, run=run)
            response = self._clusterer.GetRun(request)
        return messages_runs.from_run(response)

    def runs(self, *, collection: str = COLLECTION, clustering: str = "") -> Iterator[Run]:
        """The runs of a collection (of one clustering, if given), newest first."""
        with self._translating():
            request = clusterer_pb2.ListRunsRequest(collection=collection, clustering=clustering)
        while True:
            with self._translating():
                response = self._clusterer.ListRuns(request)
            yield from (messages_runs.from_run(run) for run in response.runs)
            request.page_token = response.next_page_token
            if not request.page_token:
                return

    def cancel(self, run: str, *, collection: str = COLLECTION) -> Run:
        """Stop a run; the active clustering stays as it was."""
        with self._translating():
            request = clusterer_pb2.CancelRunRequest(collection=collection, run=run)
            response = self._clusterer.CancelRun(request)
        return messages_runs.from_run(response)

    def rollback(self, *, collection: str = COLLECTION, clustering: str = CLUSTERING) -> Clustering:
        """Go back to the assignment before the last run, exactly as it was."""
        with self._translating():
            request = clusterer_pb2.RollbackRequest(
                collection=collection, clustering=clustering, request_id=str(uuid.uuid4())
            )
            response = self._clusterer.Rollback(request)
        return messages_runs.from_clustering(response)

    def clustering(self, name: str = CLUSTERING, *, collection: str = COLLECTION) -> Clustering:
        """The state of one clustering."""
        with self._translating():
            request = clusterer_pb2.GetClusteringRequest(collection=collection, clustering=name)
            response = self._clusterer.GetClustering(request)
        return messages_runs.from_clustering(response)

    def set_schedule(
        self,
        schedule: Schedule,
        method: Method,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        options: RunOptions | None = None,
    ) -> Clustering:
        """Let the service make a clustering anew by itself, in place of any earlier schedule."""
        with self._translating():
            request = messages_runs.to_request(
                method, collection, clustering, options or RunOptions()
            )
        return self._set_schedule(
            clusterer_pb2.SetScheduleRequest(
                collection=collection,
                clustering=clustering,
                schedule=messages_runs.to_schedule(schedule, request),
            )
        )

    def remove_schedule(
        self, *, collection: str = COLLECTION, clustering: str = CLUSTERING
    ) -> Clustering:
        """Let the service no longer make a clustering by itself."""
        return self._set_schedule(
            clusterer_pb2.SetScheduleRequest(collection=collection, clustering=clustering)
        )

    def _set_schedule(self, request: clusterer_pb2.SetScheduleRequest) -> Clustering:
        with self._translating():
            response = self._clusterer.SetSchedule(request)
        return messages_runs.from_clustering(response)

    def duplicates(
        self,
        *,
        collection: str = COLLECTION,
        vector: str = "",
        min_cosine: float | None = None,
    ) -> Generator[DuplicateGroup, None, None]:
        """Groups of near-duplicates, largest first; the first of each stands for it."""
        with self._translating():
            request = clusterer_pb2.ListDuplicatesRequest(
                collection=collection, vector=vector, min_cosine=min_cosine
            )
            call = self._clusterer.ListDuplicates(request)
            try:
                for response in call:
                    yield messages_runs.from_duplicates(response)
            finally:
                call.cancel()

    def sample_vectors(
        self, *, collection: str = COLLECTION, vector: str = "", size: int = 0, seed: int = 0
    ) -> VectorSample:
        """At most ``size`` points (0: the server's 50,000) with their vectors, drawn by ``seed``.

        Held in memory: 4 bytes per component.
        """
        with self._translating():
            request = clusterer_pb2.SampleVectorsRequest(
                collection=collection, vector=vector, size=size, seed=seed
            )
            call = self._clusterer.SampleVectors(request)
            try:
                return messages_runs.from_sample(call)
            finally:
                call.cancel()

    def clusterings(self, *, collection: str = COLLECTION) -> list[Clustering]:
        """The clusterings of a collection."""
        with self._translating():
            request = clusterer_pb2.ListClusteringsRequest(collection=collection)
            response = self._clusterer.ListClusterings(request)
        return [messages_runs.from_clustering(each) for each in response.clusterings]

    # Search

    def search(
        self,
        query: Query,
        *,
        collection: str = COLLECTION,
        within: str | int = "any",
        limit: int = 10,
        options: SearchOptions | None = None,
    ) -> SearchResult:
        """The stored images nearest to ``query``.

        ``within`` is ``"any"``, ``"auto"`` (the query's own cluster) or a cluster's id; inside a
        cluster the answer is exact. ``limit`` is 1 to 10,000.
        """
        with self._translating():
            request = messages.to_search_request(query, options or SearchOptions())
            request.collection = collection
            request.within.CopyFrom(messages.to_within(within))
            request.limit = limit
            response = self._search.Search(request)
        return messages.from_search_response(response)

    def clusters(
        self, *, collection: str = COLLECTION, clustering: str = CLUSTERING, exemplars: int = 3
    ) -> ClusterList:
        """The clusters of the active run, with 0 to 20 exemplars each."""
        with self._translating():
            request = search_pb2.ListClustersRequest(
                collection=collection, clustering=clustering, exemplars=exemplars
            )
        found: list[Cluster] = []
        while True:
            with self._translating():
                response = self._search.ListClusters(request)
            found.extend(messages_runs.from_cluster(each) for each in response.clusters)
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        return ClusterList(response.run, tuple(found), response.noise, response.unassigned)

    def get_cluster(
        self,
        cluster: int,
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        exemplars: int = 10,
    ) -> Cluster:
        """One cluster of the active run, with 0 to 1000 exemplars."""
        with self._translating():
            request = search_pb2.GetClusterRequest(
                collection=collection, clustering=clustering, cluster=cluster, exemplars=exemplars
            )
            response = self._search.GetCluster(request)
        return messages_runs.from_cluster(response)

    def point(
        self,
        id: str,  # noqa: A002 - the contract's word
        *,
        collection: str = COLLECTION,
        clustering: str = CLUSTERING,
        with_vectors: bool = False,
    ) -> Point:
        """The stored image with this id (UUID) or key."""
        with self._translating():
            request = search_pb2.GetPointRequest(
                collection=collection, id=id, clustering=clustering, with_vectors=with_vectors
            )
            response = self._search.GetPoint(request)
        return messages.from_point(response)

    def collection(self, name: str = COLLECTION) -> Collection:
        """One collection and the number of its points."""
        with self._translating():
            request = search_pb2.GetCollectionRequest(collection=name)
            response = self._search.GetCollection(request)
        return messages.from_collection(response)

    def collections(self) -> Iterator[Collection]:
        """All collections."""
        request = search_pb2.ListCollectionsRequest()
        while True:
            with self._translating():
                response = self._search.ListCollections(request)
            yield from (messages.from_collection(each) for each in response.collections)
            request.page_token = response.next_page_token
            if not request.page_token:
                return
