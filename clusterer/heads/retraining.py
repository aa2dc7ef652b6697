"""A trained head, trained on: it follows a collection that drifts, and its clusters stay.

Each branch goes on from its own weights, at a fraction of the first training's rate, on pairs of
neighbours among the vectors that there are now. Needs torch (the extra ``train``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from clusterer.heads.ensemble import Quality, quality
from clusterer.heads.network import Network
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.training import (
    JUDGED_BY,
    HeadOptions,
    check_device,
    default_neighbours,
    scp_options,
    tuned,
)
from shoal.errors import NotEnoughPoints
from shoal.vectors import Vectors

if TYPE_CHECKING:
    from clusterer.heads.loop import Objective
    from clusterer.heads.network import Branch

RATE: Final = 0.2
"""Of the learning rate of a first training (docs/scp.md)."""
EPOCHS: Final = 10
LEAST_STEPS: Final = {"scp": 100, "temi": 300}


@dataclass(frozen=True, slots=True)
class Retrained:
    """The head as it is now, and its quality ``before`` and ``after``, on the same vectors.

    ``curves`` are the branches', with the means of ``terms`` in each epoch.
    """

    network: Network
    before: Quality
    after: Quality
    terms: tuple[str, ...]
    curves: tuple[tuple[tuple[float, ...], ...], ...]


def retrain(network: Network, vectors: Vectors, options: HeadOptions) -> Retrained:
    """``network``, trained on with ``vectors`` (N, D), unit length.

    It stays what it was unless neighbours agree more after it, in no fewer clusters.

    Raises:
        ConfigError: torch is not installed.
        NotEnoughPoints: fewer vectors than clusters, or than neighbours.
    """
    from clusterer.heads.loop import Training, train  # noqa: PLC0415 - torch, after the check

    device = check_device(options.device)
    count = options.neighbours or default_neighbours(options, len(vectors))
    least = max(network.outputs, JUDGED_BY, count) + 1
    if len(vectors) < least:
        msg = f"training a head on needs at least {least} points, got {len(vectors)}"
        raise NotEnoughPoints(msg, points=str(len(vectors)))
    pairs = Pairs(vectors, len(vectors), nearest_neighbours(vectors, count))
    first = tuned(
        options, Training(network.outputs, options.objective, batch=options.batch, device=device)
    )
    training = replace(
        first,
        learning_rate=RATE * first.learning_rate,
        epochs=options.epochs or EPOCHS,
        least_steps=1 if options.epochs else LEAST_STEPS[options.objective],
    )
    trained = [
        train(
            pairs,
            _objective(branch, vectors, options),
            replace(training, seed=options.seed + number),
        )
        for number, branch in enumerate(network.branches)
    ]
    branches = tuple(branch for each in trained for branch in each.network.branches)
    found = replace(network, branches=branches)
    judges = pairs.nearest(JUDGED_BY)
    before, after = (
        quality(each.probabilities(vectors), vectors, judges) for each in (network, found)
    )
    # Not by their rank: a cluster more is no gain if neighbours agree less.
    better = after.used >= before.used and after.agreement > before.agreement
    return Retrained(
        found if better else network,
        before,
        after,
        terms=trained[0].terms,
        curves=tuple(each.curve for each in trained),
    )


def _objective(branch: Branch, vectors: Vectors, options: HeadOptions) -> Objective:
    """The branch as it is, ready to be trained with ``vectors`` (N, D)."""
    import torch  # noqa: PLC0415

    from clusterer.heads.scp import Scp  # noqa: PLC0415
    from clusterer.heads.temi import Temi, TemiOptions  # noqa: PLC0415

    data = torch.from_numpy(vectors)
    if options.objective == "temi":
        return Temi.of(branch, data, TemiOptions())
    return Scp.of(branch, data, scp_options(options).alpha)
