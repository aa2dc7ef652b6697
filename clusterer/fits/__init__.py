"""The methods a run can use: one row each, from request message to fit.

The parent checks the request and turns it into plain options; the child process
(``clusterer.fits.child_main``) looks the method up by name and runs it. A new method is one module
with ``plan`` and ``run``, and one row here; its parameters are a message of the contract and
options of the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from clusterer.fits import evoc, gmm, hdbscan, head, kmeans
from clusterer.fits.lsh import LEAST_THRESHOLD, duplicate_groups
from clusterer.fits.models import Model
from clusterer.fits.values import Fit, FitPlan, Surroundings
from clusterer.heads.store import HeadStore
from shoal.errors import FitFailed, InvalidArgument, Unsupported
from shoal.store.model import Collection
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import VectorInfo
from shoal.vectors import Vectors

__all__ = [
    "LEAVES_NOISE",
    "Fit",
    "FitPlan",
    "Method",
    "Surroundings",
    "choose_vector",
    "keep_fit",
    "plan_fit",
    "run_fit",
]


@dataclass(frozen=True, slots=True)
class Method:
    """``plan`` checks a request; ``run`` fits vectors (N, D) with a plan's options.

    ``run``'s third argument is the active clusters' centroids, to start from if it can. ``keep``,
    if there is one, gets the plan's options, the fit's model and its facts once the clusters are
    the active ones. ``noise``: its models leave points without a cluster.
    """

    plan: Callable[[pb.ClusteringConfig, Surroundings], FitPlan]
    run: Callable[[Vectors, Mapping[str, Any], Vectors | None], Fit]
    keep: Callable[[Mapping[str, Any], Model, Mapping[str, Any]], None] | None = None
    noise: bool = False


DUPLICATE_COSINE: Final = 0.98
"""From here on two vectors count once. A JPEG saved anew is nearer than that to its original; of
6,400 photographs under two encoders no two different ones were (README)."""

_METHODS: Final[Mapping[str, Method]] = {
    "kmeans": Method(kmeans.plan, kmeans.run),
    "gmm": Method(gmm.plan, gmm.run),
    "hdbscan": Method(hdbscan.plan, hdbscan.run, noise=True),
    "evoc": Method(evoc.plan, evoc.run, noise=True),
    "scp": Method(head.plan, head.run, head.keep),
}

LEAVES_NOISE: Final = tuple(name for name, method in _METHODS.items() if method.noise)
"""The methods whose models leave points without a cluster."""


def plan_fit(config: pb.ClusteringConfig, surroundings: Surroundings | None = None) -> FitPlan:
    """Checks the method and its parameters; ``surroundings`` are those of a service.

    Raises:
        InvalidArgument: no method, or a parameter out of range.
        NotFound, EncoderMismatch: a trained head is not there, or not for these vectors.
        Unsupported: a method of the contract that this version does not have.
    """
    method = config.WhichOneof("method")
    if method is None:
        raise InvalidArgument("config: expected a method, got none", field="config.method")
    if method not in _METHODS:
        known = ", ".join(sorted(_METHODS))
        raise Unsupported(f"method {method!r} is not available: expected one of {known}")
    threshold = DUPLICATE_COSINE
    if config.HasField("duplicate_cosine"):
        threshold = config.duplicate_cosine
        if not threshold >= LEAST_THRESHOLD:
            msg = f"duplicate_cosine: expected at least {LEAST_THRESHOLD}, got {threshold:g}"
            raise InvalidArgument(msg, field="config.duplicate_cosine")
    plan = _METHODS[method].plan(config, surroundings or Surroundings())
    return replace(plan, duplicate_cosine=threshold, seed=config.seed)


def choose_vector(config: pb.ClusteringConfig, collection: Collection, heads: str) -> VectorInfo:
    """Which vector of ``collection`` to cluster: as ``config`` says, that of a head, or the first.

    A head's is known by its encoder, whatever it is called here.

    Raises:
        NotFound: there is no such head.
        InvalidArgument: there is no such vector.
    """
    if config.vector or config.WhichOneof("method") != "scp" or not heads or not config.scp.head:
        return collection.vector(config.vector)
    wanted = HeadStore(heads).find(config.scp.head).vector
    known = list(collection.vectors)
    with contextlib.suppress(InvalidArgument):
        known.append(collection.vector(wanted.name))
    same = (s for s in known if (s.dim, s.fingerprint) == (wanted.dim, wanted.fingerprint))
    return next(same, collection.vector())


def keep_fit(plan: FitPlan, model: Model, facts: Mapping[str, Any]) -> None:
    """Keeps what the method wants to keep of a fit whose clusters have become the active ones.

    Raises:
        ConfigError: it cannot be written.
    """
    keep = _METHODS[plan.method].keep
    if keep is not None:
        keep(plan.options, model, facts)


def run_fit(plan: FitPlan, vectors: Vectors, warm: Vectors | None) -> Fit:
    """Runs a planned fit on ``vectors`` (N, D), float32 of unit length. For the child process.

    Near-duplicates count once: a photograph that came in a hundred times is no dense group. Each
    gets the label of the one that stood for it.
    """
    method = _METHODS[plan.method]
    if plan.duplicate_cosine > 1:
        return method.run(vectors, plan.options, warm)
    groups = duplicate_groups(vectors, threshold=plan.duplicate_cosine, seed=plan.seed)
    kept = np.unique(groups)
    if len(kept) < plan.least_points:  # too few different ones: then all count
        return method.run(vectors, plan.options, warm)
    dropped = len(vectors) - len(kept)
    try:
        fit = method.run(np.ascontiguousarray(vectors[kept]), plan.options, warm)
    except FitFailed as exc:
        if not dropped:
            raise
        counted = f"{dropped} near-duplicates of {len(vectors)} points counted once"
        msg = f"{exc.message} ({counted}; duplicate_cosine 2 counts all)"
        raise FitFailed(msg) from exc
    labels = None if fit.labels is None else fit.labels[np.searchsorted(kept, groups)]
    return replace(fit, labels=labels, facts={**fit.facts, "duplicates": dropped})
