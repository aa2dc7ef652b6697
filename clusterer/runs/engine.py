"""The engine of a run, which holds, counts and writes its points, and the scope that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from clusterer.runs.assign import Rule, Totals
from clusterer.runs.matching import Clusters, Matching, Overlap
from clusterer.runs.plan import Changes
from clusterer.runs.task import RunContext, Task
from clusterer.runs.tracking import Tracker
from clusterer.runs.writeback import Seal, Written
from shoal.store.clusterings import State
from shoal.store.model import Empty, Filter, Range
from shoal.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything that an engine needs to know of one run.

    Attributes:
        task: The run's task.
        context: The run's means.
        tracker: Takes the progress, and stops the run.
        fence: The fence of the run's lease.
        state: The clustering when the run began.
        active: The clusters that readers see.
        began: When the run began, in Unix seconds.
    """

    task: Task
    context: RunContext
    tracker: Tracker
    fence: int
    state: State
    active: Clusters
    began: float

    @property
    def warm(self) -> Vectors | None:
        """The centroids (K, D) to start the fit from; None to start anew."""
        known = self.task.warm_start and np.any(self.active.centroids)
        return self.active.centroids if known else None

    @property
    def seal(self) -> Seal:
        """Protects the run's labels from an earlier run that may still wake."""
        return Seal(self.fence, sealing=self.state.unsettled)

    @property
    def late(self) -> Filter:
        """The points that came in since the run began, or may have."""
        since = self.began - self.context.config.clock_skew_s
        return Filter(should=(Empty(self.state.inactive_field), Range("ingested_at", gte=since)))


class Found(Protocol):
    """The points, each with the cluster that the fit gives it, as an engine holds them."""

    @property
    def rule(self) -> Rule:
        """Gives any point its cluster."""

    @property
    def totals(self) -> Totals:
        """The sums over the points by cluster."""


F = TypeVar("F", bound=Found)


@dataclass(frozen=True, slots=True)
class Settled:
    """How the inactive slot was brought up to date: ``points`` written, and ``noise`` left."""

    points: int
    noise: int


class Engine(Protocol[F]):
    """Where the points of one run are held, counted and written. Steps come in this order.

    ``find`` has the stages sample, fit and assign; the others happen in stages of the run.
    """

    def find(self) -> F:
        """Samples, fits, and assigns every point to a row of the fit's model.

        Raises:
            NotEnoughPoints: the method needs more points than there are.
            Unsupported: the engine cannot do the task.
        """

    def overlap(self, found: F) -> Overlap:
        """How many points each active cluster shares with each new one."""

    def changes(self, found: F, matching: Matching) -> Changes:
        """The changes that writing would make, counted."""

    def write(self, found: F, matching: Matching) -> Written:
        """Makes the inactive slot hold the ids of the points' clusters.

        Before the first run nobody reads either slot, so both are written.
        """

    def settle(self, found: F, matching: Matching, written: Written) -> Settled:
        """Labels the points that came in since the run began, then verifies the inactive slot.

        Raises:
            Conflict: the slot kept changing.
        """


MakeEngine: TypeAlias = Callable[[Scope], Engine[Any]]
"""Makes the engine of one run."""
