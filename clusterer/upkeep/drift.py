"""How what came in since a run compares with what the run saw, and whether to run again. Pure.

Four signs, two of which make a reclustering due: the collection has grown by half; more of what
comes in is noise; its assignment is less confident; it goes to other clusters than before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.values import Drift
from shoal.vectors import NOISE

LEAST_NEWCOMERS: Final = 50
"""With fewer, shares say nothing."""
GROWTH: Final = 0.5
NOISE_MORE: Final = 0.1
CONFIDENCE_LEFT: Final = 0.8
PSI_SHIFT: Final = 0.25
"""The customary bound of a population that has shifted; .1 is watched."""
_SIGNS_DUE: Final = 2


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a run saw: ``sizes`` of its clusters by id, NOISE included, and its mean confidence."""

    sizes: Mapping[int, int]
    confidence: float


def compare(baseline: Baseline, sizes: Mapping[int, int], *, confidence: float | None) -> Drift:
    """The drift since ``baseline``.

    Args:
        baseline: what the run saw.
        sizes: points by cluster now, NOISE included.
        confidence: mean confidence of those assigned since; None if there are none.
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

    Each count has half a point added, so that an empty cluster is finite. From one population,
    n and m points in K clusters give about (K - 1)(1/n + 1/m) by chance alone (Yurdakul and
    Naranjo, "Statistical properties of the population stability index", 2020); that is taken off.

    Returns:
        0 if either side is empty.
    """
    keys = sorted({*expected, *got})
    p = np.array([expected.get(key, 0) for key in keys], np.float64)
    q = np.array([got.get(key, 0) for key in keys], np.float64)
    n, m = p.sum(), q.sum()
    if not n or not m:
        return 0.0
    p, q = ((one + 0.5) / (one + 0.5).sum() for one in (p, q))
    by_chance = (len(keys) - 1) * (1 / n + 1 / m)
    return max(0.0, float(((q - p) * np.log(q / p)).sum()) - float(by_chance))
