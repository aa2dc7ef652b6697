"""Clusterings as readers see them: the pointer to the active run, and its cluster records.

They are points of the collection's records collection, so that one conditional write of the
store is all that atomicity needs (docs: README, "Decisions"):

* the *state* of a clustering, one point: which slot and run readers see, the lease of the run
  under way, and the counter of cluster ids;
* one point per cluster of a run, whose vector is the centroid;
* the model of a run, which gives new points their clusters, in pieces.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from shoal.errors import NotFound
from shoal.store.gateway import Store
from shoal.store.model import (
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    Range,
    Scan,
    check_clustering_name,
    other_slot,
    point_id,
    records_name,
    slot_field,
)
from shoal.values import Json
from shoal.vectors import Vectors

_PIECE = 384 * 1024
"""Bytes of a model in one record: 512 KiB as base64, small for any engine's messages."""

__all__ = ["FENCE", "ClusterRecord", "Clusterings", "State", "cluster_of"]

FENCE = "fence"
"""The key, beside a point's slots, of the least fence whose runs may still write them."""


@dataclass(frozen=True, slots=True)
class State:
    """One clustering at one moment. Times are Unix seconds; empty strings mean none.

    ``fence`` grows with every lease; a write that names an older one changes nothing.
    ``previous_run`` is the run whose assignment is intact in the other slot. ``run_noise`` and
    ``run_confidence`` (a mean) are of the points that the active run assigned, ``previous_noise``
    and ``previous_confidence`` those of the run before; the ``newcomers`` came
    after it: how many of them are not noise, and the sum of those' confidences. ``unsettled``:
    a run has begun to write labels and has not flipped; what it sent may still be on its way.
    """

    clustering: str
    active_slot: str = "a"
    active_run: str = ""
    previous_run: str = ""
    changed_at: float = 0.0
    next_cluster: int = 0
    fence: int = 0
    lease_owner: str = ""
    lease_run: str = ""
    lease_expires: float = 0.0
    rollback_request: str = ""
    run_noise: int = 0
    run_confidence: float = 0.0
    previous_noise: int = 0
    previous_confidence: float = 0.0
    newcomers_clustered: int = 0
    newcomers_confidence: float = 0.0
    unsettled: bool = False

    def leased(self, now: float) -> bool:
        """Whether somebody holds the lease at ``now``: an expired one is a dead run's."""
        return bool(self.lease_run) and self.lease_expires >= now

    @property
    def active_field(self) -> str:
        """The payload field that readers follow."""
        return slot_field(self.clustering, self.active_slot)

    @property
    def inactive_slot(self) -> str:
        """The slot that a run may write."""
        return other_slot(self.active_slot)

    @property
    def inactive_field(self) -> str:
        """The payload field that a run may write."""
        return slot_field(self.clustering, self.inactive_slot)

    @property
    def fence_field(self) -> str:
        """The payload field with the least fence whose runs may still write a point's labels."""
        return slot_field(self.clustering, FENCE)


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """One cluster of one run. ``size`` and ``cohesion`` are those of its assignment pass.

    ``lineage`` is ``{"kind": str, "related": [int], "overlap": float}``.
    """

    cluster: int
    size: int
    cohesion: float
    centroid: Vectors
    lineage: Mapping[str, Json]
    name: str = ""


def cluster_of(payload: Payload, clustering: str, slot: str) -> int | None:
    """The cluster id in ``payload``'s slot; None when the point is not assigned there."""
    value: Json = payload.get("clusters")
    for key in (clustering, slot):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value if isinstance(value, int) else None


