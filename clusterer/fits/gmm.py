"""A Gaussian mixture with diagonal covariances on principal components, by scikit-learn.

The vectors are first reduced to at most 64 components: in hundreds of dimensions a covariance
cannot be estimated, and every posterior is 0 or 1.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from clusterer.fits.count.asked import AskedCount, check_count, count_clusters, fewest
from clusterer.fits.models import Mixture
from clusterer.fits.reduction import check_dim, principal_components
from clusterer.fits.values import Fit, FitPlan, Surroundings
from clusterer.nearest import directions
from shoal.errors import FitFailed, NotEnoughPoints
from shoal.vectors import Vectors

MAX_DIM: Final = 64
DEFAULT_DIM: Final = 16
"""The default number of components. On three sets of photographs under two encoders 8 to 32 are
alike; with 64 every posterior is 0 or 1 (NMI .78 instead of .89 on one of the sets)."""

_STARTS: Final = 3
"""Starts from k-means; the likeliest is kept."""

_VARIANCE_FLOOR: Final = 1e-6
"""A number that is added to every variance: identical vectors would have a variance of 0.
Components of unit vectors have variances of 1e-3 and more."""


@dataclass(frozen=True, slots=True)
class GmmOptions:
    """``k`` components on ``dim`` principal components.

    Raises:
        InvalidArgument: a value is out of range.
    """

    method: ClassVar[str] = "gmm"

    k: AskedCount
    dim: int = DEFAULT_DIM
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.k, method=self.method)
        check_dim(self.dim, most=MAX_DIM, method=self.method)


def plan(options: GmmOptions, _: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``."""
    return FitPlan(options, least_points=max(2, fewest(options.k)))


def run(vectors: Vectors, options: GmmOptions, warm: Vectors | None) -> Fit:
    """The fit of planned ``options`` on ``vectors`` (N, D); ``warm`` is not used."""
    del warm
    k, facts = count_clusters(vectors, options.k, seed=options.seed)
    if k > len(vectors):
        raise NotEnoughPoints(f"k = {k} is larger than the number of points, {len(vectors)}")
    model, ended = fit_mixture(vectors, k, dim=options.dim, seed=options.seed)
    return Fit(model, facts={**facts, **ended})


def fit_mixture(vectors: Vectors, k: int, *, dim: int, seed: int) -> tuple[Mixture, dict[str, Any]]:
    """A mixture of at most ``k`` components on at most ``dim`` principal components.

    Returns:
        The mixture, and facts: the mean log-likelihood of ``vectors`` (N, D), and whether the fit
        converged.

    Raises:
        FitFailed: a component has no direction.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - takes a second
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415 - as above

    reduced = principal_components(vectors, dim, seed=seed)
    with warnings.catch_warnings():
        # It warns if there are fewer different vectors than k; the facts say if EM converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GaussianMixture(
            k,
            covariance_type="diag",
            n_init=_STARTS,
            reg_covar=_VARIANCE_FLOOR,
            random_state=seed % 2**32,
        ).fit(reduced.points)
    # A component without vectors is dropped: there are fewer different vectors than components.
    kept = np.unique(found.predict(reduced.points))
    means = found.means_[kept]
    centroids = directions(reduced.mean + means @ reduced.axes)
    if len(centroids) < len(kept):
        raise FitFailed("a component's mean has no direction: the vectors cancel out")
    model = Mixture(
        centroids=centroids,
        mean=reduced.mean,
        axes=reduced.axes,
        means=means,
        variances=found.covariances_[kept],
        log_weights=np.log(found.weights_[kept]),
    )
    ended = {"log_likelihood": float(found.lower_bound_), "converged": bool(found.converged_)}
    return model, ended
