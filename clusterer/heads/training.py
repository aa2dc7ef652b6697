"""From pairs to a head: several seeds are trained and judged without labels; the best become one.

Needs torch (the extra ``train``), which is imported when training begins.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from clusterer.heads.ensemble import Quality, best, ensemble, quality
from clusterer.heads.graph import to_onnx
from clusterer.heads.merging import confusion, merge
from clusterer.heads.network import Float32, Network
from clusterer.heads.objectives import OBJECTIVES
from clusterer.heads.options import EPOCHS, HeadOptions
from clusterer.heads.pairs import PairKind, Pairs
from clusterer.heads.store import HeadManifest, HeadSeed, HeadVector, check_name, sha256
from shoal.errors import ConfigError, FitFailed, InvalidArgument, NotEnoughPoints
from shoal.values import VectorInfo

if TYPE_CHECKING:
    from clusterer.heads.loop import Training

SeedProgress: TypeAlias = Callable[[int, int, int], None]
"""A listener that gets the number of the head in training (from 0), its epochs done, and all."""

JUDGED_BY: Final = 10
"""The number of neighbours by which a head is judged."""

_LEAST_CLUSTERS: Final = 2


@dataclass(frozen=True, slots=True)
class SeedReport:
    """One trained head: its seed, each term's mean in the last epoch, its quality, its curve."""

    seed: int
    losses: dict[str, float]
    quality: Quality
    curve: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class SeedHead:
    """The head of one seed, and its ``votes``: soft assignments float32 (N, K) of the pictures."""

    network: Network
    votes: Float32
    report: SeedReport


@dataclass(frozen=True, slots=True)
class HeadReport:
    """The training that a head comes from.

    Attributes:
        seeds: The heads that were trained.
        kept: The seeds that the head is made of, best first.
        quality: The quality of the head itself.
        terms: The names of the curves' columns.
        pairs: The kind of the pairs.
        pictures: N.
        views: V.
    """

    seeds: tuple[SeedReport, ...]
    kept: tuple[int, ...]
    quality: Quality
    terms: tuple[str, ...]
    pairs: PairKind
    pictures: int
    views: int


@dataclass(frozen=True)  # no slots: it keeps its graph
class TrainedHead:
    """A head that was trained just now, how, and how well."""

    network: Network
    options: HeadOptions
    report: HeadReport

    @functools.cached_property
    def graph(self) -> bytes:
        """The head as an ONNX graph.

        Raises:
            ConfigError: the package onnx is not installed.
        """
        return to_onnx(self.network)

    def manifest(self, name: str, vector: VectorInfo) -> HeadManifest:
        """All that is known of the head, which is called ``name`` and was trained on ``vector``.

        Raises:
            InvalidArgument: no head can be called so.
            ConfigError: the package onnx is not installed.
        """
        report = self.report
        return HeadManifest(
            name=check_name(name),
            clusters=self.network.clusters,
            vector=HeadVector.of(vector),
            objective=self.options.objective,
            pairs=report.pairs,
            graph_sha256=sha256(self.graph),
            created_at=time.time(),
            options={"clusters": self.network.outputs, **asdict(self.options)},
            metrics={**asdict(report.quality), "pictures": report.pictures, "views": report.views},
            terms=list(report.terms),
            curves={str(each.seed): [list(row) for row in each.curve] for each in report.seeds},
            seeds=[
                HeadSeed(seed=each.seed, kept=each.seed in report.kept, **asdict(each.quality))
                for each in report.seeds
            ],
        )


def train_head(
    pairs: Pairs,
    clusters: int,
    options: HeadOptions,
    *,
    checkpoints: Path | None = None,
    progress: SeedProgress = lambda _seed, _done, _all: None,
) -> TrainedHead:
    """A head for the pictures of ``pairs``.

    Args:
        pairs: the pictures' vectors, and which of them belong together.
        clusters: K; with ``options.merge`` the number before clusters are merged.
        options: how it is trained.
        checkpoints: a directory; a killed training goes on from the files in it.
        progress: called after each epoch; its exceptions pass on.

    Raises:
        ConfigError: torch is not installed, or the device is not there.
        InvalidArgument: fewer than two clusters.
        NotEnoughPoints: fewer pictures than clusters, or than neighbours.
        FitFailed: a training diverged.
    """
    heads = train_seeds(pairs, clusters, options, checkpoints=checkpoints, progress=progress)
    pictures = pairs.vectors[: pairs.pictures]
    kept = best([head.report.quality for head in heads], 1 if options.merge else options.keep)
    network = one_head([heads[i] for i in kept])
    judges = pairs.nearest(JUDGED_BY)
    if options.merge:
        joint = confusion(network.probabilities(pictures), judges)
        network = replace(network, groups=merge(joint))
    report = HeadReport(
        seeds=tuple(head.report for head in heads),
        kept=tuple(heads[i].report.seed for i in kept),
        quality=quality(network.probabilities(pictures), pictures, judges),
        terms=tuple(heads[0].report.losses),
        pairs=pairs.kind,
        pictures=pairs.pictures,
        views=pairs.views,
    )
    return TrainedHead(network, options, report)


