"""What a caller can choose about the training of a head. Imports neither NumPy nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from clusterer.heads.objectives import OBJECTIVES, ObjectiveName
from shoal.errors import InvalidArgument

RatePlan: TypeAlias = Literal["cosine", "constant"]
RATE_PLANS: Final[tuple[RatePlan, ...]] = get_args(RatePlan)

EPOCHS: Final = 30
"""Passes over the pictures in a first training, unless the caller says otherwise."""

_LEAST: Final = {"epochs": 0, "neighbours": 0, "batch": 2, "seeds": 1, "keep": 1}
"""The least legal value of each whole number."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How a head is trained. 0 and None stand for the objective's measured defaults.

    Attributes:
        objective: The loss that the head learns by.
        neighbours: Nearest pictures that count as a picture's own kind.
        alpha: SCP's weight of the entropy; 0 leaves the entropy out, and clusters stay unused.
        learning_rate: Adam's rate at the start.
        schedule: What becomes of the rate: ``cosine`` takes it down to 0, ``constant`` keeps it.
        epochs: Passes over the pictures; 0 is 30, or as many as the objective's least steps take.
        batch: Pairs of a step.
        seed: Seed of everything random in the first head; the next head has the next seed.
        seeds: Heads that are trained.
        keep: Heads that the result is made of. With ``merge`` it is one: the pieces that two heads
            cut a kind into have nothing in common.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
        amp: Half precision (bfloat16) in the matrix products.
        merge: Clusters that neighbours confuse become one: for when their number is not known.
    """

    objective: ObjectiveName = "scp"
    neighbours: int = 0
    alpha: float | None = None
    learning_rate: float = 0.0
    schedule: RatePlan = "cosine"
    epochs: int = 0
    batch: int = 512
    seed: int = 0
    seeds: int = 5
    keep: int = 3
    device: str = "auto"
    amp: bool = False
    merge: bool = False

    def __post_init__(self) -> None:
        """Checks; InvalidArgument names what is out of range."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                msg = f"{name}: expected at least {least}, got {getattr(self, name)}"
                raise InvalidArgument(msg, field=name)
        for name, value in (("alpha", self.alpha), ("learning_rate", self.learning_rate)):
            if value is not None and not 0 <= value < float("inf"):
                msg = f"{name}: expected a number of at least 0, got {value}"
                raise InvalidArgument(msg, field=name)
        if self.schedule not in RATE_PLANS:
            msg = f"schedule: expected {' or '.join(RATE_PLANS)}, got {self.schedule!r}"
            raise InvalidArgument(msg, field="schedule")
        if self.objective not in OBJECTIVES:
            msg = f"objective: expected {' or '.join(OBJECTIVES)}, got {self.objective!r}"
            raise InvalidArgument(msg, field="objective")

    def neighbours_among(self, points: int, clusters: int) -> int:
        """How many of the nearest of ``points`` count as a point's own kind in ``clusters``."""
        return self.neighbours or OBJECTIVES[self.objective].neighbours(points, clusters)
