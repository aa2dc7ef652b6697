"""The clusters of runs: one record each, whose vector is the centroid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.errors import NotFound
from shoal.store.clusterings.records import Records, of_run
from shoal.store.model import Payload, Point, Scan, VectorScan, point_id
from shoal.values import Json
from shoal.vectors import Vectors


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """One cluster of one run. Its assignment pass measured ``size`` and ``cohesion``.

    ``lineage`` is ``{"kind": str, "related": [int], "overlap": float}``.
    """

    cluster: int
    size: int
    cohesion: float
    centroid: Vectors
    lineage: Mapping[str, Json]
    name: str = ""


class Clusters(Records):
    """The clusters of a collection's runs."""

    def put_clusters(
        self,
        clustering: str,
        run: str,
        clusters: Sequence[ClusterRecord],
        *,
        vector: str,
        fence: int,
    ) -> None:
        """Stores the clusters of ``run``.

        ``vector`` names the vector they were found in; ``fence`` is that of the run's lease.
        """
        parts = self._store.collection(self.collection).parts(vector)
        self._store.upsert(
            self._records,
            [
                Point(
                    point_id(f"cluster/{clustering}/{run}/{c.cluster}"),
                    dict(zip((part.name for part in parts), rows, strict=True)),
                    {
                        **({"part_lengths": lengths} if lengths else {}),
                        "kind": "cluster",
                        "clustering": clustering,
                        "run": run,
                        "cluster": c.cluster,
                        "size": c.size,
                        "cohesion": c.cohesion,
                        "name": c.name,
                        "vector": vector,
                        "fence": fence,
                        "lineage": dict(c.lineage),
                    },
                )
                for c in clusters
                for rows, lengths in [_split(c.centroid, [part.dim for part in parts])]
            ],
        )

    def clusters(self, clustering: str, run: str) -> list[ClusterRecord]:
        """The clusters of ``run`` by ascending id.

        Raises:
            NotFound: there are none: no such run, or one whose clusters were dropped.
        """
        where = of_run("cluster", clustering, run)
        vector = self.vector_name_of(clustering, run)
        dims = [part.dim for part in self._store.collection(self.collection).parts(vector)]
        found = [
            _cluster_record(payload, _together(centroid, payload, dims))
            for block in self._store.scan(self._records, VectorScan(where=where, vector=vector))
            for payload, centroid in zip(block.payloads, block.vectors, strict=True)
        ]
        if not found:
            raise NotFound(
                f"clustering {clustering!r} of {self.collection!r} has no clusters of run {run!r}"
            )
        return sorted(found, key=lambda c: c.cluster)

    def sizes(self, clustering: str, run: str) -> dict[int, int]:
        """The size of each cluster of ``run`` when it ended, by id; NotFound if there are none."""
        options = Scan(where=of_run("cluster", clustering, run), fields=("cluster", "size"))
        found = {
            int(payload["cluster"]): int(payload["size"])  # type: ignore[arg-type]
            for block in self._store.scan(self._records, options)
            for payload in block.payloads
        }
        if not found:
            raise NotFound(f"clustering {clustering!r} has no clusters of run {run!r}")
        return found

    def count_clusters(self, clustering: str, run: str) -> int:
        """The number of clusters of ``run``."""
        return self._store.count(self._records, of_run("cluster", clustering, run))

    def vector_name_of(self, clustering: str, run: str) -> str:
        """The named vector that ``run`` clustered; the collection's first if unknown."""
        options = Scan(where=of_run("cluster", clustering, run), fields=("vector",), block_size=1)
        block = next(iter(self._store.scan(self._records, options)), None)
        name = str(block.payloads[0]["vector"]) if block else ""
        return self._store.collection(self.collection).vector(name).name


def _split(centroid: Vectors, dims: Sequence[int]) -> tuple[list[Vectors], list[Json]]:
    """The parts of a joint vector's ``centroid``, each scaled to length 1, and their lengths.

    The store takes unit vectors only. A centroid of one part stays as it is, without a length.
    """
    if len(dims) == 1:
        return [centroid], []
    parts = np.split(centroid, np.cumsum(dims)[:-1])
    lengths = [float(np.linalg.norm(part)) for part in parts]
    return [
        np.asarray(part / length if length else np.eye(1, len(part))[0], dtype=np.float32)
        for part, length in zip(parts, lengths, strict=True)
    ], list(lengths)


def _together(centroid: Vectors, payload: Payload, dims: Sequence[int]) -> Vectors:
    """The centroid that ``_split`` took apart: the parts joined, each with its length again."""
    lengths = payload.get("part_lengths")
    if not isinstance(lengths, list):
        return centroid
    scale = np.repeat(np.array(lengths, np.float32), dims) * np.float32(np.sqrt(len(dims)))
    return np.asarray(centroid * scale, dtype=np.float32)


def _cluster_record(payload: Payload, centroid: Vectors) -> ClusterRecord:
    lineage = payload.get("lineage")
    return ClusterRecord(
        cluster=int(payload["cluster"]),  # type: ignore[arg-type]
        size=int(payload["size"]),  # type: ignore[arg-type]
        cohesion=float(payload["cohesion"]),  # type: ignore[arg-type]
        centroid=np.ascontiguousarray(centroid, dtype=np.float32),
        lineage=lineage if isinstance(lineage, dict) else {},
        name=str(payload.get("name", "")),
    )
