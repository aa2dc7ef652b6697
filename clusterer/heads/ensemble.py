"""Which of several heads to trust, and one head of the best of them. Pure; no label comes near it.

Heads of different seeds differ (on CIFAR-10 by 6 points of accuracy, standard deviation). A head
is judged by what it says of neighbours, which is not what it was trained on where the pairs are
views; docs/heads.md has how well the criteria follow accuracy where classes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from clusterer.heads.network import Float32, Network, together, with_order
from clusterer.nearest import cluster_sums
from shoal.vectors import Vectors

Criterion: TypeAlias = Literal["agreement", "cohesion"]
CRITERIA: Final = ("agreement", "cohesion")


@dataclass(frozen=True, slots=True)
class Quality:
    """What is known of a head without labels.

    Attributes:
        agreement: Mean over pictures and their neighbours of y_i . y_j, 0 to 1: the chance that
            both draw one cluster.
        cohesion: Mean cosine of centred vectors to their cluster's direction, -1 to 1.
        used: Clusters that are the likeliest of at least one picture.
    """

    agreement: float
    cohesion: float
    used: int

    def rank(self, criterion: Criterion = "agreement") -> tuple[int, float]:
        """Larger is better. A head that lost a cluster agrees easily, and comes last."""
        return self.used, self.agreement if criterion == "agreement" else self.cohesion


def quality(assignments: Float32, vectors: Vectors, neighbours: npt.NDArray[np.int32]) -> Quality:
    """The quality of soft ``assignments`` (N, K) of ``vectors`` (N, D), unit length.

    ``neighbours`` int32 (N, M) are the nearest others of each.
    """
    labels = assignments.argmax(axis=1).astype(np.int32)
    agreement = np.mean(
        [(assignments * assignments[column]).sum(axis=1).mean() for column in neighbours.T]
    )
    centred = vectors - vectors.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    sums = cluster_sums(centred, labels, assignments.shape[1])
    return Quality(
        agreement=float(agreement),
        cohesion=float(np.linalg.norm(sums, axis=1).sum() / len(vectors)),
        used=len(np.unique(labels)),
    )


def best(qualities: Sequence[Quality], count: int, criterion: Criterion = "agreement") -> list[int]:
    """The places of the ``count`` best by ``criterion``, best first."""
    order = sorted(range(len(qualities)), key=lambda i: qualities[i].rank(criterion), reverse=True)
    return order[:count]


def ensemble(networks: Sequence[Network], assignments: Sequence[Float32]) -> Network:
    """One head that gives the mean of ``networks``' votes, in the clusters of the first.

    ``assignments`` are their soft assignments (N, K) of the same vectors: clusters are aligned by
    their overlap, sum_i y_ik y'_il (Hungarian).
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes half a second

    first = assignments[0]
    aligned = [networks[0]]
    for network, found in zip(networks[1:], assignments[1:], strict=True):
        overlap = first.T @ found  # (K, K)
        _, order = linear_sum_assignment(-overlap)
        aligned.append(with_order(network, order))
    return together(aligned)
