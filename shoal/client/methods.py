"""What the SDK asks of a run: a method with its parameters, and the rarer options.

The methods mirror ``ClusteringConfig`` of the contract field by field; 0, "" and None mean the
server's default.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from shoal.settings import INTERNAL, Setting
from shoal.values import Gates

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
    coarsest: InitVar[bool] = False
    """The old way to say ``layer="coarsest"``."""

    def __post_init__(self, coarsest: bool) -> None:
        """Takes the old way too."""
        if coarsest:
            _warn_of_the_old_way("coarsest=True", 'layer="coarsest"')
            object.__setattr__(self, "layer", "coarsest")


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
    k_range: InitVar[tuple[int, int]] = (0, 0)
    """The old way to give ``k_min`` and ``k_max``."""

    def __post_init__(self, k_range: tuple[int, int]) -> None:
        """Takes the old way too."""
        if k_range != (0, 0):
            _warn_of_the_old_way("k_range=(A, B)", "k_min=A, k_max=B")
            for name, value in zip(("k_min", "k_max"), k_range, strict=True):
                object.__setattr__(self, name, value)


def _warn_of_the_old_way(old: str, new: str) -> None:
    warnings.warn(f"{old} is written {new} now", DeprecationWarning, stacklevel=4)
