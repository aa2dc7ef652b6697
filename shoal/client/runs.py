"""The SDK's values about clusterings: methods, runs, plans, clusters.

The methods mirror ``ClusteringConfig`` of the contract field by field; 0, "" and None mean the
server's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from shoal.client.values import Hit
from shoal.settings import INTERNAL, Setting
from shoal.values import Drift, Gates, Json, Lineage

Count: TypeAlias = Annotated[int | Literal["auto"], Interval(ge=1, le=100_000)]
"""A number of clusters within the contract's limit, or ``auto``."""
Whole: TypeAlias = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""What a uint32 of the contract holds."""


@dataclass(frozen=True, slots=True)
class KMeans:
    """Spherical k-means."""

    k: Annotated[Count, Setting("-k")]
    """A number of clusters, or auto: estimators vote for it."""
    n_init: Whole = 0
    """Starts, of which the best is kept. 0: by size."""
    max_iterations: Annotated[Whole, INTERNAL] = 0
    """Iterations of one start at most. 0: the server's limit."""
    mini_batch: Whole = 0
    """Points of a batch. 0: no batches, all points at once."""


@dataclass(frozen=True, slots=True)
class Hdbscan:
    """Density clustering after a reduction of dimension."""

    min_cluster_size: Whole = 0
    """Fewest points of a cluster. 0: by size."""
    min_samples: Whole = 0
    """Neighbours that make a core point. 0: 5."""
    reduction: Literal["", "pca", "umap", "none"] = ""
    """How the vectors are reduced. Default: pca."""
    reduced_dim: Whole = 0
    """Dimensions after the reduction. 0: 50."""
    noise_threshold: Annotated[float, Interval(ge=-1, le=1)] | None = None
    """Cosine below which a new point is noise. Default: by the members."""


@dataclass(frozen=True, slots=True)
class GaussianMixture:
    """Gaussian mixture after PCA."""

    k: Annotated[Count, Setting("-k")]
    """A number of clusters, or auto: estimators vote for it."""
    reduced_dim: Whole = 0
    """Dimensions after the reduction. 0: 16."""


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


@dataclass(frozen=True, slots=True)
class ScpHead:
    """A trained head."""

    head: Annotated[str, Setting(metavar="NAME")]
    """A head of `shoal train`: its name, id or hash."""
    retrain: bool = False
    """Train the head on first; the server needs PyTorch for that."""


@dataclass(frozen=True, slots=True)
class TextCentroids:
    """One cluster around the embedding of each text."""

    texts: Annotated[tuple[str, ...], Setting("--text")]
    """A cluster's text."""
    fixed: Annotated[bool, INTERNAL] = False
    """Whether the centroids stay at the texts' embeddings."""


@dataclass(frozen=True, slots=True)
class EmbeddingVectors:
    """EVoC: density clustering made for embedding vectors, in layers."""

    layer: Whole | Literal["coarsest"] | None = None
    """Which layer, 0 the finest, or coarsest. Default: the most persistent."""
    min_cluster_size: Whole = 0
    """Fewest points of a cluster. 0: 5."""


Method: TypeAlias = KMeans | Hdbscan | GaussianMixture | ScpHead | TextCentroids | EmbeddingVectors


@dataclass(frozen=True, slots=True)
class Naming:
    """The sources of clusters' names.

    Clusters are named after the typical values of the payload ``fields``, and then after the
    nearest words of the ``vocabulary``, each with its vector float32 (D,).
    """

    fields: tuple[str, ...] = ()
    vocabulary: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The rarer parts of a run."""

    k_min: Whole = 0
    """Fewest clusters of -k auto. 0: 2."""
    k_max: Whole = 0
    """Most clusters of -k auto. 0: the server's 200."""
    seed: Annotated[int, Interval(ge=0, le=2**64 - 1)] = 0
    """Seed of everything random."""
    vector: Annotated[str, Setting(metavar="NAME")] = ""
    """Which of the collection's named vectors to cluster. Default: its first."""
    sample_size: Whole = 0
    """Most points that the fit looks at. 0: the server's limit."""
    cold_start: bool = False
    """Do not start from the active clusters."""
    duplicate_cosine: Annotated[float, Interval(ge=0.9, le=2)] | None = None
    """Points at least this near to each other count once in the fit; above 1 all count. Default:
    0.98."""
    noise_only: bool = False
    """Cluster only the noise of the active run; everything else stays as it is."""
    gates: Gates | None = None
    """Thresholds past which the plan is refused; None for the server's."""
    plan_only: Annotated[bool, Setting("--plan")] = False
    """Stop after the plan; change nothing."""
    force: bool = False
    """Cut over even if the plan is past a gate."""
    naming: Annotated[Naming | None, INTERNAL] = None
    """Where the clusters' names come from."""


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
