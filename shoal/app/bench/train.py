"""The training of a head against the matrix products that it cannot do without.

The products alone are the floor: both views of each batch go forward, and backward by the inputs
(except the first layer's) and by the weights. Batch norm, losses, Adam and Python come on top.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from clusterer.heads.loop import Training, train
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.scp import Scp, ScpOptions
from shoal.app.bench import machine
from shoal.vectors import Vectors, unit

_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class TrainBench:
    """``points`` vectors of ``dim``, ``clusters`` clusters, for ``epochs`` epochs on ``device``."""

    points: int = 50_000
    dim: int = 512
    clusters: int = 10
    epochs: int = 30
    batch: int = 512
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Seconds of the training, of its products alone, and of the search for neighbours."""

    machine: str
    steps: int
    training_s: float
    products_s: float
    neighbours_s: float
    gflop: float

    @property
    def ratio(self) -> float:
        """The training's time, as a multiple of the time of its products."""
        return self.training_s / self.products_s


def bench_train(config: TrainBench) -> TrainResult:
    """Times one seed's training, then its products, on this machine.

    Both run once before, untimed: the first run loads libraries, on a GPU for seconds.
    """
    vectors = _groups(config)
    began = time.perf_counter()
    neighbours = nearest_neighbours(vectors, _NEIGHBOURS)
    neighbours_s = time.perf_counter() - began
    pairs = Pairs(vectors, len(vectors), neighbours)
    training = Training(
        config.clusters,
        epochs=config.epochs,
        batch=config.batch,
        device=config.device,
    )
    objective = Scp(torch.from_numpy(vectors), config.clusters, ScpOptions(), seed=0)
    _warm_up(config)
    began = time.perf_counter()
    train(pairs, objective, training)
    training_s = time.perf_counter() - began
    steps = config.epochs * (config.points // min(config.batch, config.points))
    products_s, gflop = _products(config, steps)
    return TrainResult(
        f"{machine.describe()}, torch {torch.__version__} on {_device_name(config.device)}",
        steps,
        training_s,
        products_s,
        neighbours_s,
        gflop,
    )


def _warm_up(config: TrainBench) -> None:
    """Trains two steps and takes three steps' products: libraries load, threads start."""
    few = _groups(replace(config, points=min(2 * config.batch, config.points)))
    pairs = Pairs(few, len(few), nearest_neighbours(few, _NEIGHBOURS))
    training = Training(config.clusters, epochs=1, batch=config.batch, device=config.device)
    train(pairs, Scp(torch.from_numpy(few), config.clusters, ScpOptions(), seed=0), training)
    _products(config, 3)


def _products(config: TrainBench, steps: int) -> tuple[float, float]:
    """The seconds and the GFLOP of the matrix products of ``steps`` steps."""
    options = ScpOptions()
    widths = [config.dim, *[options.width] * (options.layers - 1), config.clusters]
    rows = 2 * min(config.batch, config.points)
    device = torch.device(config.device)
    inputs = [torch.rand(rows, width, device=device) for width in widths]
    weights = [torch.rand(a, b, device=device) for a, b in itertools.pairwise(widths)]
    flop = 0.0
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(steps):
            for i, weight in enumerate(weights):
                torch.mm(inputs[i], weight)
                torch.mm(inputs[i].T, inputs[i + 1])
                flop += 4 * rows * weight.numel()
                if i:
                    torch.mm(inputs[i + 1], weight.T)
                    flop += 2 * rows * weight.numel()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, flop / 1e9


def _groups(config: TrainBench) -> Vectors:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(config.clusters, config.dim))
    labels = rng.integers(config.clusters, size=config.points)
    noise = 2 * rng.normal(size=(config.points, config.dim))
    return unit((centres[labels] + noise).astype(np.float32))


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"
