"""A fit's plan, surroundings and result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from clusterer.fits.models import Model
from shoal.values import VectorInfo
from shoal.vectors import Labels

NO_DUPLICATES: Final = 2.0
"""A cosine that no two vectors have."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The facts of a service that a method may need beyond its options.

    Attributes:
        heads: The place of trained heads; empty if there is none.
        vector: The named vector that is clustered.
    """

    heads: str = ""
    vector: VectorInfo | None = None


class MethodOptions(Protocol):
    """The options of one method: a frozen dataclass that checks its values when it is made."""

    method: ClassVar[str]
    """The method's name, as in the table of methods."""

    @property
    def seed(self) -> int:
        """The seed of everything random in the fit."""


@dataclass(frozen=True, slots=True)
class FitPlan:
    """A fit to run.

    Attributes:
        options: The method's options.
        least_points: The fewest points that the method can use.
        duplicate_cosine: Points as near as this to each other count once; above 1 all count.
    """

    options: MethodOptions
    least_points: int
    duplicate_cosine: float = NO_DUPLICATES

    @property
    def method(self) -> str:
        """The method's name."""
        return self.options.method

    @property
    def clusters(self) -> int | None:
        """The number of clusters that was asked for; None if the fit finds it."""
        k = getattr(self.options, "k", None)
        return k if isinstance(k, int) else None


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of a fit.

    Attributes:
        model: The rule that gives any vector its cluster.
        labels: int32 (N,), the method's own labels of the vectors that it was fitted on; None if
            the model gives them their clusters too.
        facts: Numbers for the log and the report, as JSON.
    """

    model: Model
    labels: Labels | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
