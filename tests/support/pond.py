"""A collection on a Qdrant server, and runs over it in Spark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reclustering import VECTOR

from clusterer.config import ClustererConfig
from clusterer.spark import plan_task, recluster
from shoal.client import Method, Run, RunOptions
from shoal.client.messages_runs import from_run, to_request
from shoal.spark.cluster import SparkCluster
from shoal.store import Point, Scan, Store, StoreConfig, point_id
from shoal.store.clusterings import Clusterings, State, cluster_of
from shoal.vectors import Vectors

CONFIG = ClustererConfig(write_chunk=50)


@dataclass
class Pond:
    """A collection, and runs over it in Spark."""

    store: Store
    place: StoreConfig
    name: str
    config: ClustererConfig = CONFIG

    def put(self, vectors: Vectors, *, first: int = 0, age_s: float = 3600.0) -> list[str]:
        """Stores vectors (N, DIM) under the keys first, first + 1, ...; returns their ids."""
        ids = [point_id(str(first + i)) for i in range(len(vectors))]
        payload = {"ingested_at": time.time() - age_s}
        points = [
            Point(one, {VECTOR: vector}, dict(payload))
            for one, vector in zip(ids, vectors, strict=True)
        ]
        for at in range(0, len(points), 500):
            self.store.upsert(self.name, points[at : at + 500])
        return ids

    def recluster(
        self,
        cluster: SparkCluster,
        method: Method,
        *,
        bisecting: bool = False,
        on_change: Callable[[Run], object] = lambda _: None,
        **options: object,
    ) -> Run:
        """A run, at its end."""
        request = to_request(method, self.name, "default", RunOptions(**options))  # type: ignore[arg-type]
        wanted = plan_task(request, self.store, self.config, bisecting=bisecting)
        return from_run(
            recluster(
                wanted,
                self.store,
                cluster,
                store_config=self.place,
                config=self.config,
                on_change=lambda message: on_change(from_run(message)),
            )
        )

    @property
    def clusterings(self) -> Clusterings:
        return Clusterings(self.store, self.name)

    @property
    def state(self) -> State:
        return self.clusterings.state("default")

    def labels(self, slot: str = "") -> dict[str, int | None]:
        """What readers see: the cluster of every point; or what one slot holds."""
        slot = slot or self.state.pointer.active_slot
        return {
            one: cluster_of(payload, "default", slot)
            for block in self.store.scan(self.name, Scan(block_size=4096))
            for one, payload in zip(block.ids, block.payloads, strict=True)
        }

    def of(self, ids: Sequence[str]) -> list[int | None]:
        """The labels that readers see of ``ids``, in their order."""
        labels = self.labels()
        return [labels[one] for one in ids]
