"""Manifests of heads that nobody trained."""

from __future__ import annotations

from typing import Any

from clusterer.heads.store import HeadManifest, HeadVector, sha256
from shoal.values import VectorInfo


def made_manifest(name: str, graph: bytes, vector: VectorInfo, **changes: Any) -> HeadManifest:
    """The manifest of ``graph``, five clusters by TEMI on pairs of neighbours, but for changes."""
    fields = {
        "name": name,
        "clusters": 5,
        "vector": HeadVector.of(vector),
        "objective": "temi",
        "pairs": "neighbours",
        "graph_sha256": sha256(graph),
        "created_at": 1.0,
        **changes,
    }
    return HeadManifest(**fields)
