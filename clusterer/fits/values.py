"""What goes into a fit and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from clusterer.fits.models import Model
from shoal.values import VectorInfo
from shoal.vectors import Labels

NO_DUPLICATES: Final = 2.0
"""A cosine that no two vectors have."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a method may need to know beyond its parameters.

    Attributes:
        heads: Where trained heads are kept; empty for nowhere.
        vector: The vectors that are to be clustered.
    """

    heads: str = ""
    vector: VectorInfo | None = None


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What to run.

    Attributes:
        method: The row's name.
        options: The method's own options, as JSON.
        least_points: The fewest points that it can use.
        duplicate_cosine: Points as near as this to each other count once; above 1 all count.
        seed: Of everything random outside the method.
    """

    method: str
    options: Mapping[str, Any]
    least_points: int
    duplicate_cosine: float = NO_DUPLICATES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found.

    Attributes:
        model: What gives any vector its cluster.
        labels: int32 (N,), the clusters of the vectors of the fit where the method says so
            itself; None where the model is all there is to say.
        facts: Numbers for the log and the report, as JSON.
    """

    model: Model
    labels: Labels | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
