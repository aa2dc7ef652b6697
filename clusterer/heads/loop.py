"""The training loop of heads: pairs in, a head out. No label comes near it.

One loop serves all objectives: Adam, by a cosine down to 0 (as in arXiv 2502.04226), on batches of
pairs that are drawn anew in each epoch. Everything random comes from the seed and the number of the
epoch, and is drawn on the CPU. So a killed training goes on as if nobody had killed it, and one
seed gives one head on every machine, but for rounding. On a GPU a step is recorded once and
replayed (a CUDA graph): its hundred small kernels take ten times as long to start from Python as to
run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from clusterer.heads.network import Network
from clusterer.heads.objectives import ObjectiveName
from clusterer.heads.options import EPOCHS, RatePlan
from clusterer.heads.pairs import Pairs
from shoal.errors import InvalidArgument
from shoal.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

_CHECKPOINT_EVERY_S: Final = 1.0
"""The least time between two checkpoints: 17 MB at D = 1280, and an epoch of few pictures is
over in milliseconds."""


@dataclass(frozen=True, slots=True)
class Training:
    """The training of one head. ``device`` is its place; everything else decides the result.

    Attributes:
        clusters: K.
        objective: The objective's name.
        epochs: Passes over the pictures; more, if these would not make ``least_steps`` steps.
        least_steps: The fewest steps, however few the pictures are.
        batch: Pairs of a step.
        learning_rate: Adam's rate at the start.
        schedule: What becomes of the rate: ``cosine``, down to 0, or ``constant``.
        seed: Seed of the weights and the pairs.
        settings: The objective's own options, as JSON.
        device: As PyTorch names it.
        amp: Half precision (bfloat16) in the matrix products.
    """

    clusters: int
    objective: ObjectiveName = "scp"
    epochs: int = EPOCHS
    least_steps: int = 1
    batch: int = 512
    learning_rate: float = 1e-3
    schedule: RatePlan = "cosine"
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    amp: bool = False


class Objective(Protocol):
    """A head in training, and its loss."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the numbers that ``loss`` gives."""

    @property
    def module(self) -> torch.nn.Module:
        """The weights and buffers: all of its state."""

    def loss(self, views: Tensor) -> tuple[Tensor, ...]:
        """The loss to minimise, then the other numbers that are worth a curve: scalars.

        ``views`` (2B, D) holds the first of each of B pairs, then the second. Neither ``loss`` nor
        ``stepped`` may wait for the GPU, or branch by the step: one step is recorded and replayed.
        """

    def stepped(self) -> None:
        """Follows each step of the optimiser."""

    def network(self) -> Network:
        """The head as it is now."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A head, and the mean of each term over the steps of each epoch, (epochs, terms)."""

    network: Network
    curve: tuple[tuple[float, ...], ...]
    terms: tuple[str, ...]


EpochProgress = Callable[[int, int], None]
"""A listener that gets the number of epochs that are done, and of all epochs."""


def train(
    pairs: Pairs,
    objective: Objective,
    training: Training,
    *,
    checkpoint: Path | None = None,
    progress: EpochProgress = lambda _done, _all: None,
) -> Trained:
    """Trains ``objective`` on ``pairs``.

    Args:
        pairs: the pictures' vectors and which of them belong together.
        objective: freshly made, by the training's seed.
        training: how it is trained.
        checkpoint: the file that keeps the state after an epoch, written once a second at most
            and at the end; if it exists, the training goes on from it.
        progress: called after each epoch; its exceptions pass on.

    Raises:
        InvalidArgument: the checkpoint belongs to another training.
    """
    device = torch.device(training.device)
    vectors = torch.from_numpy(np.ascontiguousarray(pairs.vectors)).to(device)
    module = objective.module.to(device)
    weights = [each for each in module.parameters() if each.requires_grad]
    adam = torch.optim.Adam(weights, lr=training.learning_rate, fused=True)
    sums = torch.zeros(len(objective.terms), device=device)
    batch = min(training.batch, pairs.pictures)
    steps = pairs.pictures // batch
    epochs = max(training.epochs, math.ceil(training.least_steps / steps))
    saved = _Checkpoint(checkpoint, pairs, training)
    curve = saved.load(module, adam)
    module.train()

    def step(rows: Tensor) -> None:
        """One step on the pairs of ``rows`` (2B,)."""
        with torch.autocast(device.type, torch.bfloat16, enabled=training.amp):
            loss = objective.loss(vectors[rows])
        adam.zero_grad(set_to_none=True)
        loss[0].backward()  # type: ignore[no-untyped-call]
        adam.step()
        objective.stepped()
        sums.add_(torch.stack([each.detach() for each in loss]))

    take = _RecordedStep(step, adam, 2 * batch) if device.type == "cuda" else _PlainStep(step, adam)
    for epoch in range(len(curve), epochs):
        drawn = np.stack(pairs.epoch(training.seed, epoch))[:, : steps * batch]  # (2, N')
        rows = torch.from_numpy(drawn).to(device).reshape(2, steps, batch).transpose(0, 1)
        sums.zero_()
        for number in range(steps):
            rate = scheduled_rate(training, epoch * steps + number, epochs * steps)
            take(rows[number].reshape(-1), rate)
        curve.append(tuple((sums / steps).tolist()))
        saved.save(module, adam, curve, last=len(curve) == epochs)
        progress(len(curve), epochs)
    module.eval()
    return Trained(objective.network(), tuple(curve), objective.terms)