def one_head(heads: Sequence[SeedHead]) -> Network:
    """The head that gives the mean of the votes of ``heads``, in the clusters of the first."""
    return ensemble([head.network for head in heads], [head.votes for head in heads])


def train_seeds(
    pairs: Pairs,
    clusters: int,
    options: HeadOptions,
    *,
    checkpoints: Path | None = None,
    progress: SeedProgress = lambda _seed, _done, _all: None,
) -> list[SeedHead]:
    """The heads of ``options.seeds`` seeds, as ``train_head`` trains them, before any choice."""
    check_clusters(clusters)
    device = check_device(options.device)
    from clusterer.heads.loop import train  # noqa: PLC0415 - torch, after the check

    pictures = pairs.vectors[: pairs.pictures]
    least = max(clusters, JUDGED_BY) + 1
    if len(pictures) < least:
        msg = f"k = {clusters}: expected at least {least} pictures, got {len(pictures)}"
        raise NotEnoughPoints(msg, points=str(len(pictures)))
    training = first_training(clusters, options, device)
    judges = pairs.nearest(JUDGED_BY)
    heads = []
    for number in range(options.seeds):
        own = replace(training, seed=options.seed + number)
        done = train(
            pairs,
            OBJECTIVES[options.objective].new(pictures, own),
            own,
            checkpoint=checkpoints / f"seed-{own.seed}.pt" if checkpoints else None,
            progress=functools.partial(progress, number),
        )
        votes = done.network.probabilities(pictures)
        if not np.isfinite(votes).all():
            msg = f"seed {own.seed}: the training diverged: use a smaller learning rate"
            raise FitFailed(msg)
        last = dict(zip(done.terms, done.curve[-1], strict=True))
        report = SeedReport(own.seed, last, quality(votes, pictures, judges), done.curve)
        heads.append(SeedHead(done.network, votes, report))
    return heads


def first_training(clusters: int, options: HeadOptions, device: str) -> Training:
    """The training of a new head, with the objective's defaults where ``options`` leave them open.

    Its seed is the first head's.
    """
    from clusterer.heads.loop import Training  # noqa: PLC0415 - torch

    row = OBJECTIVES[options.objective]
    return Training(
        clusters,
        objective=options.objective,
        epochs=options.epochs or EPOCHS,
        least_steps=1 if options.epochs else row.least_steps,
        batch=options.batch,
        learning_rate=options.learning_rate or row.learning_rate,
        schedule=options.schedule,
        seed=options.seed,
        settings=row.settings(clusters, options.alpha),
        device=device,
        amp=options.amp,
    )


def training_key(pairs: Pairs, clusters: int, options: HeadOptions) -> str:
    """A name for a training: the same pairs and options have the same, on any device."""
    decisive = {**asdict(options), "clusters": clusters, "device": "", "pairs": pairs.digest()}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def check_clusters(clusters: int) -> None:
    """InvalidArgument unless a head can have this number of clusters."""
    if clusters < _LEAST_CLUSTERS:
        msg = f"clusters: expected at least {_LEAST_CLUSTERS}, got {clusters}"
        raise InvalidArgument(msg, field="clusters")


def check_torch() -> None:
    """ConfigError unless torch is installed."""
    try:
        import torch  # noqa: F401, PLC0415 - an extra
    except ImportError as exc:
        msg = f"training a head needs {exc.name}: pip install 'shoal[train]'"
        raise ConfigError(msg, package=str(exc.name)) from exc


def check_device(wanted: str) -> str:
    """The device that ``wanted`` (``cpu``, ``cuda``, ``cuda:1``, ``auto``) means on this machine.

    Raises:
        ConfigError: torch is not installed, or there is no such device.
    """
    check_torch()
    import torch  # noqa: PLC0415 - an extra

    count = torch.cuda.device_count()
    if wanted == "auto":
        return "cuda" if count else "cpu"
    known = ("cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count)))
    if wanted not in known:
        msg = f"device: expected auto or one that torch sees ({', '.join(known)}), got {wanted!r}"
        raise ConfigError(msg, field="device")
    return wanted
