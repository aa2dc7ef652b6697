"""Compares the points that came in since a run with the points of the run. Pure.

There are four signs: the collection has grown by half; more of the newcomers are noise; they are
assigned with less confidence; they go to other clusters. Two signs make a reclustering due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.values import Drift
from shoal.vectors import NOISE

LEAST_NEWCOMERS: Final = 50
"""The fewest newcomers whose shares say something."""
GROWTH: Final = 0.5
"""The newcomers, as a share of the run's points, from which the collection has grown."""
NOISE_MORE: Final = 0.1
"""By how much the share of noise may be larger among the newcomers than among the run's points."""
CONFIDENCE_LEFT: Final = 0.8
"""The least confidence of the newcomers, as a share of that of the run's points."""
PSI_SHIFT: Final = 0.25
"""The stability index from which a population has shifted, by custom; from 0.1 on it is watched."""
_SIGNS_DUE: Final = 2
"""The signs that make a reclustering due."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The points of a run: ``sizes`` by cluster id, NOISE included, and their mean confidence."""

    sizes: Mapping[int, int]
    confidence: float


def compare(baseline: Baseline, sizes: Mapping[int, int], *, confidence: float | None) -> Drift:
    """The drift since ``baseline``.

    Args:
        baseline: the points of the run.
        sizes: the points of each cluster now, NOISE included.
        confidence: the mean confidence of the points assigned since; None without any.
    """
    came = {
        c: max(0, sizes.get(c, 0) - baseline.sizes.get(c, 0)) for c in {*sizes, *baseline.sizes}
    }
    before, newcomers = sum(baseline.sizes.values()), sum(came.values())
    run_noise = baseline.sizes.get(NOISE, 0) / max(1, before)
    noise = came.get(NOISE, 0) / max(1, newcomers)
    now = baseline.confidence if confidence is None else confidence
    psi = stability_index(baseline.sizes, came)
    signs = list[str]()
    if newcomers >= GROWTH * max(1, before):
        signs.append(f"{newcomers} points came in since a run of {before}")
    if newcomers >= LEAST_NEWCOMERS:
        if noise > run_noise + NOISE_MORE:
            signs.append(f"{noise:.0%} of them are noise, and {run_noise:.0%} of the run's were")
        if now < CONFIDENCE_LEFT * baseline.confidence:
            signs.append(
                f"their confidence is {now:.2f}, and the run's was {baseline.confidence:.2f}"
            )
        if psi >= PSI_SHIFT:
            signs.append(f"they go to other clusters: stability index {psi:.2f}")
    return Drift(
        newcomers=newcomers,
        noise_share=noise,
        run_noise_share=run_noise,
        confidence=now,
        run_confidence=baseline.confidence,
        psi=psi,
        due=len(signs) >= _SIGNS_DUE,
        signs=tuple(signs),
    )


def stability_index(expected: Mapping[int, int], got: Mapping[int, int]) -> float:
    """The population stability index sum (q - p) ln(q / p) of shares p, q, less its chance value.

    Half a point is added to each count, so that an empty cluster gives a finite number. n and m
    points of one population in K clusters give about (K - 1)(1/n + 1/m) by chance alone (Yurdakul
    and Naranjo, "Statistical properties of the population stability index", 2020), which is taken
    off.

    Returns:
        0 if either side is empty.
    """
    keys = sorted({*expected, *got})
    p = np.array([expected.get(key, 0) for key in keys], np.float64)
    q = np.array([got.get(key, 0) for key in keys], np.float64)
    n, m = p.sum(), q.sum()
    if not n or not m:
        return 0.0
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (p, q))
    by_chance = (len(keys) - 1) * (1 / n + 1 / m)
    return max(0.0, float(((q - p) * np.log(q / p)).sum()) - float(by_chance))
