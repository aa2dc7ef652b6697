"""A trained head as numbers: what it consists of and what it gives. NumPy only.

A network is one or more branches, each a small perceptron with a softmax; it gives the mean of
their assignments. An ensemble of heads is a network with their branches, clusters aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal.vectors import Vectors

Float32 = npt.NDArray[np.float32]

_LEAST_LENGTH = 1e-12
"""Below it a vector has no direction, and stays as it is."""


@dataclass(frozen=True, slots=True)
class Layer:
    """``x`` (B, I) to ``x @ weight + bias``: weight float32 (I, O), bias float32 (O,)."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True)
class Branch:
    """Centre, perhaps scale to length 1, then layers with ReLU in between, then softmax.

    Attributes:
        mean: float32 (D,).
        unit: Whether what is centred is scaled to length 1.
        layers: The last one gives the logits (B, K).
    """

    mean: Float32
    unit: bool
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A head. ``branches`` have the same D and K."""

    branches: tuple[Branch, ...]

    @property
    def dim(self) -> int:
        """D."""
        return len(self.branches[0].mean)

    @property
    def clusters(self) -> int:
        """K."""
        return len(self.branches[0].layers[-1].bias)

    def probabilities(self, vectors: Vectors) -> Float32:
        """The soft assignments (B, K) of ``vectors`` (B, D); rows sum to 1."""
        total = sum(_branch_probabilities(branch, vectors) for branch in self.branches)
        return np.asarray(total / np.float32(len(self.branches)), dtype=np.float32)


def _branch_probabilities(branch: Branch, vectors: Vectors) -> Float32:
    x: Float32 = vectors - branch.mean
    if branch.unit:
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LEAST_LENGTH)
    for layer in branch.layers[:-1]:
        x = np.maximum(x @ layer.weight + layer.bias, 0)
    x = x @ branch.layers[-1].weight + branch.layers[-1].bias
    return softmax(x)


def softmax(logits: Float32) -> Float32:
    """exp(logits) (B, K), rows scaled to the sum 1."""
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)


def with_order(network: Network, order: npt.NDArray[np.integer]) -> Network:
    """The same head with its clusters in another order: the new k-th is the old ``order[k]``-th."""

    def reordered(branch: Branch) -> Branch:
        last = branch.layers[-1]
        moved = Layer(
            np.ascontiguousarray(last.weight[:, order]), np.ascontiguousarray(last.bias[order])
        )
        return replace(branch, layers=(*branch.layers[:-1], moved))

    return Network(tuple(reordered(branch) for branch in network.branches))


def together(networks: Sequence[Network]) -> Network:
    """One head of several whose clusters are aligned: the mean of their soft votes."""
    return Network(tuple(branch for network in networks for branch in network.branches))
