"""A run's request, its task, its means and its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from clusterer.config import ClustererConfig
from clusterer.fits import LEAVES_NOISE, FitPlan, MethodOptions
from clusterer.fits.child import Fitter
from clusterer.runs.naming import NameSources, Word, naming_of
from clusterer.runs.plan import Plan
from shoal.errors import InvalidArgument, NotEnoughPoints
from shoal.store.gateway import Store
from shoal.store.model import check_clustering_name
from shoal.values import Gates, VectorInfo


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A caller's request for a run, before anything is looked up.

    Attributes:
        run: The id that the run will have.
        repeatable: Whether the caller gave the id: the run may be known already.
        collection: The collection.
        clustering: The clustering; empty for the default one.
        method: The options of the method.
        vector: The name of the vector to cluster; empty for the default one.
        sample_size: The most points that the fit looks at; 0 for the service's default.
        seed: The seed of everything random.
        duplicate_cosine: Points as near as this count once in the fit; None for the default.
        warm_start: Whether the fit starts from the active clusters, if the method can.
        plan_only: Whether the run stops after the plan.
        force: Whether the run goes live even past a gate.
        gates: The thresholds past which a plan is refused; None for the service's.
        noise_only: Whether only the noise of the active run is clustered.
        fields: Payload fields that name clusters.
        vocabulary: Words that name clusters.
    """

    run: str
    repeatable: bool
    collection: str
    clustering: str
    method: MethodOptions
    vector: str
    sample_size: int
    seed: int
    duplicate_cosine: float | None
    warm_start: bool
    plan_only: bool
    force: bool
    gates: Gates | None
    noise_only: bool
    fields: tuple[str, ...]
    vocabulary: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A checked request for a run, of which everything is known.

    ``vector`` is the name of the vector to cluster.
    """

    run: str
    collection: str
    clustering: str
    vector: str
    fit_plan: FitPlan
    sample_size: int
    seed: int
    warm_start: bool
    plan_only: bool
    force: bool
    gates: Gates
    noise_only: bool = False
    naming: NameSources = field(default_factory=NameSources)


def task_of(
    request: RunRequest,
    vector: VectorInfo,
    fit_plan: FitPlan,
    *,
    sample_size: int,
    default_gates: Gates,
) -> Task:
    """The task that ``request`` asks for: a fit of ``vector`` on at most ``sample_size`` points.

    Raises:
        InvalidArgument: something is malformed, or noise_only is not for the method.
    """
    if request.noise_only and fit_plan.method not in LEAVES_NOISE:
        msg = f"noise_only: expected method {' or '.join(LEAVES_NOISE)}, got {fit_plan.method}"
        raise InvalidArgument(msg, field="noise_only")
    return Task(
        run=request.run,
        collection=request.collection,
        clustering=check_clustering_name(request.clustering),
        vector=vector.name,
        fit_plan=fit_plan,
        sample_size=sample_size,
        seed=request.seed,
        warm_start=request.warm_start,
        plan_only=request.plan_only,
        force=request.force,
        gates=default_gates if request.gates is None else request.gates,
        noise_only=request.noise_only,
        naming=naming_of(request.fields, request.vocabulary, vector.dim),
    )


Stage: TypeAlias = Literal["sample", "fit", "assign", "plan", "write", "cutover"]
"""The stages of a run, in their order."""


@dataclass(slots=True)
class RunProgress:
    """How far a run is. The run's thread writes it, any thread reads it.

    Attributes:
        stage: The stage that the run is in, or ended in; None before the first.
        done: Units of the stage that are done.
        total: Units of the stage; 0 if not known.
        stage_s: Seconds spent in each stage.
        plan: The changes that the run would make; None before they are known.
        objections: The gates that the plan is past.
        points_written: Points whose slots the run has written.
        base_run: The run that was active when this one began; empty if none was.
        facts: The facts of the fit.
    """

    stage: Stage | None = None
    done: int = 0
    total: int = 0
    stage_s: dict[Stage, float] = field(default_factory=dict)
    plan: Plan | None = None
    objections: tuple[str, ...] = ()
    points_written: int = 0
    base_run: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Outcome(StrEnum):
    """How a run that did not fail ended."""

    SUCCEEDED = "succeeded"
    PLANNED = "planned"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RunContext:
    """The means of a run.

    Attributes:
        store: Where the points are.
        config: The settings of the service.
        cutover_lock: Keeps new points from being assigned while the pointer flips.
        cancelled: Set to stop the run.
        changed: Called whenever the progress has changed.
        fit: Runs a fit.
    """

    store: Store
    config: ClustererConfig
    cutover_lock: threading.Lock
    cancelled: threading.Event
    changed: Callable[[], None]
    fit: Fitter


def not_enough(
    plan: FitPlan, points: int, collection: str, *, noise: bool = False
) -> NotEnoughPoints:
    """The error for a method that needs more points than there are."""
    k = plan.clusters
    counted = "points of noise" if noise else "points"
    there = f"the number of {counted} in collection {collection!r}, which is {points}"
    if k is not None:
        return NotEnoughPoints(f"k = {k} is larger than {there}", k=str(k), points=str(points))
    return NotEnoughPoints(
        f"{plan.least_points}, the fewest points that method {plan.method} can use, is larger "
        f"than {there}",
        points=str(points),
    )
