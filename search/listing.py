"""The clusters of the active run, with counts and exemplars as they are now."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search import messages
from search.snapshots import Snapshot, Snapshots, require_run
from shoal.errors import Conflict, InvalidArgument
from shoal.rpc.pages import AnswerRoom, first_page, no_such_page, page_size
from shoal.store import Store
from shoal.store.clusterings import ClusterRecord
from shoal.store.model import Empty, Equals, Filter, Hit, Query, check_clustering_name
from shoal.v1 import search_pb2 as pb
from shoal.vectors import NOISE, Vectors, unit

_PAGE = 100
"""Clusters on one page by default."""
_LIST_EXEMPLARS, _MOST_LIST_EXEMPLARS = 3, 20
_GET_EXEMPLARS, _MOST_GET_EXEMPLARS = 10, 1000
_CANDIDATES_EACH, _MOST_CANDIDATES = 16, 512
"""Exemplars are chosen from this many members nearest to the centroid, for each exemplar and at
most in all: members that are farther out are outliers."""


def farthest_first(vectors: Vectors, wanted: int) -> list[int]:
    """At most ``wanted`` rows of ``vectors`` (N, D), unit length, that are far from each other.

    The first row comes first; each next one is the farthest from those taken before it.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    taken = [0]
    nearest = vectors @ vectors[0]
    for _ in range(min(wanted, len(vectors)) - 1):
        nearest[taken] = np.inf
        taken.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, vectors @ vectors[taken[-1]])
    return taken


class Listing:
    """Lists clusters. Counts and exemplars are read for each request, so they are never stale."""

    def __init__(self, store: Store, snapshots: Snapshots) -> None:
        self._store = store
        self._snapshots = snapshots

    def clusters(self, request: pb.ListClustersRequest) -> pb.ListClustersResponse:
        """One page of clusters, largest first.

        Later pages go on in the order that the first page began, whatever the sizes are by then:
        its token has the ids that are left.

        Raises:
            Conflict: the page token is of another run than the active one.
            InvalidArgument: the page is too large for a message.
        """
        clustering = check_clustering_name(request.clustering)
        wanted = _exemplars(request, _LIST_EXEMPLARS, _MOST_LIST_EXEMPLARS)
        size = page_size(request.page_size, _PAGE)
        snapshot = self._snapshots.read(request.collection, clustering)
        run = snapshot.state.pointer.active_run
        if not run:
            return pb.ListClustersResponse(unassigned=self._store.count(request.collection))
        sizes = self._store.facet(request.collection, snapshot.state.active_field)
        if request.page_token:
            order = _left(request.page_token, snapshot)
        else:
            order = sorted(snapshot.clusters, key=lambda c: (-sizes.get(c, 0), c))
        page, following = first_page(order, size, lambda _: _token(run, order[size:]))
        room = AnswerRoom()
        clusters = []
        for c in page:
            clusters.append(
                self._message(
                    request.collection, snapshot, snapshot.clusters[c], sizes.get(c, 0), wanted
                )
            )
            room.take(clusters[-1].ByteSize())
        return pb.ListClustersResponse(
            clusters=clusters,
            next_page_token=following,
            run=run,
            noise=sizes.get(NOISE, 0),
            unassigned=self._store.count(
                request.collection, Filter(must=(Empty(snapshot.state.active_field),))
            ),
        )

    def cluster(self, request: pb.GetClusterRequest) -> pb.Cluster:
        """One cluster.

        Raises:
            NotFound: the active run has no such cluster.
        """
        clustering = check_clustering_name(request.clustering)
        wanted = _exemplars(request, _GET_EXEMPLARS, _MOST_GET_EXEMPLARS)
        snapshot = self._snapshots.read(request.collection, clustering)
        require_run(snapshot, request.collection)
        record = snapshot.require(request.cluster)
        members = Filter(must=(Equals(snapshot.state.active_field, record.cluster),))
        size = self._store.count(request.collection, members)
        return self._message(request.collection, snapshot, record, size, wanted)

    def _message(
        self, collection: str, snapshot: Snapshot, record: ClusterRecord, size: int, exemplars: int
    ) -> pb.Cluster:
        hits = self._diverse_members(collection, snapshot, record, exemplars) if exemplars else []
        return messages.cluster(record, snapshot, size, hits)

    def _diverse_members(
        self, collection: str, snapshot: Snapshot, record: ClusterRecord, limit: int
    ) -> list[Hit]:
        """The medoid, and members that differ from it and from each other."""
        direction, vector_name = self._direction(collection, snapshot, record)
        hits = self._store.search(
            collection,
            Query(
                vector=direction,
                vector_name=vector_name,
                limit=max(limit, min(_CANDIDATES_EACH * limit, _MOST_CANDIDATES)),
                where=Filter(must=(Equals(snapshot.state.active_field, record.cluster),)),
                exact=True,
                with_vector=True,
            ),
        )
        if not hits:
            return []
        if vector_name != snapshot.vector:
            hits = self._joined(collection, snapshot, record, hits)
        vectors = np.stack([hit.vector for hit in hits if hit.vector is not None])
        return [hits[at] for at in farthest_first(vectors, limit)]

    def _direction(
        self, collection: str, snapshot: Snapshot, record: ClusterRecord
    ) -> tuple[Vectors, str]:
        """The direction (D,) in which to look for a cluster's members, and its vector's name.

        A joint vector is not stored, so it cannot be searched: the longest of the centroid's
        parts takes its place, because it says most about the cluster.
        """
        stored = self._store.collection(collection).parts(snapshot.vector)
        if len(stored) == 1:
            return record.centroid, snapshot.vector
        parts = np.split(record.centroid, np.cumsum([part.dim for part in stored])[:-1])
        longest = int(np.argmax([np.linalg.norm(part) for part in parts]))
        return unit(parts[longest]), stored[longest].name

    def _joined(
        self, collection: str, snapshot: Snapshot, record: ClusterRecord, hits: list[Hit]
    ) -> list[Hit]:
        """``hits`` with their joint vectors and these vectors' cosines, nearest first."""
        name = snapshot.vector
        records = self._store.retrieve(collection, [hit.id for hit in hits], vectors=(name,))
        vectors = {each.id: each.vectors[name] for each in records if each and name in each.vectors}
        joined = [
            replace(hit, vector=vectors[hit.id], score=float(vectors[hit.id] @ record.centroid))
            for hit in hits
            if hit.id in vectors
        ]
        return sorted(joined, key=lambda hit: -hit.score)


