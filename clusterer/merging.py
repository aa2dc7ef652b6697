"""Which of many small clusters are one: over-clustering, when their number is not known. Pure.

A head with more clusters than there are kinds of pictures cuts a kind into pieces, and near the
cut neighbours draw different pieces. So pieces whose points have many neighbours in each other are
merged, the most confused first, until no two are confused enough.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from clusterer.network import Float32
from shoal.vectors import Labels

CONFUSED: Final = 0.1
"""From here on two clusters are one (docs/scp.md)."""


def confusion(votes: Float32, neighbours: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """How often neighbours draw two clusters, (L, L), symmetric; sums to 1.

    J_kl = mean over points i and their neighbours j of y_ik y_jl, and the mean with its transpose.

    Args:
        votes: soft assignments y, float32 (N, L).
        neighbours: int32 (N, M), the nearest others of each.
    """
    mean = np.zeros_like(votes)
    for column in neighbours.T:
        mean += votes[column]
    joint = votes.T.astype(np.float64) @ mean / neighbours.size
    return np.asarray((joint + joint.T) / 2)


def merge(joint: npt.NDArray[np.float64], *, confused: float = CONFUSED) -> Labels:
    """Groups of clusters, int32 (L,), 0 to K - 1.

    Two clusters k, l are confused by J_kl / min(r_k, r_l), r being the shares sum_l J_kl: the
    chance that a neighbour of a point of the smaller one is in the other. Merged ones are taken as
    one before the next are looked for. What nothing draws goes to another group, whichever.

    Args:
        joint: as ``confusion`` gives it.
        confused: 0 to 1; clusters at least so confused are merged.
    """
    joint, groups = joint.copy(), np.arange(len(joint))
    there = np.ones(len(joint), dtype=bool)
    while there.sum() > 1:
        shares = joint.sum(axis=1)
        smaller = np.minimum.outer(shares, shares)
        rates = np.divide(joint, smaller, out=np.ones_like(joint), where=smaller > 0)
        np.fill_diagonal(rates, -1)
        rates[~there], rates[:, ~there] = -1, -1
        kept, gone = np.unravel_index(rates.argmax(), rates.shape)
        if rates[kept, gone] < confused:
            break
        joint[kept] += joint[gone]
        joint[:, kept] += joint[:, gone]
        joint[gone], joint[:, gone] = 0, 0
        there[gone] = False
        groups[groups == gone] = kept
    _, first = np.unique(groups, return_inverse=True)
    return first.astype(np.int32)