class Clusterings:
    """The clusterings of one collection, in the store. Thread-safe like the store."""

    def __init__(self, store: Store, collection: str) -> None:
        self._store = store
        self.collection = collection
        self._records = records_name(collection)

    def state(self, clustering: str = "") -> State:
        """The state of ``clustering``; that of one never run if it has none yet.

        Raises:
            NotFound: the collection does not exist.
        """
        clustering = check_clustering_name(clustering)
        (record,) = self._store.retrieve(self._records, [_state_id(clustering)])
        if record is None:
            self._store.collection(self.collection)
            return State(clustering)
        known = {f.name for f in fields(State)}
        return State(**{k: v for k, v in record.payload.items() if k in known})  # type: ignore[arg-type]

    def ensure(self, clustering: str) -> State:
        """The state of ``clustering``, made if it is new, with its slots indexed."""
        clustering = check_clustering_name(clustering)
        if clustering not in self._store.collection(self.collection).clusterings:
            self._store.ensure_clustering(self.collection, clustering)
        initial: Payload = {"kind": "clustering", **asdict(State(clustering))}
        self._store.upsert(
            self._records, [Point(_state_id(clustering), {}, initial)], insert_only=True
        )
        return self.state(clustering)

    def compare_and_set(
        self, clustering: str, changes: Payload, *expected: Equals, where: Filter | None = None
    ) -> State:
        """Sets ``changes`` if every ``expected`` field still holds; returns what is there then.

        The comparison and the write are one operation of the store.
        """
        condition = (where or Filter()).also(IdIn([_state_id(clustering)]), *expected)
        self._store.set_payload(self._records, changes, where=condition)
        return self.state(clustering)

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

        ``vector`` names the vector they were found in, ``fence`` is that of the run's lease.
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

    def put_model(self, clustering: str, run: str, model: bytes, *, fence: int) -> None:
        """Stores what assigns points as ``run`` did, in pieces; ``fence`` as for its clusters."""
        pieces = range(0, len(model), _PIECE)
        self._store.upsert(
            self._records,
            [
                Point(
                    point_id(f"model/{clustering}/{run}/{at}"),
                    {},
                    {
                        "kind": "model",
                        "clustering": clustering,
                        "run": run,
                        "fence": fence,
                        "offset": at,
                        "data": base64.b64encode(model[at : at + _PIECE]).decode(),
                    },
                )
                for at in pieces
            ],
        )

    def model(self, clustering: str, run: str) -> bytes:
        """What ``put_model`` stored; empty if nothing is stored for ``run``."""
        where = _records_where("model", clustering, run)
        found = [p for b in self._store.scan(self._records, Scan(where=where)) for p in b.payloads]
        found.sort(key=lambda payload: int(payload["offset"]))  # type: ignore[arg-type]
        return b"".join(base64.b64decode(str(payload["data"])) for payload in found)

    def clusters(self, clustering: str, run: str) -> list[ClusterRecord]:
        """The clusters of ``run`` by ascending id.

        Raises:
            NotFound: there are none: no such run, or one whose clusters were dropped.
        """
        where = _clusters_where(clustering, run)
        vector = self.vector_name_of(clustering, run)
        dims = [part.dim for part in self._store.collection(self.collection).parts(vector)]
        found = [
            _cluster_record(payload, _together(centroid, payload, dims))
            for block in self._store.scan(self._records, Scan(where=where, vector=vector))
            if block.vectors is not None
            for payload, centroid in zip(block.payloads, block.vectors, strict=True)
        ]
        if not found:
            raise NotFound(
                f"clustering {clustering!r} of {self.collection!r} has no clusters of run {run!r}"
            )
        return sorted(found, key=lambda c: c.cluster)

    def sizes(self, clustering: str, run: str) -> dict[int, int]:
        """The size of each cluster of ``run`` when it ended, by id; NotFound if there are none."""
        options = Scan(where=_clusters_where(clustering, run), fields=("cluster", "size"))
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
        return self._store.count(self._records, _clusters_where(clustering, run))

    def vector_name_of(self, clustering: str, run: str) -> str:
        """The named vector that ``run`` clustered; the collection's first if unknown."""
        options = Scan(where=_clusters_where(clustering, run), fields=("vector",), block_size=1)
        block = next(iter(self._store.scan(self._records, options)), None)
        name = str(block.payloads[0]["vector"]) if block else ""
        return self._store.collection(self.collection).vector(name).name

    def drop_clusters_except(self, clustering: str, runs: Sequence[str], *, fence: int) -> None:
        """Deletes clusters and models of every run before ``fence`` but ``runs``."""
        for kind in ("cluster", "model"):
            where = Filter(
                must=(
                    Equals("kind", kind),
                    Equals("clustering", clustering),
                    Range("fence", lt=fence),
                ),
                must_not=tuple(Equals("run", run) for run in runs if run),
            )
            self._store.delete(self._records, where)

    def put_schedule(self, clustering: str, payload: Payload | None) -> None:
        """Stores the schedule of ``clustering``; None removes it."""
        if payload is None:
            self._store.delete(self._records, Filter(must=(IdIn([_schedule_id(clustering)]),)))
            return
        record = {**payload, "kind": "schedule", "clustering": clustering}
        self._store.upsert(self._records, [Point(_schedule_id(clustering), {}, record)])

    def due_schedules(self, now: float) -> list[str]:
        """The clusterings whose stored schedule has a ``next_at`` of ``now`` or before."""
        where = Filter(must=(Equals("kind", "schedule"), Range("next_at", lte=now)))
        options = Scan(where=where, fields=("clustering",))
        blocks = self._store.scan(self._records, options)
        return sorted(str(payload["clustering"]) for b in blocks for payload in b.payloads)

    def move_schedule(self, clustering: str, expected: float, changes: Payload) -> None:
        """Sets ``changes`` in the stored schedule if its ``next_at`` is still ``expected``."""
        where = Filter(
            must=(
                IdIn([_schedule_id(clustering)]),
                Range("next_at", gte=expected, lte=expected),
            )
        )
        self._store.set_payload(self._records, changes, where=where)

    def schedule(self, clustering: str) -> Payload | None:
        """What ``put_schedule`` stored; None if there is none."""
        (record,) = self._store.retrieve(self._records, [_schedule_id(clustering)])
        return record.payload if record else None

    def put_run(self, run: str, payload: Payload) -> None:
        """Stores the record of ``run``; ``payload`` must carry clustering and created_at."""
        self._store.upsert(
            self._records, [Point(_run_id(run), {}, {**payload, "kind": "run", "run": run})]
        )

    def drop_runs(self, runs: Sequence[str]) -> None:
        """Forgets the records of ``runs``; unknown ones are ignored."""
        if runs:
            self._store.delete(self._records, Filter(must=(IdIn([_run_id(run) for run in runs]),)))

    def run(self, run: str) -> Payload:
        """The record of ``run``.

        Raises:
            NotFound: there is none.
        """
        (record,) = self._store.retrieve(self._records, [_run_id(run)])
        if record is None:
            self._store.collection(self.collection)
            raise NotFound(f"collection {self.collection!r} has no run {run!r}", run=run)
        return record.payload

    def runs(self, clustering: str = "") -> list[Payload]:
        """The records of all runs, of one clustering if named, newest first."""
        self._store.collection(self.collection)
        where = Filter(must=(Equals("kind", "run"),))
        if clustering:
            where = where.also(Equals("clustering", clustering))
        found = [p for b in self._store.scan(self._records, Scan(where=where)) for p in b.payloads]
        return sorted(found, key=lambda p: (-float(p["created_at"]), str(p["run"])))  # type: ignore[arg-type]


def _state_id(clustering: str) -> str:
    return point_id(f"state/{clustering}")


def _schedule_id(clustering: str) -> str:
    return point_id(f"schedule/{clustering}")


def _run_id(run: str) -> str:
    return point_id(f"run/{run}")


def _clusters_where(clustering: str, run: str) -> Filter:
    return _records_where("cluster", clustering, run)


def _records_where(kind: str, clustering: str, run: str) -> Filter:
    return Filter(must=(Equals("kind", kind), Equals("clustering", clustering), Equals("run", run)))


def _split(centroid: Vectors, dims: Sequence[int]) -> tuple[list[Vectors], list[Json]]:
    """A centroid of a joint vector as its parts, scaled to length 1 as the store has it.

    And how long they were; one part is as it was.
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
    """The centroid that ``_split`` made parts of: joined, each part as long as it was."""
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
