"""What a run is asked to do, what it works with, and how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from clusterer.config import ClustererConfig
from clusterer.fits import FitPlan
from clusterer.fits.child import Fitter
from clusterer.runs.naming import NameSources
from clusterer.runs.plan import Report
from shoal.errors import NotEnoughPoints
from shoal.store.gateway import Store
from shoal.values import Gates


@dataclass(frozen=True, slots=True)
class Task:
    """What to run, checked. ``vector`` is the name of the vector to cluster."""

    run: str
    collection: str
    clustering: str
    vector: str
    fit: FitPlan
    sample_size: int
    seed: int
    warm_start: bool
    plan_only: bool
    force: bool
    gates: Gates
    noise_only: bool = False
    naming: NameSources = field(default_factory=NameSources)


@dataclass(slots=True)
class Progress:
    """Where a run is. Written by the run's thread, read by anyone; ``changed`` tells of it."""

    stage: str = ""
    done: int = 0
    total: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    report: Report | None = None
    objections: tuple[str, ...] = ()
    points_written: int = 0
    base_run: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the fit had to say."""


class Outcome(StrEnum):
    """How a run that did not fail ended."""

    SUCCEEDED = "succeeded"
    PLANNED = "planned"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run works with: ``cutover_lock`` keeps newcomers still while the pointer flips."""

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
    k = plan.options.get("k")
    what = "points of noise" if noise else "points"
    there = f"the number of {what} in collection {collection!r}, which is {points}"
    if k:
        return NotEnoughPoints(f"k = {k} is larger than {there}", k=str(k), points=str(points))
    return NotEnoughPoints(
        f"{plan.least_points}, the fewest points that method {plan.method} can use, is larger "
        f"than {there}",
        points=str(points),
    )
