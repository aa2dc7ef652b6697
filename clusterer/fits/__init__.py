"""The methods a run can use: one row each, from options to fit.

The parent plans a fit; the child process (``clusterer.fits.child_main``) reads the plan as JSON,
looks the method up by name and runs it. A new method is one module with its options, ``plan`` and
``run``, and one row here. Its parameters are also a message of the contract, which
``clusterer.messages`` translates, and options of the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Generic, TypeVar

import numpy as np

from clusterer.fits import evoc, gmm, hdbscan, head, kmeans
from clusterer.fits.count.asked import Auto
from clusterer.fits.lsh import LEAST_THRESHOLD, duplicate_groups
from clusterer.fits.models import Model
from clusterer.fits.values import Fit, FitPlan, MethodOptions, Surroundings
from clusterer.heads.store import HeadStore
from shoal.errors import FitFailed, InvalidArgument, NotEnoughPoints
from shoal.store.model import Collection
from shoal.values import VectorInfo
from shoal.vectors import Vectors

__all__ = [
    "LEAVES_NOISE",
    "METHODS",
    "Fit",
    "FitPlan",
    "Method",
    "MethodOptions",
    "Surroundings",
    "choose_vector",
    "keep_fit",
    "plan_fit",
    "plan_from_json",
    "plan_to_json",
    "run_fit",
]


_Options = TypeVar("_Options", bound=MethodOptions)


@dataclass(frozen=True, slots=True)
class Method(Generic[_Options]):
    """One method.

    Attributes:
        options: The class of its options.
        plan: Prepares a fit.
        run: Fits vectors (N, D). Its third argument is the active clusters' centroids; a method
            that can starts from them.
        keep: Gets the plan's options, the fit's model and its facts once the clusters are active;
            None if the method keeps nothing.
        noise: True if its models leave points without a cluster.
    """

    options: type[_Options]
    plan: Callable[[_Options, Surroundings], FitPlan]
    run: Callable[[Vectors, _Options, Vectors | None], Fit]
    keep: Callable[[_Options, Model, Mapping[str, Any]], None] | None = None
    noise: bool = False


DUPLICATE_COSINE: Final = 0.98
"""Two vectors of at least this cosine count once. A JPEG that is saved anew is nearer than this to
its original; no two different ones of 6,400 photographs are, under two encoders
(docs/clustering.md)."""

_METHODS: Final[Mapping[str, Method[Any]]] = {
    "kmeans": Method(kmeans.KMeansOptions, kmeans.plan, kmeans.run),
    "gmm": Method(gmm.GmmOptions, gmm.plan, gmm.run),
    "hdbscan": Method(hdbscan.HdbscanOptions, hdbscan.plan, hdbscan.run, noise=True),
    "evoc": Method(evoc.EvocOptions, evoc.plan, evoc.run, noise=True),
    "scp": Method(head.HeadFitOptions, head.plan, head.run, head.keep),
}

METHODS: Final = tuple(sorted(_METHODS))
"""The names of the methods."""

LEAVES_NOISE: Final = tuple(name for name, method in _METHODS.items() if method.noise)
"""The methods whose models leave points without a cluster."""


def plan_fit(
    options: MethodOptions,
    surroundings: Surroundings | None = None,
    *,
    duplicate_cosine: float | None = None,
) -> FitPlan:
    """The plan of a fit with ``options``; ``surroundings`` are those of a service.

    Points as near as ``duplicate_cosine`` to each other count once; None is the default.

    Raises:
        InvalidArgument: ``duplicate_cosine`` is out of range.
        NotFound, EncoderMismatch: a trained head is not there, or not for these vectors.
        Unsupported: a trained head is asked for where none are kept.
        ConfigError: a package that the method needs is not installed.
    """
    cosine = DUPLICATE_COSINE if duplicate_cosine is None else duplicate_cosine
    if not cosine >= LEAST_THRESHOLD:
        msg = f"duplicate_cosine: expected at least {LEAST_THRESHOLD}, got {cosine:g}"
        raise InvalidArgument(msg, field="config.duplicate_cosine")
    plan = _METHODS[options.method].plan(options, surroundings or Surroundings())
    return replace(plan, duplicate_cosine=cosine)


def plan_to_json(plan: FitPlan) -> dict[str, Any]:
    """``plan`` as JSON, for the child process."""
    return {"method": plan.method, **asdict(plan)}


def plan_from_json(data: Mapping[str, Any]) -> FitPlan:
    """The plan that ``plan_to_json`` made ``data`` of."""
    values = dict(data)
    method, options = _METHODS[values.pop("method")], dict(values.pop("options"))
    if isinstance(options.get("k"), Mapping):
        options["k"] = Auto(**options["k"])
    return FitPlan(method.options(**options), **values)


def choose_vector(
    name: str, options: MethodOptions, collection: Collection, heads: str
) -> VectorInfo:
    """The vector of ``collection`` to cluster: the one called ``name``, a head's, or the first.

    A head's vector is known by its encoder, whatever the vector is called here.

    Raises:
        NotFound: there is no such head.
        InvalidArgument: there is no such vector.
    """
    if name or not isinstance(options, head.HeadFitOptions) or not heads:
        return collection.vector(name)
    wanted = HeadStore(heads).find(options.head).vector
    known = list(collection.vectors)
    with contextlib.suppress(InvalidArgument):
        known.append(collection.vector(wanted.name))
    same = (s for s in known if (s.dim, s.fingerprint) == (wanted.dim, wanted.fingerprint))
    return next(same, collection.vector())


def keep_fit(plan: FitPlan, model: Model, facts: Mapping[str, Any]) -> None:
    """Lets the method keep something of a fit whose clusters have become the active ones.

    Raises:
        ConfigError: it cannot be written.
        Conflict: something newer has taken its place.
    """
    keep = _METHODS[plan.method].keep
    if keep is not None:
        keep(plan.options, model, facts)


def run_fit(plan: FitPlan, vectors: Vectors, warm: Vectors | None) -> Fit:
    """Runs a planned fit on ``vectors`` (N, D), float32 of unit length. For the child process.

    Near-duplicates count once: a hundred copies of a photograph are no dense group. One of them is
    fitted, and all get its label.

    Raises:
        NotEnoughPoints: too few of the vectors are different.
        FitFailed: as the method says.
    """
    method = _METHODS[plan.method]
    if plan.duplicate_cosine > 1:
        return method.run(vectors, plan.options, warm)
    groups = duplicate_groups(vectors, threshold=plan.duplicate_cosine, seed=plan.options.seed)
    kept = np.unique(groups)
    dropped = len(vectors) - len(kept)
    counted = (
        f"({dropped} near-duplicates of {len(vectors)} points counted once; duplicate_cosine 2 "
        "counts all)"
    )
    if dropped and len(kept) < plan.least_points:
        wanted = f"k = {plan.clusters}" if plan.clusters else f"method {plan.method}"
        msg = (
            f"too few different images: {wanted} needs at least {plan.least_points}, got "
            f"{len(kept)} {counted}"
        )
        raise NotEnoughPoints(msg)
    try:
        fit = method.run(np.ascontiguousarray(vectors[kept]), plan.options, warm)
    except FitFailed as exc:
        if not dropped:
            raise
        raise FitFailed(f"{exc.message} {counted}") from exc
    labels = None if fit.labels is None else fit.labels[np.searchsorted(kept, groups)]
    return replace(fit, labels=labels, facts={**fit.facts, "duplicates": dropped})
