"""The merging of too many clusters, for when their number is not known. Pure.

A head with more clusters than there are kinds of pictures cuts a kind into pieces, and near the
cuts neighbours draw different pieces. So pieces are merged; those that neighbours confuse most come
first. The result is the step with the greatest modularity, at which neighbours are together most
often beyond chance (Newman & Girvan, "Finding and evaluating community structure in networks",
2004).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clusterer.heads.network import Float32
from shoal.vectors import Labels

Float64 = npt.NDArray[np.float64]


def confusion(votes: Float32, neighbours: npt.NDArray[np.int32]) -> Float64:
    """The share of pairs of neighbours that draw clusters k and l, (L, L), symmetric; sums to 1.

    J_kl is the mean over points i and their neighbours j of y_ik y_jl, made symmetric.

    Args:
        votes: soft assignments y, float32 (N, L).
        neighbours: int32 (N, M), the nearest others of each point.
    """
    theirs = np.zeros_like(votes)
    for column in neighbours.T:
        theirs += votes[column]
    joint = votes.T.astype(np.float64) @ theirs / neighbours.size
    return np.asarray((joint + joint.T) / 2)


def merge(joint: Float64) -> Labels:
    """The group of each cluster, int32 (L,), 0 to K - 1.

    Clusters k and l are confused by J_kl / min(r_k, r_l), with the shares r_k = sum_l J_kl: the
    chance that a neighbour of a point of the smaller one is in the other. The two most confused
    become one, then the next two, until two are left. The groups are those of the step with the
    greatest modularity, sum_k J_kk - r_k^2. A cluster that nothing draws goes to any other group.

    Args:
        joint: as ``confusion`` gives it.
    """
    joint, groups = joint.copy(), np.arange(len(joint))
    left = np.ones(len(joint), dtype=bool)
    found, most = groups.copy(), -np.inf
    while True:
        shares = joint.sum(axis=1)
        modularity = float(np.trace(joint) - shares @ shares)
        if modularity >= most:
            found, most = groups.copy(), modularity
        if left.sum() <= 2:  # noqa: PLR2004 - one group says nothing
            break
        smaller = np.minimum.outer(shares, shares)
        rates = np.divide(joint, smaller, out=np.ones_like(joint), where=smaller > 0)
        np.fill_diagonal(rates, -1)
        rates[~left], rates[:, ~left] = -1, -1
        kept, gone = np.unravel_index(rates.argmax(), rates.shape)
        joint[kept] += joint[gone]
        joint[:, kept] += joint[:, gone]
        joint[gone], joint[:, gone] = 0, 0
        left[gone] = False
        groups[groups == gone] = kept
    return np.unique(found, return_inverse=True)[1].astype(np.int32)
