"""The calls of the search service."""

from __future__ import annotations

from shoal.client import messages, messages_runs
from shoal.client.calls import CLUSTERING, COLLECTION, Call, Gathered, Pages
from shoal.client.gathering import ClusterListGatherer
from shoal.client.runs import Cluster, ClusterList
from shoal.client.values import Collection, Point, Query, SearchOptions, SearchResult
from shoal.v1 import search_pb2


def search(
    query: Query,
    *,
    collection: str = COLLECTION,
    within: str | int = "any",
    limit: int = 10,
    options: SearchOptions | None = None,
) -> Call[SearchResult]:
    """The stored images nearest to ``query``.

    ``within`` is ``"any"``, ``"auto"`` (the query's own cluster) or a cluster's id; inside a
    cluster the answer is exact. ``limit`` is 1 to 10,000.
    """
    request = messages.to_search_request(query, options or SearchOptions())
    request.collection = collection
    request.within.CopyFrom(messages.to_within(within))
    request.limit = limit
    return Call("search", "Search", request, messages.from_search_response)


def clusters(
    *, collection: str = COLLECTION, clustering: str = CLUSTERING, exemplars: int = 3
) -> Gathered[ClusterList]:
    """The clusters of the active run, with 0 to 20 exemplars each."""
    request = search_pb2.ListClustersRequest(
        collection=collection, clustering=clustering, exemplars=exemplars
    )
    pages = Pages("search", "ListClusters", request, lambda page: (page,))
    return Gathered(pages, ClusterListGatherer)


def get_cluster(
    cluster: int,
    *,
    collection: str = COLLECTION,
    clustering: str = CLUSTERING,
    exemplars: int = 10,
) -> Call[Cluster]:
    """One cluster of the active run, with 0 to 1000 exemplars."""
    request = search_pb2.GetClusterRequest(
        collection=collection, clustering=clustering, cluster=cluster, exemplars=exemplars
    )
    return Call("search", "GetCluster", request, messages_runs.from_cluster)


def point(
    id: str,  # noqa: A002 - the contract's word
    *,
    collection: str = COLLECTION,
    clustering: str = CLUSTERING,
    with_vectors: bool = False,
) -> Call[Point]:
    """The stored image with this id (UUID) or key."""
    request = search_pb2.GetPointRequest(
        collection=collection, id=id, clustering=clustering, with_vectors=with_vectors
    )
    return Call("search", "GetPoint", request, messages.from_point)


def collection(name: str = COLLECTION) -> Call[Collection]:
    """One collection and the number of its points."""
    request = search_pb2.GetCollectionRequest(collection=name)
    return Call("search", "GetCollection", request, messages.from_collection)


def collections() -> Pages[Collection]:
    """All collections."""
    request = search_pb2.ListCollectionsRequest()
    return Pages("search", "ListCollections", request, _collections)


def _collections(page: search_pb2.ListCollectionsResponse) -> list[Collection]:
    return [messages.from_collection(each) for each in page.collections]
