"""The SDK's values about clusterings: runs, plans, clusters, duplicates, samples.

``methods`` has what a run is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from shoal.client.values import Hit
from shoal.values import Drift, Json, Lineage


class RunState(StrEnum):
    """The state of a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PLANNED = "planned"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNSPECIFIED = "unspecified"

    @property
    def ended(self) -> bool:
        """True when the run will not change any more."""
        return self not in {RunState.RUNNING, RunState.UNSPECIFIED}


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that a run makes, or would make."""

    points: int
    clusters: int
    moved: int
    moved_share: float
    to_write: int
    noise: int
    silhouette: float | None
    agreement: float | None
    inertia: float
    lineage: tuple[Lineage, ...]
    objections: tuple[str, ...]
    votes: Mapping[str, int] = field(default_factory=dict)
    """The vote of each estimator, if the number of clusters was estimated."""
    votes_disagree: bool = False
    elbow: tuple[tuple[int, float], ...] = ()
    """Inertia by number of clusters."""
    centroid_drift: float | None = None
    duplicates: int = 0
    confidence: float = 0.0
    layers: tuple[int, ...] = ()
    """The number of clusters in each layer of EVoC, finest first."""
    head: str = ""
    """The id of the trained head that was used, after retraining if there was any."""

    @property
    def noise_share(self) -> float:
        """The share of the points that are noise, 0 to 1; 0 if there are no points."""
        return self.noise / self.points if self.points else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one moment. ``config`` is the request's, with the server's defaults filled in."""

    id: str
    collection: str
    clustering: str
    state: RunState
    stage: str
    stage_done: int
    stage_total: int
    points_written: int
    active: bool
    base_run: str
    plan: Plan | None = None
    error_reason: str = ""
    error_message: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Json] = field(default_factory=dict)
    noise_only: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the service makes a clustering anew: at ``cron`` (UTC) or every ``interval_s``.

    With ``only_if_due`` it does so only when the drift says that it is due. The service sets
    ``next_at`` and ``last_run``.
    """

    cron: str = ""
    interval_s: float = 0.0
    only_if_due: bool = False
    next_at: datetime | None = None
    last_run: str = ""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A point of a group of near-duplicates, and its ``cosine`` to the group's first point."""

    id: str
    key: str
    uri: str
    cosine: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Near-duplicates of ``members[0]``, nearest first; ``size`` also counts unlisted members."""

    members: tuple[Duplicate, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Clustering:
    """One clustering of a collection: the run that readers see, and the points since."""

    collection: str
    name: str
    active_run: str
    previous_run: str
    clusters: int
    assigned: int
    unassigned: int
    changed_at: datetime | None
    running: str
    drift: Drift | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of the active run; ``exemplars`` are its medoid and the members nearest to it."""

    id: int
    size: int
    name: str
    cohesion: float
    lineage: Lineage | None
    exemplars: tuple[Hit, ...]
    run: str


@dataclass(frozen=True, slots=True)
class ClusterList:
    """The clusters of the active run, largest first; ``run`` is empty before the first run."""

    run: str
    clusters: tuple[Cluster, ...]
    noise: int
    unassigned: int


@dataclass(frozen=True, slots=True)
class VectorSample:
    """Points of a collection with one of their vectors.

    Attributes:
        vector: The vectors' name.
        fingerprint: Their encoder's.
        ids: N ids.
        vectors: float32 (N, D), unit length.
        uris: N places of the pictures; "" where the place is not known.
    """

    vector: str
    fingerprint: str
    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    uris: tuple[str, ...]
