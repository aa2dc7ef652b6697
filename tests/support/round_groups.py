"""Unit vectors in round, far groups, their pairs of neighbours, and small heads on them."""

from __future__ import annotations

import numpy as np
import torch

from clusterer.heads.loop import Trained, Training, train
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.scp import Scp, ScpOptions
from shoal.vectors import Vectors

K = 4
SMALL = ScpOptions(width=32)


def round_groups(n: int = 400, dim: int = 12) -> tuple[Vectors, np.ndarray]:
    """``n`` unit vectors in K groups, and their groups."""
    rng = np.random.default_rng(0)
    groups = np.arange(n) % K
    points = rng.normal(size=(K, dim))[groups] + 0.3 * rng.normal(size=(n, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), groups


def neighbour_pairs(vectors: Vectors, count: int = 5) -> Pairs:
    """Pairs of neighbours."""
    return Pairs(vectors, len(vectors), nearest_neighbours(vectors, count))


def scp_head(pairs: Pairs, training: Training, options: ScpOptions = SMALL) -> Scp:
    """A new head for the pictures of ``pairs``."""
    vectors = torch.from_numpy(pairs.vectors[: pairs.pictures])
    return Scp(vectors, training.clusters, options, seed=training.seed)


def trained(
    pairs: Pairs, options: ScpOptions = SMALL, *, seed: int = 0, epochs: int = 20
) -> Trained:
    """A small head that was trained on ``pairs``."""
    training = Training(K, batch=128, epochs=epochs, seed=seed)
    return train(pairs, scp_head(pairs, training, options), training)
