"""The options of a head's training. Imports neither NumPy nor PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias, get_args

from annotated_types import Ge, Interval

from clusterer.heads.objectives import OBJECTIVES, ObjectiveName
from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges

RatePlan: TypeAlias = Literal["cosine", "constant"]
RATE_PLANS: Final[tuple[RatePlan, ...]] = get_args(RatePlan)

EPOCHS: Final = 30
"""Passes over the points in a first training, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """The options of a training. 0 and None stand for the objective's measured defaults.

    Raises:
        ConfigError: a value is out of range.
    """

    objective: Annotated[ObjectiveName, INTERNAL] = "scp"
    """The loss that the head learns by; a command of its own on the command line."""

    neighbours: Annotated[int, Ge(0)] = 0
    """Nearest points that count as a point's own kind. 0: 10 for scp; a quarter of a mean cluster
    for temi, 10 to 50."""

    alpha: Annotated[float, Ge(0)] | None = None
    """Weight of equal sizes. Default: 5, from 100 clusters on 10; 1 or 2 suit unequal ones, and
    with 0 clusters stay unused.

    It is SCP's weight of the entropy; other objectives have none.
    """

    learning_rate: Annotated[float, Ge(0)] = 0.0
    """Adam's learning rate at the start. 0: 0.001 for scp, 0.01 for temi."""

    schedule: RatePlan = "cosine"
    """The plan of the learning rate: a cosine takes it down to 0, or it is constant."""

    epochs: Annotated[int, Ge(0)] = 0
    """Passes over the points. 0: 30, or more where points are few.

    More means: as many as the objective's least steps take.
    """

    batch: Annotated[int, Ge(2)] = 512
    """Pairs of a step."""

    seed: Annotated[int, Interval(ge=0, le=2**64 - 1)] = 0
    """Seed of everything random.

    It is the first head's; each next head has the next seed.
    """

    seeds: Annotated[int, Ge(1)] = 5
    """Heads to train."""

    keep: Annotated[int, Ge(1)] = 3
    """Best heads that vote together.

    With ``merge`` it is one: the pieces that two heads cut a kind into have nothing in common.
    """

    device: Annotated[str, Setting(metavar="cpu|cuda|auto")] = "auto"
    """The device of the training. auto: a GPU if there is one."""

    amp: bool = False
    """Half precision (bfloat16) in matrix products."""

    merge: Annotated[bool, INTERNAL] = False
    """Clusters that neighbours confuse become one: for when their number is not known."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, value in (("alpha", self.alpha), ("learning_rate", self.learning_rate)):
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, got {value}", field=name)

    def neighbours_among(self, points: int, clusters: int) -> int:
        """The number of neighbours, among ``points`` in ``clusters``, of a point's own kind."""
        return self.neighbours or OBJECTIVES[self.objective].neighbours(points, clusters)
