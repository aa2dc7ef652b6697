"""The methods a run can use: one row each, from request message to fit.

The parent checks the request and turns it into plain options; the child process
(``clusterer.fit``) looks the method up by name and runs it. A new method is one module with a
``fit`` and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shoal.errors import InvalidArgument, Unsupported
from shoal.v1 import clusterer_pb2 as pb
from shoal.vectors import Vectors

MAX_CLUSTERS = 100_000


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found: ``centroids`` float32 (K, D), unit length; ``facts`` for the log."""

    centroids: Vectors
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: the row's name, its options as JSON, and the fewest points it can use."""

    method: str
    options: Mapping[str, Any]
    least_points: int


def plan_fit(config: pb.ClusteringConfig) -> Plan:
    """Checks the method and its parameters.

    Raises:
        InvalidArgument: no method, or a parameter out of range.
        Unsupported: a method of the contract that this version does not have.
    """
    method = config.WhichOneof("method")
    if method is None:
        raise InvalidArgument("config: expected a method, got none", field="config.method")
    if method not in _PLANS:
        known = ", ".join(sorted(_PLANS))
        raise Unsupported(f"method {method!r} is not available: expected one of {known}")
    return _PLANS[method](config)


def run_fit(method: str, vectors: Vectors, options: Mapping[str, Any], warm: Vectors | None) -> Fit:
    """Runs a planned fit on ``vectors`` (N, D), float32 of unit length. For the child process."""
    return _FITS[method](vectors, options, warm)


def _plan_kmeans(config: pb.ClusteringConfig) -> Plan:
    from clusterer.kmeans import KMeansOptions  # noqa: PLC0415 - scikit-learn takes a second

    wanted = config.kmeans
    if wanted.WhichOneof("count") != "k":
        raise Unsupported("kmeans: expected k, a number of clusters; it cannot be estimated yet")
    if wanted.mini_batch:
        raise Unsupported("kmeans: mini-batches are not available yet: expected mini_batch 0")
    if not 1 <= wanted.k <= MAX_CLUSTERS:
        raise InvalidArgument(
            f"k: expected 1 to {MAX_CLUSTERS}, got {wanted.k}", field="config.kmeans.k"
        )
    options = KMeansOptions(
        wanted.k,
        n_init=wanted.n_init,
        max_iterations=wanted.max_iterations or KMeansOptions(1).max_iterations,
        seed=config.seed,
    )
    return Plan("kmeans", asdict(options), least_points=wanted.k)


def _fit_kmeans(vectors: Vectors, options: Mapping[str, Any], warm: Vectors | None) -> Fit:
    from clusterer.kmeans import KMeansOptions, fit  # noqa: PLC0415 - scikit-learn takes a second

    found = fit(vectors, KMeansOptions(**options), warm=warm)
    return Fit(found.centroids, {"inertia": found.inertia, "warm": float(found.warm)})


_PLANS: Mapping[str, Callable[[pb.ClusteringConfig], Plan]] = {"kmeans": _plan_kmeans}
_FITS: Mapping[str, Callable[[Vectors, Mapping[str, Any], Vectors | None], Fit]] = {
    "kmeans": _fit_kmeans
}