def scheduled_rate(training: Training, step: int, steps: int) -> float:
    """The learning rate of ``step`` of ``steps``; a cosine takes it to 0 after the last step."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2


def fingerprint(pairs: Pairs, training: Training) -> str:
    """A checkpoint's mark: the same data and the same training have the same, on any device."""
    decisive = asdict(training)
    del decisive["device"]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    digest.update(pairs.digest().encode())
    return digest.hexdigest()


Step = Callable[["Tensor"], None]
"""One step of the training, on the pairs of these rows (2B,)."""


class _PlainStep:
    """A step that Python takes, kernel by kernel."""

    def __init__(self, step: Step, adam: torch.optim.Optimizer) -> None:
        self._step, self._adam = step, adam
        for group in adam.param_groups:  # a checkpoint may be from a GPU
            group["capturable"] = False

    def __call__(self, rows: Tensor, rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._step(rows)


class _RecordedStep:
    """A step as a CUDA graph: Python takes the first few steps, the next one is recorded.

    The order is that of PyTorch's notes on CUDA graphs: the first steps, on a side stream, load
    libraries and make the optimiser's state; from then on every change is in tensors at fixed
    places.
    """

    WARM = 3

    def __init__(self, step: Step, adam: torch.optim.Optimizer, width: int) -> None:
        device = adam.param_groups[0]["params"][0].device
        self._step = step
        self._rows = torch.zeros(width, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        for group in adam.param_groups:  # a checkpoint may be from a CPU
            group["capturable"], group["lr"] = True, self._rate

    def __call__(self, rows: Tensor, rate: float) -> None:
        self._rows.copy_(rows)
        self._rate.fill_(rate)
        if self._taken < self.WARM:
            self._taken += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(self._rows)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step(self._rows)
        self._graph.replay()


class _Checkpoint:
    """The state after an epoch, in a file that is replaced as a whole; none if ``path`` is None."""

    def __init__(self, path: Path | None, pairs: Pairs, training: Training) -> None:
        self._path = path
        self._saved_at = time.monotonic()
        self._mark = "" if path is None else fingerprint(pairs, training)

    def load(self, module: torch.nn.Module, adam: torch.optim.Optimizer) -> list[tuple[float, ...]]:
        """Puts the saved state, if there is one, into both; gives the curve so far."""
        if self._path is None or not self._path.exists():
            return []
        # The file may be from a GPU; Adam moves its state to the device of the weights by itself.
        state = torch.load(self._path, map_location="cpu", weights_only=True)
        if state["of"] != self._mark:
            msg = f"checkpoint {self._path}: expected one of this training, got one of another"
            raise InvalidArgument(msg, file=str(self._path))
        module.load_state_dict(state["module"])
        adam.load_state_dict(state["adam"])
        return [tuple(row) for row in state["curve"]]

    def save(
        self,
        module: torch.nn.Module,
        adam: torch.optim.Optimizer,
        curve: list[tuple[float, ...]],
        *,
        last: bool,
    ) -> None:
        """Writes the state if it is the ``last``, or if the file is old enough."""
        due = last or time.monotonic() - self._saved_at >= _CHECKPOINT_EVERY_S
        if self._path is None or not due:
            return
        state = {
            "of": self._mark,
            "module": module.state_dict(),
            "adam": adam.state_dict(),
            "curve": [list(row) for row in curve],
        }
        with replacing(self._path) as fresh:
            torch.save(state, fresh)
        self._saved_at = time.monotonic()
