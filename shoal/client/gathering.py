"""Values that come in several messages, which are put together one by one."""

from __future__ import annotations

import numpy as np

from shoal.client.messages_runs import from_cluster
from shoal.client.runs import Cluster, ClusterList, VectorSample
from shoal.errors import ServiceUnavailable
from shoal.v1 import clusterer_pb2, common_pb2, search_pb2


class ClusterListGatherer:
    """Makes the whole list of clusters of its pages."""

    def __init__(self) -> None:
        self._clusters: list[Cluster] = []
        self._last = search_pb2.ListClustersResponse()

    def add(self, page: search_pb2.ListClustersResponse) -> None:
        """Takes the next page."""
        self._clusters.extend(from_cluster(each) for each in page.clusters)
        self._last = page

    def value(self) -> ClusterList:
        """The clusters of all pages."""
        last = self._last
        return ClusterList(last.run, tuple(self._clusters), last.noise, last.unassigned)


class SampleGatherer:
    """Makes a sample of vectors of the messages of its stream. The first message tells its size."""

    def __init__(self) -> None:
        self._info: common_pb2.VectorInfo | None = None
        self._vectors = np.empty((0, 0), np.float32)
        self._ids: list[str] = []
        self._uris: list[str] = []

    def add(self, message: clusterer_pb2.SampledVectors) -> None:
        """Takes the next message."""
        if self._info is None:
            self._info = message.vector
            self._vectors = np.empty((message.total, message.vector.dim), np.float32)
            return
        rows = np.frombuffer(message.vectors, "<f4").reshape(-1, self._info.dim)
        at = len(self._ids)
        self._vectors[at : at + len(rows)] = rows
        self._ids += message.ids
        self._uris += message.uris

    def value(self) -> VectorSample:
        """The sample; smaller than announced if points were deleted meanwhile."""
        if self._info is None:
            raise ServiceUnavailable("the server ended the sample before it began")
        return VectorSample(
            vector=self._info.name,
            fingerprint=self._info.fingerprint,
            ids=tuple(self._ids),
            vectors=self._vectors[: len(self._ids)],
            uris=tuple(self._uris),
        )
