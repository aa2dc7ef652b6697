"""The Python SDK: ``Client``, ``AsyncClient``, and the values that they take and give back.

Knows the contract and the network, and nothing of the services behind them.
"""

from __future__ import annotations

import warnings

from shoal.client.aio import AsyncClient
from shoal.client.calls import CLUSTERING, COLLECTION
from shoal.client.client import Client
from shoal.client.methods import (
    EmbeddingVectors,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    Naming,
    RunOptions,
    ScpHead,
    TextCentroids,
)
from shoal.client.runs import (
    Cluster,
    Clustering,
    ClusterList,
    Duplicate,
    DuplicateGroup,
    Plan,
    Run,
    RunState,
    Schedule,
    VectorSample,
)
from shoal.client.settings import Addresses
from shoal.client.values import (
    AnyOf,
    Collection,
    Conditions,
    Embedding,
    Empty,
    EncoderInfo,
    Filter,
    Hit,
    Info,
    IngestItem,
    IngestOutcome,
    IngestStatus,
    ItemFailure,
    Point,
    Query,
    Range,
    SearchOptions,
    SearchResult,
    StoredId,
    Test,
    Text,
    Vector,
)
from shoal.client.window import WINDOW
from shoal.values import Drift, Gates, Json, Lineage, VectorInfo

__all__ = [
    "CLUSTERING",
    "COLLECTION",
    "WINDOW",
    "Addresses",
    "AnyOf",
    "AsyncClient",
    "Client",
    "Cluster",
    "ClusterList",
    "Clustering",
    "Collection",
    "Conditions",
    "Drift",
    "Duplicate",
    "DuplicateGroup",
    "Embedding",
    "EmbeddingVectors",
    "Empty",
    "EncoderInfo",
    "Filter",
    "Gates",
    "GaussianMixture",
    "Hdbscan",
    "Hit",
    "Info",
    "IngestItem",
    "IngestOutcome",
    "IngestStatus",
    "ItemFailure",
    "Json",
    "KMeans",
    "Lineage",
    "Method",
    "Naming",
    "Plan",
    "Point",
    "Query",
    "Range",
    "Run",
    "RunOptions",
    "RunState",
    "Schedule",
    "ScpHead",
    "SearchOptions",
    "SearchResult",
    "StoredId",
    "Test",
    "Text",
    "TextCentroids",
    "Vector",
    "VectorInfo",
    "VectorSample",
]

_RENAMED = {"Between": Range, "Missing": Empty}


def __getattr__(name: str) -> object:
    """The names before 0.2, for one version more."""
    if name in _RENAMED:
        now = _RENAMED[name]
        warnings.warn(
            f"shoal.client.{name} is called {now.__name__} now", DeprecationWarning, stacklevel=2
        )
        return now
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
