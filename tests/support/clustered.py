"""A collection whose clusters were given out by hand, so that every answer is known beforehand.

A point's stored cluster, its nearest centroid and its other slot all say different things, as
after no fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from shoal.store import Block, Hit, Point, Query, Scan, Store, point_id
from shoal.store.clusterings import Clusterings, ClusterRecord
from shoal.store.model import Record
from shoal.values import VectorInfo
from shoal.vectors import NOISE, Vectors, unit

DIM, TINT_DIM = 8, 3
TOY, TINT = VectorInfo("toy", DIM, "f" * 64), VectorInfo("tint", TINT_DIM, "e" * 64)
COUNT = 60
CLUSTERS = (2, 3, 7)
"""Ids in use; 0 and 1 are not."""
AXES = tuple(np.eye(DIM, dtype=np.float32)[: len(CLUSTERS)])
"""The centroids: each cluster's is an axis of the space."""
UNASSIGNED = 59
"""The one point without a cluster."""


class Spy(Store):
    """A store that tells what was asked of it, and lets a test act after a point was read."""

    def __init__(self, store: Store) -> None:
        vars(self).update(vars(store))
        self.queries: list[Query] = []
        self.scanned: list[str] = []
        self.after_point: Callable[[], object] = lambda: None

    def search(self, name: str, query: Query) -> list[Hit]:
        self.queries.append(query)
        return super().search(name, query)

    def scan(self, name: str, options: Scan | None = None) -> Iterator[Block]:
        self.scanned.append(name)
        return super().scan(name, options)

    def retrieve(self, name: str, ids: Any, *, vectors: Any = ()) -> list[Record | None]:
        found = super().retrieve(name, ids, vectors=vectors)
        if name == "toys":
            self.after_point()
        return found


def cluster_in_a(i: int) -> int:
    return (*CLUSTERS, NOISE)[i % 4]


def cluster_in_b(i: int) -> int:
    return CLUSTERS[i % 3]


def payload(i: int) -> dict[str, Any]:
    slots = {"a": cluster_in_a(i), "b": cluster_in_b(i)}
    return {"n": i} if i == UNASSIGNED else {"n": i, "clusters": {"default": slots}}


def make_live(
    store: Store,
    run: str,
    slot: str,
    *,
    vector: str = "toy",
    centroids: Sequence[Vectors] = AXES,
) -> None:
    """Makes ``run``, with ``centroids`` of ``vector``, the active one."""
    clusterings = Clusterings(store, "toys")
    clusterings.ensure("default")
    records = [
        ClusterRecord(
            cluster,
            size=1000 + cluster,
            cohesion=cluster / 10,
            centroid=centroid,
            lineage={"kind": "split", "related": [cluster + 1], "overlap": 0.0},
            name=f"name {cluster}",
        )
        for cluster, centroid in zip(CLUSTERS, centroids, strict=True)
    ]
    clusterings.put_clusters("default", run, records, vector=vector, fence=0)
    clusterings.compare_and_set("default", {"active_run": run, "active_slot": slot})


def fill(store: Store) -> tuple[Vectors, Vectors]:
    """Makes the collection "toys" in ``store``; its vectors (COUNT, D) called toy and tint."""
    rng = np.random.default_rng(11)
    toys = unit(rng.normal(size=(COUNT, DIM)))
    tints = unit(rng.normal(size=(COUNT, TINT_DIM)))
    store.create_collection("toys", [TOY, TINT])
    store.upsert(
        "toys",
        [
            Point(point_id(str(i)), {"toy": toys[i], "tint": tints[i]}, payload(i))
            for i in range(COUNT)
        ],
    )
    return toys, tints
