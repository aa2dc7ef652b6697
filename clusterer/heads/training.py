"""From pairs to a head: several seeds are trained and judged without labels; the best become one.

Needs torch (the extra ``train``), which is imported when training begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from clusterer.heads.ensemble import Quality, best, ensemble, quality
from clusterer.heads.merging import confusion, merge
from clusterer.heads.network import Float32, Network
from clusterer.heads.pairs import Pairs
from shoal.errors import ConfigError, FitFailed, InvalidArgument, NotEnoughPoints
from shoal.vectors import Vectors

if TYPE_CHECKING:
    from clusterer.heads.loop import Objective, Training
    from clusterer.heads.scp import ScpOptions

ObjectiveName: TypeAlias = Literal["scp", "temi"]
OBJECTIVES: Final = ("scp", "temi")
Schedule: TypeAlias = Literal["cosine", "constant"]
SCHEDULES: Final = ("cosine", "constant")

Progress: TypeAlias = Callable[[int, int, int], None]
"""Gets the number of the head that is trained (from 0), its epochs done and all of them."""

MOST_NEIGHBOURS: Final = 50
"""That default to count as a point's own kind."""

JUDGED_BY: Final = 10
"""Neighbours that a head is judged by."""

_MANY_CLUSTERS: Final = 100
"""From here on the entropy needs more weight (arXiv 2502.04226, on CIFAR-100)."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What a caller can choose. 0 and None are the measured defaults of the objective.

    Attributes:
        clusters: K; with ``merge``, how many are trained.
        merge: Make one of those clusters that neighbours confuse: for when K is not known.
        neighbours: Nearest pictures that count as a picture's own kind.
        alpha: SCP's weight of the entropy; 0 leaves it out, and clusters unused.
        schedule: Of the learning rate: ``cosine`` or ``constant``.
        epochs: Passes over the pictures; 0 is 30, or as many as the objective's least steps take.
        seeds: Heads that are trained, ``seed`` and the following.
        keep: Heads of which the result is made; with ``merge`` one: what two heads cut a kind into
            has nothing in common.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
    """

    clusters: int
    objective: ObjectiveName = "scp"
    neighbours: int = 0
    alpha: float | None = None
    learning_rate: float = 0.0
    schedule: Schedule = "cosine"
    epochs: int = 0
    batch: int = 512
    seed: int = 0
    seeds: int = 5
    keep: int = 3
    device: str = "auto"
    amp: bool = False
    merge: bool = False

    def __post_init__(self) -> None:
        """Check; InvalidArgument names what is out of range."""
        for name, least in (
            ("epochs", 0),
            ("clusters", 2),
            ("batch", 2),
            ("seeds", 1),
            ("keep", 1),
        ):
            if getattr(self, name) < least:
                msg = f"{name}: expected at least {least}, got {getattr(self, name)}"
                raise InvalidArgument(msg, field=name)
        for name, value in (("alpha", self.alpha), ("learning_rate", self.learning_rate)):
            if value is not None and not 0 <= value < float("inf"):
                msg = f"{name}: expected a number of at least 0, got {value}"
                raise InvalidArgument(msg, field=name)
        if self.schedule not in SCHEDULES:
            msg = f"schedule: expected {' or '.join(SCHEDULES)}, got {self.schedule!r}"
            raise InvalidArgument(msg, field="schedule")
        if self.objective not in OBJECTIVES:
            msg = f"objective: expected {' or '.join(OBJECTIVES)}, got {self.objective!r}"
            raise InvalidArgument(msg, field="objective")


