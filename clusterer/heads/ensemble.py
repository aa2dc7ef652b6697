"""The quality of heads, and one head of the best of them. Pure; no label comes near it.

Heads of different seeds differ: on CIFAR-10 the standard deviation is 6 points of accuracy. A head
is judged by its assignments of neighbours, which it was not trained on if its pairs are views.
docs/heads.md tells how well the criteria follow accuracy where classes are known.
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
    """The quality of a head, without labels.

    Attributes:
        agreement: The mean over pictures and their neighbours of y_i . y_j, 0 to 1: the chance
            that both draw one cluster.
        cohesion: The mean cosine of centred vectors to their cluster's direction, -1 to 1.
        used: The number of clusters that are the likeliest of at least one picture.
    """

    agreement: float
    cohesion: float
    used: int

    def rank(self, criterion: Criterion = "agreement") -> tuple[int, float]:
        """A key that is larger for better heads. A head that lost a cluster comes last.

        Its neighbours agree easily.
        """
        return self.used, self.agreement if criterion == "agreement" else self.cohesion


def quality(assignments: Float32, vectors: Vectors, neighbours: npt.NDArray[np.int32]) -> Quality:
    """The quality of soft ``assignments`` (N, K) of ``vectors`` (N, D), unit length.

    ``neighbours`` int32 (N, M) are the nearest other vectors of each.
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
    """The places of the ``count`` best ``qualities`` by ``criterion``, best first."""
    order = sorted(range(len(qualities)), key=lambda i: qualities[i].rank(criterion), reverse=True)
    return order[:count]


def ensemble(networks: Sequence[Network], assignments: Sequence[Float32]) -> Network:
    """One head that gives the mean of the votes of ``networks``, in the clusters of the first.

    ``assignments`` are the networks' soft assignments (N, K) of the same vectors. They align the
    clusters by overlap, sum_i y_ik y'_il (Hungarian).
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes half a second

    first = assignments[0]
    aligned = [networks[0]]
    for network, found in zip(networks[1:], assignments[1:], strict=True):
        overlap = first.T @ found  # (K, K)
        _, order = linear_sum_assignment(-overlap)
        aligned.append(with_order(network, order))
    return together(aligned)
