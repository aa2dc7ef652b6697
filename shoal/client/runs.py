"""What the SDK takes and gives back about clusterings: methods, runs, plans, clusters.

The methods mirror ``ClusteringConfig`` of the contract field by field; 0, "" and None mean the
server's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.client.values import Hit
from shoal.values import Drift, Gates, Json, Lineage


@dataclass(frozen=True, slots=True)
class KMeans:
    """Spherical k-means with ``k`` clusters, or as many as the estimators vote for."""

    k: int | Literal["auto"]
    n_init: int = 0
    max_iterations: int = 0
    mini_batch: int = 0


@dataclass(frozen=True, slots=True)
class Hdbscan:
    """Density clustering after a reduction of dimension (``pca``, ``umap`` or ``none``)."""

    min_cluster_size: int = 0
    min_samples: int = 0
    reduction: str = ""
    reduced_dim: int = 0
    noise_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class GaussianMixture:
    """Gaussian mixture with ``k`` components after PCA."""

    k: int | Literal["auto"]
    reduced_dim: int = 0


@dataclass(frozen=True, slots=True)
class VectorSample:
    """Points of a collection with one of their vectors.

    Attributes:
        vector: The vectors' name.
        fingerprint: Their encoder's.
        ids: N ids.
        vectors: float32 (N, D), unit length.
        uris: Where the pictures lie, N; "" where it is not known.
    """

    vector: str
    fingerprint: str
    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    uris: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScpHead:
    """A trained SCP head, by name or hash; with ``retrain`` it is trained on first."""

    head: str
    retrain: bool = False


@dataclass(frozen=True, slots=True)
class TextCentroids:
    """One cluster around the embedding of each text; ``fixed`` centroids stay there."""

    texts: tuple[str, ...]
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingVectors:
    """EVoC: density clustering made for embedding vectors, in layers, 0 the finest."""

    layer: int | None = None
    min_cluster_size: int = 0
    coarsest: bool = False


Method: TypeAlias = KMeans | Hdbscan | GaussianMixture | ScpHead | TextCentroids | EmbeddingVectors


@dataclass(frozen=True, slots=True)
class Naming:
    """Payload ``fields`` whose typical values name clusters; words, with vectors float32 (D,)."""

    fields: tuple[str, ...] = ()
    vocabulary: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The rarer parts of a run.

    ``gates`` None means the server's; ``plan_only`` stops after the plan; ``force`` cuts over
    even past a gate; ``cold_start`` does not start from the active clusters' centroids.
    ``k_range`` bounds an estimated number of clusters. Points at least as near to each other as
    ``duplicate_cosine`` count once in the fit (None: the server's 0.98; above 1: all count).
    ``noise_only`` clusters only what the active run left as noise. ``naming`` says where the
    clusters' names come from.
    """

    seed: int = 0
    sample_size: int = 0
    vector: str = ""
    cold_start: bool = False
    plan_only: bool = False
    force: bool = False
    gates: Gates | None = None
    k_range: tuple[int, int] = (0, 0)
    duplicate_cosine: float | None = None
    noise_only: bool = False
    naming: Naming | None = None


class RunState(StrEnum):
    """Where a run is."""

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
    """What a run would change."""

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
    """Where the number of clusters was estimated: what each estimator said."""
    votes_disagree: bool = False
    elbow: tuple[tuple[int, float], ...] = ()
    """Inertia by number of clusters."""
    centroid_drift: float | None = None
    duplicates: int = 0
    confidence: float = 0.0
    layers: tuple[int, ...] = ()
    """For EVoC: clusters in each layer, finest first."""
    head: str = ""
    """For a trained head: its id, or that of what became of it."""

    @property
    def noise_share(self) -> float:
        """Share of the points that are noise, 0 to 1; 0 where there are none."""
        return self.noise / self.points if self.points else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run, at one time. ``config`` is as requested, with the server's defaults filled in."""

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
    """When the service makes a clustering anew by itself: ``cron`` (UTC), or every ``interval_s``.

    ``only_if_due``: only when the drift says so. ``next_at`` and ``last_run`` are the service's.
    """

    cron: str = ""
    interval_s: float = 0.0
    only_if_due: bool = False
    next_at: datetime | None = None
    last_run: str = ""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A point of a group of near-duplicates; ``cosine`` is that to the group's first."""

    id: str
    key: str
    uri: str
    cosine: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Near-duplicates of ``members[0]``, nearest first; ``size`` counts those not listed too."""

    members: tuple[Duplicate, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Clustering:
    """One clustering of a collection: which run readers see, and what came in since."""

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
