"""The search service: messages to queries and back. Images become vectors at the embedder."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc.aio

from search import messages
from search.config import SearchConfig
from search.embedding import Embedding
from search.listing import Listing
from search.query import Searcher
from search.snapshots import Snapshots
from shoal import vectors
from shoal.errors import EncoderMismatch, InvalidArgument
from shoal.store import Store
from shoal.store.model import Collection, check_clustering_name
from shoal.v1 import common_pb2, search_pb2_grpc
from shoal.v1 import search_pb2 as pb
from shoal.values import VectorInfo
from shoal.vectors import Vectors

_R = TypeVar("_R")


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Retrieval and listing."""

    name = "shoal.v1.SearchService"

    def __init__(self, config: SearchConfig, store: Store, embedder: grpc.aio.Channel) -> None:
        self._store = store
        self._views = Snapshots(store, config.cached_runs)
        self._searcher = Searcher(store, self._views)
        self._listing = Listing(store, self._views)
        self._embedding = Embedding(embedder, config.embed_timeout_s)
        self._threads = ThreadPoolExecutor(config.threads, "search")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to ``server``."""
        search_pb2_grpc.add_SearchServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Nothing to prepare: runs are read when they are first asked for."""

    async def ready(self) -> bool:
        """True when the store answers. Queries by id and vector work without the embedder."""
        await self._in_thread(self._store.collections)
        return True

    def drain(self) -> None:
        """Nothing: calls are short."""

    async def stop(self, grace_s: float) -> None:
        """Ends the threads."""
        self._threads.shutdown()

    async def _in_thread(self, call: Callable[..., _R], *args: object) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(call, *args))

    async def Search(
        self, request: pb.SearchRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.SearchResponse:
        """The stored images nearest to the query."""
        match request.WhichOneof("query"):
            case "image":
                spec = await self._in_thread(self._spec, request)
                vector = await self._embedding.image(request.image, spec.name, context)
            case "text":
                spec = await self._in_thread(self._spec, request)
                vector = await self._embedding.text(request.text, spec.name, context)
            case _:
                vector = request.vector
        # One thread for the whole of it: a change of threads costs as much as half the search.
        return await self._in_thread(self._search, request, vector)

    def _spec(self, request: pb.SearchRequest) -> VectorInfo:
        """The named vector that ``request`` is about; raises what is wrong with the request."""
        collection = self._store.collection(request.collection)
        return collection.vector(messages.target(request, collection).vector)

    def _search(self, request: pb.SearchRequest, query: common_pb2.Vector) -> pb.SearchResponse:
        collection = self._store.collection(request.collection)
        target = messages.target(request, collection)
        spec = collection.vector(target.vector)
        match request.WhichOneof("query"):
            case None:
                raise InvalidArgument("query: expected an image, id, vector or text, got none")
            case "id":
                found = self._searcher.by_id(target, request.id)
            case _:
                found = self._searcher.by_vector(target, _checked(query, collection, spec))
        return messages.response(found, spec)

    async def ListClusters(
        self, request: pb.ListClustersRequest, context: object
    ) -> pb.ListClustersResponse:
        """The clusters of the active run, largest first."""
        return await self._in_thread(self._listing.clusters, request)

    async def GetCluster(self, request: pb.GetClusterRequest, context: object) -> pb.Cluster:
        """One cluster of the active run."""
        return await self._in_thread(self._listing.cluster, request)

    async def GetPoint(self, request: pb.GetPointRequest, context: object) -> pb.Point:
        """One stored point."""

        def read() -> pb.Point:
            collection = self._store.collection(request.collection)
            names = tuple(s.name for s in collection.vectors) if request.with_vectors else ()
            view = self._views.view(request.collection, check_clustering_name(request.clustering))
            record = self._searcher.point(request.collection, request.id, vectors=names)
            return messages.point(record, view, collection)

        return await self._in_thread(read)

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: object
    ) -> pb.Collection:
        """One collection."""

        def read() -> pb.Collection:
            collection = self._store.collection(request.collection)
            return messages.collection(collection, self._store.count(collection.name))

        return await self._in_thread(read)

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: object
    ) -> pb.ListCollectionsResponse:
        """All collections by name; the page token is the last name of the page before."""

        def read() -> pb.ListCollectionsResponse:
            size = messages.page_size(request.page_size, 100)
            left = [c for c in self._store.collections() if c.name > request.page_token]
            page = [messages.collection(c, self._store.count(c.name)) for c in left[:size]]
            more = len(left) > size
            return pb.ListCollectionsResponse(
                collections=page, next_page_token=page[-1].name if more else ""
            )

        return await self._in_thread(read)


def _checked(message: common_pb2.Vector, collection: Collection, spec: VectorInfo) -> Vectors:
    """The vector in ``message`` (D,), if it was made by the collection's encoder."""
    if message.fingerprint and message.fingerprint != spec.fingerprint:
        raise EncoderMismatch(
            f"collection {collection.name!r} was made with encoder {spec.name!r} "
            f"({spec.fingerprint[:12]}), the query with another ({message.fingerprint[:12]})"
        )
    decoded = vectors.decode(message.values, message.dim)
    return vectors.unit(vectors.check_unit(decoded, spec.dim))
