"""A trained head (SCP, TEMI) as a method: it is applied, not fitted, and never leaves noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clusterer.assignment import cluster_sums
from clusterer.head_session import HeadSession
from clusterer.heads import HeadStore
from clusterer.methods.values import Fit, Plan, Surroundings
from clusterer.models import Head
from shoal.errors import FitFailed, InvalidArgument, Unsupported
from shoal.v1 import clusterer_pb2 as pb
from shoal.vectors import Vectors


def plan(config: pb.ClusteringConfig, surroundings: Surroundings) -> Plan:
    """The plan of ``config.scp``: which head, found and checked.

    Raises:
        Unsupported: the service keeps no heads.
        InvalidArgument: no head is named.
        NotFound: there is no such head.
        EncoderMismatch: it is for the vectors of another encoder.
    """
    if not config.scp.head:
        raise InvalidArgument("head: expected a head's name or hash, got none", field="config.scp")
    if not surroundings.heads:
        msg = "method scp: this server was told of no place with heads (--heads)"
        raise Unsupported(msg)
    manifest = HeadStore(surroundings.heads).find(config.scp.head)
    if surroundings.vector is not None:
        manifest.check(surroundings.vector)
    return Plan("scp", {"heads": surroundings.heads, "head": manifest.id}, least_points=1)


def run(vectors: Vectors, options: Mapping[str, Any], warm: Vectors | None) -> Fit:
    """The head that was planned, with the centroids of its clusters on ``vectors`` (N, D).

    Clusters that no vector of the sample gets are left out: without members there is no centroid
    to match them by, and their points go to the next likeliest.
    """
    del warm
    heads = HeadStore(options["heads"])
    graph = heads.graph(heads.find(options["head"]))
    labels = HeadSession(graph).probabilities(vectors).argmax(axis=1).astype(np.int32)
    clusters = int(labels.max(initial=0)) + 1
    sums = cluster_sums(vectors, labels, clusters)
    lengths = np.linalg.norm(sums, axis=1)
    kept = np.flatnonzero(lengths > 0).astype(np.int32)
    if not len(kept):
        raise FitFailed("no cluster of the head has a direction: the vectors cancel out")
    centroids = np.ascontiguousarray((sums[kept] / lengths[kept, None]).astype(np.float32))
    model = Head(centroids, np.frombuffer(graph, np.uint8), kept)
    return Fit(model, facts={"head": options["head"]})
