"""A trained head, trained on: it follows a collection that drifts, and its clusters stay.

Each branch goes on from its own weights, at a fraction of the first training's rate, on pairs of
neighbours among the vectors of today. Needs torch (the extra ``train``), which is imported when
training begins.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, cast

from clusterer.heads.ensemble import Quality, quality
from clusterer.heads.graph import from_onnx, to_onnx
from clusterer.heads.network import Network
from clusterer.heads.objectives import MOST_NEIGHBOURS, OBJECTIVES, ObjectiveName
from clusterer.heads.options import HeadOptions
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.store import HeadManifest, sha256
from clusterer.heads.training import JUDGED_BY, check_device
from shoal.errors import NotEnoughPoints
from shoal.vectors import Vectors

if TYPE_CHECKING:
    from clusterer.heads.loop import Training

RATE: Final = 0.2
"""The learning rate as a share of a first training's (docs/heads.md)."""

EPOCHS: Final = 10
"""Passes over the vectors, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Retrained:
    """The head after training, and its quality ``before`` and ``after``, on the same vectors.

    ``curves`` has one entry per branch: the means of ``terms`` in each epoch.
    """

    network: Network
    before: Quality
    after: Quality
    terms: tuple[str, ...]
    curves: tuple[tuple[tuple[float, ...], ...], ...]


def train_on(
    manifest: HeadManifest, graph: bytes, vectors: Vectors, *, seed: int
) -> tuple[HeadManifest, bytes]:
    """The head of ``manifest`` and ``graph`` after more training with ``vectors`` (N, D).

    Returns:
        A new manifest, whose parent is the given one, and its graph; the given two themselves if
        the training made the head no better.

    Raises:
        ConfigError: torch or onnx is not installed.
        NotEnoughPoints: too few vectors to train with.
    """
    network = from_onnx(graph)
    options = further_options(manifest, seed)
    found = retrain(network, vectors, options)
    if found.network is network:
        return manifest, graph
    trained = to_onnx(found.network)
    made = HeadManifest(
        name=manifest.name,
        clusters=manifest.clusters,
        vector=manifest.vector,
        objective=manifest.objective,
        pairs="neighbours",
        graph_sha256=sha256(trained),
        created_at=time.time(),
        parent=manifest.id,
        options={**manifest.options, "seed": seed, "learning_rate": options.learning_rate},
        metrics={
            **asdict(found.after),
            "agreement_before": found.before.agreement,
            "pictures": len(vectors),
            "views": 1,
        },
        terms=list(found.terms),
        curves={
            str(seed + number): [list(row) for row in curve]
            for number, curve in enumerate(found.curves)
        },
    )
    return made, trained


def least_points(manifest: HeadManifest) -> int:
    """The fewest points to train the head on: more than its outputs, and than their neighbours."""
    outputs = max(manifest.clusters, int(manifest.options.get("clusters", 0)))
    neighbours = int(manifest.options.get("neighbours", 0)) or MOST_NEIGHBOURS
    return max(outputs, neighbours, JUDGED_BY) + 1


def retrain(network: Network, vectors: Vectors, options: HeadOptions) -> Retrained:
    """``network``, trained on with ``vectors`` (N, D), unit length.

    The result is ``network`` itself unless neighbours agree more after the training, in no fewer
    clusters.

    Raises:
        ConfigError: torch is not installed.
        NotEnoughPoints: fewer vectors than clusters, or than neighbours.
    """
    device = check_device(options.device)
    from clusterer.heads.loop import train  # noqa: PLC0415 - torch, after the check

    count = options.neighbours_among(len(vectors), network.outputs)
    least = max(network.outputs, JUDGED_BY, count) + 1
    if len(vectors) < least:
        msg = f"training a head on needs at least {least} points, got {len(vectors)}"
        raise NotEnoughPoints(msg, points=str(len(vectors)))
    pairs = Pairs(vectors, len(vectors), nearest_neighbours(vectors, count))
    training = further_training(network.outputs, options, device)
    resume = OBJECTIVES[options.objective].resume
    trained = [
        train(pairs, resume(branch, vectors, training), replace(training, seed=seed))
        for seed, branch in enumerate(network.branches, start=options.seed)
    ]
    branches = tuple(branch for each in trained for branch in each.network.branches)
    found = replace(network, branches=branches)
    judges = pairs.nearest(JUDGED_BY)
    before, after = (
        quality(each.probabilities(vectors), vectors, judges) for each in (network, found)
    )
    return Retrained(
        found if is_better(after, before) else network,
        before,
        after,
        terms=trained[0].terms,
        curves=tuple(each.curve for each in trained),
    )


def further_options(manifest: HeadManifest, seed: int) -> HeadOptions:
    """The options of training a head on: those of its first training that still matter."""
    said = manifest.options
    return HeadOptions(
        objective=cast("ObjectiveName", manifest.objective),
        neighbours=said.get("neighbours", 0),
        alpha=said.get("alpha"),
        learning_rate=said.get("learning_rate", 0.0),
        schedule=said.get("schedule", "cosine"),
        seed=seed,
    )


def further_training(outputs: int, options: HeadOptions, device: str) -> Training:
    """The training of a head that goes on: shorter than the first one, and at a lower rate."""
    from clusterer.heads.loop import Training  # noqa: PLC0415 - torch

    row = OBJECTIVES[options.objective]
    return Training(
        outputs,
        objective=options.objective,
        epochs=options.epochs or EPOCHS,
        least_steps=1 if options.epochs else row.least_steps_again,
        batch=options.batch,
        learning_rate=RATE * (options.learning_rate or row.learning_rate),
        schedule=options.schedule,
        seed=options.seed,
        settings=row.settings(outputs, options.alpha),
        device=device,
    )


def is_better(after: Quality, before: Quality) -> bool:
    """True if neighbours agree more, in no fewer clusters.

    Quality.rank would prefer one more cluster, which is no gain if neighbours agree less.
    """
    return after.used >= before.used and after.agreement > before.agreement
