"""The search service over gRPC. The embedder turns query images and texts into vectors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc.aio

from search import messages
from search.config import SearchConfig
from search.embedding import QueryEmbedder
from search.listing import Listing
from search.query import Searcher, Target
from search.snapshots import Snapshots
from shoal.rpc.pages import first_page, page_size
from shoal.store import Store
from shoal.store.model import check_clustering_name
from shoal.v1 import common_pb2, search_pb2_grpc
from shoal.v1 import search_pb2 as pb

_R = TypeVar("_R")

_PAGE = 100
"""Collections on one page by default."""


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Searches one store, and lists what is in it."""

    name = "shoal.v1.SearchService"

    def __init__(self, config: SearchConfig, store: Store, embedder: grpc.aio.Channel) -> None:
        self._store = store
        self._snapshots = Snapshots(store, config.cached_runs)
        self._searcher = Searcher(store, self._snapshots)
        self._listing = Listing(store, self._snapshots)
        self._embedder = QueryEmbedder(embedder, config.embed_timeout_s)
        self._threads = ThreadPoolExecutor(config.threads, "search")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to ``server``."""
        search_pb2_grpc.add_SearchServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Does nothing: a run is read when it is first asked for."""

    async def ready(self) -> bool:
        """True when the store answers. Queries by id and vector work without the embedder."""
        await self._in_thread(self._store.collections)
        return True

    def drain(self) -> None:
        """Does nothing: calls are short."""

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
                target = await self._in_thread(self._target, request)
                info = target.vector
                vector = await self._embedder.image(
                    request.image, info.name, context, fingerprint=info.fingerprint
                )
                return await self._in_thread(self._search_by_vector, target, vector)
            case "text":
                target = await self._in_thread(self._target, request)
                info = target.vector
                vector = await self._embedder.text(
                    request.text, info.name, context, fingerprint=info.fingerprint
                )
                return await self._in_thread(self._search_by_vector, target, vector)
            case _:
                # All in one thread: each change of threads costs as much as half the search.
                return await self._in_thread(self._search, request)

    def _target(self, request: pb.SearchRequest) -> Target:
        return messages.target(request, self._store.collection(request.collection))

    def _search(self, request: pb.SearchRequest) -> pb.SearchResponse:
        target = self._target(request)
        if request.WhichOneof("query") == "id":
            return messages.response(self._searcher.by_id(target, request.id), target)
        return self._search_by_vector(target, request.vector)

    def _search_by_vector(self, target: Target, message: common_pb2.Vector) -> pb.SearchResponse:
        vector = messages.query_vector(message, target)
        return messages.response(self._searcher.by_vector(target, vector), target)

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
            names = tuple(each.name for each in collection.vectors) if request.with_vectors else ()
            clustering = check_clustering_name(request.clustering)
            snapshot = self._snapshots.read(request.collection, clustering)
            record = self._searcher.point(request.collection, request.id, vectors=names)
            return messages.point(record, snapshot, collection)

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
            size = page_size(request.page_size, _PAGE)
            left = [c for c in self._store.collections() if c.name > request.page_token]
            page, following = first_page(left, size, lambda collection: collection.name)
            return pb.ListCollectionsResponse(
                collections=[messages.collection(c, self._store.count(c.name)) for c in page],
                next_page_token=following,
            )

        return await self._in_thread(read)
