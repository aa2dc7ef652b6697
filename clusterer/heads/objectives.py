"""The objectives that a head can be trained by: one row each, with the defaults that suit it.

A new objective is one module beside ``scp`` and ``temi``, and one row here. PyTorch is imported
when a head is made, not with this module: a server that only applies heads needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from clusterer.heads.loop import Objective, Training
    from clusterer.heads.network import Branch
    from shoal.vectors import Vectors

ObjectiveName: TypeAlias = Literal["scp", "temi"]

MOST_NEIGHBOURS: Final = 50
"""The largest default number of neighbours that count as a point's own kind."""

_LEAST_NEIGHBOURS: Final = 10
"""The smallest default number of neighbours that count as a point's own kind."""

_MANY_CLUSTERS: Final = 100
"""From this number of clusters on SCP's entropy needs more weight (arXiv 2502.04226, CIFAR-100)."""


@dataclass(frozen=True, slots=True)
class ObjectiveRow:
    """An objective's defaults, and how its head is made.

    Attributes:
        learning_rate: Adam's rate at the start of a first training.
        least_steps: The fewest steps of a first training, unless the caller gives its epochs.
        least_steps_again: The fewest steps of training a head on, unless the caller gives them.
        neighbours: The default number of neighbours, by the numbers of points and of clusters.
        settings: The objective's own options as JSON, by the number of clusters and the caller's
            ``alpha``.
        new: A new head for vectors (N, D), by the training's clusters, settings and seed.
        resume: A trained branch as a head that trains on with vectors (N, D).
    """

    learning_rate: float
    least_steps: int
    least_steps_again: int
    neighbours: Callable[[int, int], int]
    settings: Callable[[int, float | None], dict[str, Any]]
    new: Callable[[Vectors, Training], Objective]
    resume: Callable[[Branch, Vectors, Training], Objective]


def _scp_neighbours(_points: int, _clusters: int) -> int:
    return _LEAST_NEIGHBOURS


def _scp_settings(clusters: int, alpha: float | None) -> dict[str, Any]:
    from clusterer.heads.scp import ScpOptions  # noqa: PLC0415 - torch

    if alpha is None:
        alpha = 10.0 if clusters >= _MANY_CLUSTERS else 5.0
    return asdict(ScpOptions(alpha))


def _new_scp(vectors: Vectors, training: Training) -> Objective:
    import torch  # noqa: PLC0415 - an extra

    from clusterer.heads.scp import Scp, ScpOptions  # noqa: PLC0415 - torch

    options = ScpOptions(**training.settings)
    return Scp(torch.from_numpy(vectors), training.clusters, options, seed=training.seed)


def _resume_scp(branch: Branch, vectors: Vectors, training: Training) -> Objective:
    import torch  # noqa: PLC0415 - an extra

    from clusterer.heads.scp import Scp, ScpOptions  # noqa: PLC0415 - torch

    return Scp.of(branch, torch.from_numpy(vectors), ScpOptions(**training.settings).alpha)


def _temi_neighbours(points: int, clusters: int) -> int:
    """A quarter of a mean cluster: TEMI weighs its pairs, so that more neighbours do no harm."""
    return min(MOST_NEIGHBOURS, max(_LEAST_NEIGHBOURS, points // (4 * clusters)))


def _temi_settings(_clusters: int, _alpha: float | None) -> dict[str, Any]:
    from clusterer.heads.temi import TemiOptions  # noqa: PLC0415 - torch

    return asdict(TemiOptions())


def _new_temi(vectors: Vectors, training: Training) -> Objective:
    import torch  # noqa: PLC0415 - an extra

    from clusterer.heads.temi import Temi, TemiOptions  # noqa: PLC0415 - torch

    options = TemiOptions(**training.settings)
    return Temi(torch.from_numpy(vectors), training.clusters, options, seed=training.seed)


def _resume_temi(branch: Branch, vectors: Vectors, training: Training) -> Objective:
    import torch  # noqa: PLC0415 - an extra

    from clusterer.heads.temi import Temi, TemiOptions  # noqa: PLC0415 - torch

    return Temi.of(branch, torch.from_numpy(vectors), TemiOptions(**training.settings))


OBJECTIVES: Final[Mapping[ObjectiveName, ObjectiveRow]] = {
    "scp": ObjectiveRow(
        learning_rate=1e-3,
        least_steps=300,  # 30 epochs of a thousand pictures are too few to converge
        least_steps_again=100,
        neighbours=_scp_neighbours,
        settings=_scp_settings,
        new=_new_scp,
        resume=_resume_scp,
    ),
    "temi": ObjectiveRow(
        learning_rate=1e-2,
        least_steps=1500,
        least_steps_again=300,
        neighbours=_temi_neighbours,
        settings=_temi_settings,
        new=_new_temi,
        resume=_resume_temi,
    ),
}
"""Every objective by its name. The defaults were measured on three sets of photographs under two
encoders (docs/heads.md)."""
