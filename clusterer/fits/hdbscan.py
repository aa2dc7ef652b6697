"""HDBSCAN (Campello, Moulavi & Sander 2013) by the hdbscan package, after a reduction.

The vectors are first reduced to at most 50 dimensions: in hundreds of them HDBSCAN does not end in
hours. The labels of the points that were fitted are the package's own, noise included.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from clusterer.fits.prototypes import cover
from clusterer.fits.reduction import check_dim, principal_components, umap
from clusterer.fits.values import Fit, FitPlan, Surroundings
from shoal.errors import ConfigError, InvalidArgument
from shoal.vectors import Labels, Vectors

MAX_DIM: Final = 50
LEAST_CLUSTER: Final = 5
"""The smallest default of the least size of a cluster."""

DEFAULT_MIN_SAMPLES: Final = 5
"""The default number of neighbours of a core point. hdbscan's own default is min_cluster_size: on
photographs under two encoders it leaves up to twice as much noise, and clusters no set better."""

Reduction: TypeAlias = Literal["pca", "umap", "none"]
REDUCTIONS: Final = get_args(Reduction)


@dataclass(frozen=True, slots=True)
class HdbscanOptions:
    """The options of HDBSCAN.

    Attributes:
        min_cluster_size: The least size of a cluster; 0 chooses it by the number of points.
        min_samples: Neighbours of a core point.
        reduction: How the vectors are reduced.
        dim: Dimensions after the reduction.
        noise_threshold: The least cosine of a new point to a prototype of its cluster; None
            chooses it for each cluster by its members.
        seed: Seed of everything random.

    Raises:
        InvalidArgument: a value is out of range.
    """

    method: ClassVar[str] = "hdbscan"

    min_cluster_size: int = 0
    min_samples: int = DEFAULT_MIN_SAMPLES
    reduction: Reduction = "pca"
    dim: int = MAX_DIM
    noise_threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            msg = f"reduction: expected one of {', '.join(REDUCTIONS)}, got {self.reduction!r}"
            raise InvalidArgument(msg, field="config.hdbscan.reduction")
        if self.min_cluster_size == 1:
            msg = "min_cluster_size: expected at least 2, got 1"
            raise InvalidArgument(msg, field="config.hdbscan.min_cluster_size")
        check_dim(self.dim, most=MAX_DIM, method=self.method)
        if self.noise_threshold is not None and not -1 <= self.noise_threshold <= 1:
            msg = f"noise_threshold: expected a cosine, -1 to 1, got {self.noise_threshold:g}"
            raise InvalidArgument(msg, field="config.hdbscan.noise_threshold")


def plan(options: HdbscanOptions, _: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``."""
    return FitPlan(options, least_points=max(2, options.min_cluster_size))


def run(vectors: Vectors, options: HdbscanOptions, warm: Vectors | None) -> Fit:
    """The fit of planned ``options`` on ``vectors`` (N, D); ``warm`` is not used."""
    del warm
    size = options.min_cluster_size or default_cluster_size(len(vectors))
    labels = hdbscan_labels(_reduced(vectors, options), size, min_samples=options.min_samples)
    model = cover(vectors, labels, threshold=options.noise_threshold, seed=options.seed)
    return Fit(model, labels, {"min_cluster_size": size})


def default_cluster_size(n: int) -> int:
    """The default least size of a cluster of ``n`` points: half their root, 5 at least."""
    return max(LEAST_CLUSTER, round(math.sqrt(n) / 2))


def hdbscan_labels(points: npt.NDArray[np.floating], size: int, *, min_samples: int) -> Labels:
    """The package's labels of ``points`` (N, P): int32 (N,), noise -1.

    Raises:
        ConfigError: the package hdbscan is not installed.
    """
    try:
        from hdbscan import HDBSCAN  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as exc:
        msg = f"method hdbscan needs {exc.name}: pip install 'shoal[cluster]'"
        raise ConfigError(msg, package=str(exc.name)) from exc
    model = HDBSCAN(
        min_cluster_size=size,
        min_samples=min(min_samples, len(points)),
        core_dist_n_jobs=1,  # more would start processes, which is slower at this size
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # hdbscan's use of scikit-learn
        return np.asarray(model.fit_predict(points), dtype=np.int32)


def _reduced(vectors: Vectors, options: HdbscanOptions) -> npt.NDArray[np.floating]:
    if options.reduction == "none" or options.dim >= min(vectors.shape):
        return vectors.astype(np.float64)
    if options.reduction == "umap":
        return umap(vectors, options.dim, seed=options.seed)
    return principal_components(vectors, options.dim, seed=options.seed).points
