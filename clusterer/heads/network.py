"""A trained head as numbers. NumPy only.

A network is one or more branches, each a small perceptron with a softmax; its assignments are the
mean of theirs. An ensemble of heads is a network with all their branches, their clusters aligned.
If too many clusters were trained, ``groups`` says which of them are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shoal.vectors import Labels, Vectors

Float32 = npt.NDArray[np.float32]

_LEAST_LENGTH = 1e-12
"""The least length that is scaled to 1: a shorter vector has no direction."""


@dataclass(frozen=True, slots=True)
class Layer:
    """``x`` (B, I) to ``x @ weight + bias``: weight float32 (I, O), bias float32 (O,)."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True)
class Branch:
    """One perceptron: centred vectors, layers with ReLU in between, softmax.

    Attributes:
        mean: float32 (D,), the centre.
        unit: True if centred vectors are scaled to length 1.
        layers: The last one gives the logits (B, K).
    """

    mean: Float32
    unit: bool
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A head.

    Attributes:
        branches: All have the same D and the same number L of outputs.
        groups: int32 (L,), 0 to K - 1, each at least once: the cluster of each output. A cluster's
            votes are the sum of its outputs'. None: each output is a cluster.
    """

    branches: tuple[Branch, ...]
    groups: Labels | None = None

    @property
    def dim(self) -> int:
        """D."""
        return len(self.branches[0].mean)

    @property
    def outputs(self) -> int:
        """L."""
        return len(self.branches[0].layers[-1].bias)

    @property
    def clusters(self) -> int:
        """K."""
        return self.outputs if self.groups is None else int(self.groups.max()) + 1

    def grouping(self) -> Float32:
        """``groups`` as a matrix (L, K) of zeros and ones; without groups the identity."""
        groups = np.arange(self.outputs) if self.groups is None else self.groups
        return np.eye(self.clusters, dtype=np.float32)[groups]

    def probabilities(self, vectors: Vectors) -> Float32:
        """The soft assignments (B, K) of ``vectors`` (B, D); rows sum to 1."""
        total = sum(_branch_probabilities(branch, vectors) for branch in self.branches)
        votes = np.asarray(total / np.float32(len(self.branches)), dtype=np.float32)
        return votes if self.groups is None else votes @ self.grouping()


def _branch_probabilities(branch: Branch, vectors: Vectors) -> Float32:
    x: Float32 = vectors - branch.mean
    if branch.unit:
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LEAST_LENGTH)
    for layer in branch.layers[:-1]:
        x = np.maximum(x @ layer.weight + layer.bias, 0)
    x = x @ branch.layers[-1].weight + branch.layers[-1].bias
    return softmax(x)


def softmax(logits: Float32) -> Float32:
    """exp(logits) (B, K), with rows that sum to 1."""
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)


def with_order(network: Network, order: npt.NDArray[np.integer]) -> Network:
    """The same head with its outputs in another order: the new k-th is the old ``order[k]``-th.

    The head must have no groups yet.
    """
    assert network.groups is None  # noqa: S101 - a group's number would be lost

    def reordered(branch: Branch) -> Branch:
        last = branch.layers[-1]
        moved = Layer(
            np.ascontiguousarray(last.weight[:, order]), np.ascontiguousarray(last.bias[order])
        )
        return replace(branch, layers=(*branch.layers[:-1], moved))

    return Network(tuple(reordered(branch) for branch in network.branches))


def together(networks: Sequence[Network]) -> Network:
    """One head of several with aligned clusters: it gives the mean of their votes."""
    return Network(tuple(branch for network in networks for branch in network.branches))
