"""Vectors whose classes are known and hard for k-means."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from shoal.vectors import Vectors

Classes = npt.NDArray[np.int64]


def hard_classes(seed: int, *, n: int = 2000, k: int = 6) -> tuple[Vectors, Classes]:
    """Unit vectors (n, 32) of ``k`` classes of unequal size (1 to 2), near in pairs.

    What they share hides them: two directions of large spread, common to all classes, factors of
    each class's own, and correlated noise. A class is one dense region, but not a round one.
    """
    dim, near, shared, own, noise = 32, 0.5, 0.6, 0.4, 0.15
    rng = np.random.default_rng(seed)
    shares = np.linspace(1, 2, k)
    classes = rng.choice(k, n, p=shares / shares.sum())
    prototypes = _directions(rng, k, dim)
    prototypes[1::2] = near * prototypes[::2] + np.sqrt(1 - near**2) * prototypes[1::2]
    nuisance = rng.uniform(-1.7, 1.7, (n, 2)) @ _directions(rng, 2, dim)
    factors = _directions(rng, 2 * k, dim).reshape(k, 2, dim)[classes]
    inside = np.einsum("nf,nfd->nd", rng.normal(size=(n, 2)), factors)
    correlated = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) / np.sqrt(dim)
    points = prototypes[classes] + shared * nuisance + own * inside + noise * correlated
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), classes


def _directions(rng: np.random.Generator, count: int, dim: int) -> npt.NDArray[np.float64]:
    found = rng.normal(size=(count, dim))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def accuracy(classes: Classes, labels: npt.NDArray[np.integer]) -> float:
    """Share of points in the right cluster after the best matching of clusters to classes."""
    counts = np.zeros((int(labels.max()) + 1, int(classes.max()) + 1), np.int64)
    np.add.at(counts, (labels, classes), 1)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(classes))
