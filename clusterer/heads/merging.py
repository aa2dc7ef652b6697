"""Which of many small clusters are one: over-clustering, when their number is not known. Pure.

A head with more clusters than there are kinds of pictures cuts a kind into pieces, and near the
cuts neighbours draw different pieces. So pieces are merged, those that neighbours confuse most
first, and of all steps that one is taken at which neighbours are most often together beyond what
chance makes of it: the greatest modularity (Newman & Girvan, "Finding and evaluating community
structure in networks", 2004).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clusterer.heads.network import Float32
from shoal.vectors import Labels

Float64 = npt.NDArray[np.float64]


def confusion(votes: Float32, neighbours: npt.NDArray[np.int32]) -> Float64:
    """How often neighbours draw two clusters, (L, L), symmetric; sums to 1.

    J_kl = mean over points i and their neighbours j of y_ik y_jl, and the mean with its transpose.

    Args:
        votes: soft assignments y, float32 (N, L).
        neighbours: int32 (N, M), the nearest others of each.
    """
    theirs = np.zeros_like(votes)
    for column in neighbours.T:
        theirs += votes[column]
    joint = votes.T.astype(np.float64) @ theirs / neighbours.size
    return np.asarray((joint + joint.T) / 2)


def merge(joint: Float64) -> Labels:
    """Groups of clusters, int32 (L,), 0 to K - 1.

    Clusters k and l are confused by J_kl / min(r_k, r_l), r being the shares sum_l J_kl: the chance
    that a neighbour of a point of the smaller one is in the other. The most confused two become one
    before the next are looked for, until two are left; the groups are those of the step with the
    greatest modularity, sum_k J_kk - r_k^2. What nothing draws goes to another group, whichever.

    Args:
        joint: as ``confusion`` gives it.
    """
    joint, groups = joint.copy(), np.arange(len(joint))
    there = np.ones(len(joint), dtype=bool)
    found, most = groups.copy(), -np.inf
    while True:
        shares = joint.sum(axis=1)
        modularity = float(np.trace(joint) - shares @ shares)
        if modularity >= most:
            found, most = groups.copy(), modularity
        if there.sum() <= 2:  # noqa: PLR2004 - one group says nothing
            break
        smaller = np.minimum.outer(shares, shares)
        rates = np.divide(joint, smaller, out=np.ones_like(joint), where=smaller > 0)
        np.fill_diagonal(rates, -1)
        rates[~there], rates[:, ~there] = -1, -1
        kept, gone = np.unravel_index(rates.argmax(), rates.shape)
        joint[kept] += joint[gone]
        joint[:, kept] += joint[:, gone]
        joint[gone], joint[:, gone] = 0, 0
        there[gone] = False
        groups[groups == gone] = kept
    return np.unique(found, return_inverse=True)[1].astype(np.int32)