def _exemplars(
    request: pb.ListClustersRequest | pb.GetClusterRequest, default: int, most: int
) -> int:
    wanted = request.exemplars if request.HasField("exemplars") else default
    if wanted > most:
        raise InvalidArgument(f"exemplars: expected 0 to {most}, got {wanted}", field="exemplars")
    return wanted


def _token(run: str, left: Sequence[int]) -> str:
    """The token of the page that begins with the first of the clusters ``left`` of ``run``."""
    packed = zlib.compress(np.array(left, "<i4").tobytes())
    return f"{run}:{base64.urlsafe_b64encode(packed).decode()}"


def _left(token: str, snapshot: Snapshot) -> list[int]:
    """The clusters that a ``token`` says are left, in the order of its first page.

    Raises:
        InvalidArgument: no page ended with this token.
        Conflict: the token is of another run than the active one.
    """
    of_run, _, packed = token.rpartition(":")
    run, most = snapshot.state.pointer.active_run, 4 * len(snapshot.clusters) or 1
    if of_run and of_run != run:
        raise Conflict(f"page_token is of run {of_run}, the active run is {run}: start over")
    unpacking = zlib.decompressobj()
    try:
        data = base64.b64decode(packed, altchars=b"-_", validate=True)
        left: list[int] = np.frombuffer(unpacking.decompress(data, most), "<i4").tolist()
    except (ValueError, zlib.error):
        raise no_such_page(token) from None
    known = set(left) & snapshot.clusters.keys()
    if not of_run or not left or not unpacking.eof or len(known) < len(left):
        raise no_such_page(token)
    return left
