"""Reductions to fewer dimensions, for methods that cannot work in hundreds of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.errors import ConfigError, InvalidArgument
from shoal.vectors import Vectors

LEAST_DIM: Final = 2
_UMAP_NEIGHBOURS: Final = 15
"""UMAP's own default."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """Principal components: ``points`` = (x - ``mean``) ``axes``^T.

    ``points`` float64 (N, P), ``mean`` float64 (D,), ``axes`` float64 (P, D), orthonormal rows.
    """

    points: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]


def check_dim(dim: int, *, most: int, method: str) -> None:
    """Checks the dimension that a request for ``method`` names; InvalidArgument if out of range."""
    if not LEAST_DIM <= dim <= most:
        msg = f"reduced_dim: expected {LEAST_DIM} to {most}, got {dim}"
        raise InvalidArgument(msg, field=f"config.{method}.reduced_dim")


def principal_components(vectors: Vectors, dim: int, *, seed: int) -> Reduced:
    """The first ``dim`` principal components of ``vectors`` (N, D), fewer if N or D is smaller."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 - takes a second

    found = PCA(min(dim, *vectors.shape), random_state=seed % 2**32).fit(vectors.astype(np.float64))
    mean, axes = found.mean_, found.components_
    return Reduced((vectors - mean) @ axes.T, mean, axes)


def umap(vectors: Vectors, dim: int, *, seed: int) -> npt.NDArray[np.float64]:
    """UMAP of ``vectors`` (N, D) to (N, ``dim``), by cosine, in one thread: seeds are repeatable.

    Raises:
        ConfigError: the package umap-learn is not installed.
    """
    try:
        from umap import UMAP  # noqa: PLC0415 - an extra, and it compiles for a minute
    except ImportError as exc:
        msg = f"reduction umap needs {exc.name}: pip install 'shoal[umap]'; or use pca"
        raise ConfigError(msg, package=str(exc.name)) from exc
    neighbours = min(_UMAP_NEIGHBOURS, len(vectors) - 1)
    made = UMAP(
        n_components=dim,
        n_neighbors=neighbours,
        min_dist=0.0,  # for clustering: let what is near lie together
        metric="cosine",
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return np.asarray(made.fit_transform(vectors), dtype=np.float64)