def default_neighbours(options: HeadOptions, points: int) -> int:
    """How many of the nearest of ``points`` count as a point's own kind, unless it is said.

    10 for SCP; for TEMI, which weighs its pairs, a quarter of a mean cluster, 10 to 50. Measured on
    three sets of photographs under two encoders (docs/scp.md).
    """
    if options.objective == "scp":
        return 10
    return min(MOST_NEIGHBOURS, max(10, points // (4 * options.clusters)))


@dataclass(frozen=True, slots=True)
class SeedReport:
    """One trained head: its seed, the terms' means in the last epoch, its quality."""

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
    """How a head came about. ``quality`` is that of the head itself; ``kept`` are seeds."""

    options: dict[str, Any]
    seeds: tuple[SeedReport, ...]
    kept: tuple[int, ...]
    quality: Quality
    terms: tuple[str, ...]
    pictures: int
    views: int


def train_head(
    pairs: Pairs,
    options: HeadOptions,
    *,
    checkpoints: Path | None = None,
    progress: Progress = lambda _seed, _done, _all: None,
) -> tuple[Network, HeadReport]:
    """A head for the pictures of ``pairs``.

    Args:
        pairs: the pictures' vectors, and which of them belong together.
        options: how.
        checkpoints: a directory: a training that was killed goes on from what is there.
        progress: called after each epoch; what it raises passes on.

    Raises:
        ConfigError: torch is not installed, or the device is not there.
        NotEnoughPoints: fewer pictures than clusters, or than neighbours.
        FitFailed: a training diverged.
    """
    heads = train_seeds(pairs, options, checkpoints=checkpoints, progress=progress)
    pictures = pairs.vectors[: pairs.pictures]
    wanted = 1 if options.merge else options.keep
    kept = best([head.report.quality for head in heads], wanted)
    network = vote([heads[i] for i in kept])
    judges = pairs.nearest(JUDGED_BY)
    if options.merge:
        joint = confusion(network.probabilities(pictures), judges)
        network = replace(network, groups=merge(joint))
    report = HeadReport(
        options=asdict(options),
        seeds=tuple(head.report for head in heads),
        kept=tuple(heads[i].report.seed for i in kept),
        quality=quality(network.probabilities(pictures), pictures, judges),
        terms=tuple(heads[0].report.losses),
        pictures=pairs.pictures,
        views=pairs.views,
    )
    return network, report


def vote(heads: Sequence[SeedHead]) -> Network:
    """One head of several, in the clusters of the first."""
    return ensemble([head.network for head in heads], [head.votes for head in heads])


def train_seeds(
    pairs: Pairs,
    options: HeadOptions,
    *,
    checkpoints: Path | None = None,
    progress: Progress = lambda _seed, _done, _all: None,
) -> list[SeedHead]:
    """The heads of ``options.seeds`` seeds, as ``train_head`` trains them, before any choice."""
    from clusterer.heads.loop import Training, train  # noqa: PLC0415 - torch, after the check

    pictures = pairs.vectors[: pairs.pictures]
    least = max(options.clusters, JUDGED_BY) + 1
    if len(pictures) < least:
        msg = f"k = {options.clusters}: expected at least {least} pictures, got {len(pictures)}"
        raise NotEnoughPoints(msg, points=str(len(pictures)))
    training = tuned(
        options,
        Training(
            clusters=options.clusters,
            objective=options.objective,
            epochs=options.epochs or Training(options.clusters).epochs,
            batch=options.batch,
            device=check_device(options.device),
            amp=options.amp,
        ),
    )
    judges = pairs.nearest(JUDGED_BY)
    heads = []
    for number in range(options.seeds):
        seed = options.seed + number
        objective = _objective(pictures, options, seed)
        wanted = replace(training, seed=seed)
        file = checkpoints / f"seed-{seed}.pt" if checkpoints else None
        told = functools.partial(progress, number)
        done = train(pairs, objective, wanted, checkpoint=file, progress=told)
        votes = done.network.probabilities(pictures)
        if not np.isfinite(votes).all():
            msg = f"seed {seed}: the training diverged: use a smaller learning rate"
            raise FitFailed(msg)
        last = dict(zip(done.terms, done.curve[-1], strict=True))
        report = SeedReport(seed, last, quality(votes, pictures, judges), done.curve)
        heads.append(SeedHead(done.network, votes, report))
    return heads


def check_torch() -> None:
    """ConfigError unless torch is installed."""
    try:
        import torch  # noqa: F401, PLC0415 - an extra
    except ImportError as exc:
        msg = f"training a head needs {exc.name}: pip install 'shoal[train]'"
        raise ConfigError(msg, package=str(exc.name)) from exc


def check_device(wanted: str) -> str:
    """The device that ``wanted`` (``cpu``, ``cuda``, ``cuda:1``, ``auto``) means here.

    Raises:
        ConfigError: torch is not installed, or there is no such device.
    """
    check_torch()
    import torch  # noqa: PLC0415

    there = torch.cuda.device_count()
    if wanted == "auto":
        return "cuda" if there else "cpu"
    known = ("cpu", *(["cuda"] if there else []), *(f"cuda:{i}" for i in range(there)))
    if wanted not in known:
        msg = f"device: expected auto or one that torch sees ({', '.join(known)}), got {wanted!r}"
        raise ConfigError(msg, field="device")
    return wanted


def scp_options(options: HeadOptions) -> ScpOptions:
    """SCP's own, with the measured defaults."""
    from clusterer.heads.scp import ScpOptions  # noqa: PLC0415

    if options.alpha is not None:
        return ScpOptions(options.alpha)
    return ScpOptions(10.0 if options.clusters >= _MANY_CLUSTERS else 5.0)


def tuned(options: HeadOptions, training: Training) -> Training:
    """``training`` with the objective's own defaults where ``options`` leave them open."""
    from clusterer.heads.temi import TemiOptions  # noqa: PLC0415

    if options.objective == "temi":
        rate, least, own = 1e-2, 1500, asdict(TemiOptions())
    else:
        rate, least = training.learning_rate, training.least_steps
        own = asdict(scp_options(options))
    return replace(
        training,
        learning_rate=options.learning_rate or rate,
        schedule=options.schedule,
        least_steps=1 if options.epochs else least,
        options=own,
    )


def _objective(pictures: Vectors, options: HeadOptions, seed: int) -> Objective:
    """A new head for ``pictures`` (N, D), with weights by ``seed``."""
    import torch  # noqa: PLC0415

    from clusterer.heads.scp import Scp  # noqa: PLC0415
    from clusterer.heads.temi import Temi, TemiOptions  # noqa: PLC0415

    data = torch.from_numpy(pictures)
    if options.objective == "temi":
        return Temi(data, options.clusters, TemiOptions(), seed=seed)
    return Scp(data, options.clusters, scp_options(options), seed=seed)
