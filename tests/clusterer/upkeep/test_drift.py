from __future__ import annotations

import numpy as np
import pytest

from clusterer.upkeep.drift import Baseline, compare, stability_index
from shoal.vectors import NOISE

RUN = Baseline({0: 500, 1: 300, NOISE: 200}, confidence=0.6)


def grown(**more: int) -> dict[int, int]:
    """The sizes of the run with ``c0``, ``c1``, ``noise`` more points."""
    keys = {"c0": 0, "c1": 1, "noise": NOISE, "c2": 2}
    sizes = dict(RUN.sizes)
    for name, count in more.items():
        sizes[keys[name]] = sizes.get(keys[name], 0) + count
    return sizes


def test_nothing_new_is_no_drift() -> None:
    """Without newcomers there is no sign, and points that were deleted are none."""
    for sizes in (dict(RUN.sizes), {0: 400, 1: 300, NOISE: 200}):
        drift = compare(RUN, sizes, confidence=None)
        assert (drift.newcomers, drift.psi, drift.signs, drift.due) == (0, 0.0, (), False)
        assert drift.confidence == 0.6


def test_newcomers_like_the_run_are_no_drift() -> None:
    """The same shares and confidence, and fewer than half as many: no sign."""
    drift = compare(RUN, grown(c0=200, c1=120, noise=80), confidence=0.6)
    assert drift.newcomers == 400
    assert drift.noise_share == pytest.approx(0.2)
    assert drift.signs == ()


@pytest.mark.parametrize(
    ("sizes", "confidence", "words"),
    [
        (grown(c0=250, c1=150, noise=100), 0.6, ["500 points came in"]),
        (grown(c0=40, c1=20, noise=40), 0.6, ["40% of them are noise"]),
        (grown(c0=200, c1=120, noise=80), 0.4, ["confidence is 0.40"]),
        (grown(c1=100), 0.6, ["other clusters"]),
        (grown(noise=100), 0.1, ["noise", "confidence", "other clusters"]),
        (grown(c1=20), 0.1, []),  # too few to say anything
    ],
)
def test_each_sign_is_seen_alone_and_two_make_it_due(
    sizes: dict[int, int], confidence: float, words: list[str]
) -> None:
    """Growth, noise, confidence and other clusters are signs of their own."""
    drift = compare(RUN, sizes, confidence=confidence)
    assert len(drift.signs) == len(words)
    for sign, word in zip(drift.signs, words, strict=True):
        assert word in sign
    assert drift.due == (len(words) >= 2)


def test_stability_index_of_one_population_is_about_zero_however_few() -> None:
    """Chance alone makes no shift: the mean over draws of 60 points from 40 clusters is small."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(40))
    run = dict(enumerate(rng.multinomial(10_000, shares).tolist()))
    few = [dict(enumerate(rng.multinomial(60, shares).tolist())) for _ in range(200)]
    assert np.mean([stability_index(run, one) for one in few]) < 0.25
    other = dict(enumerate(rng.multinomial(60, rng.dirichlet(np.ones(40))).tolist()))
    assert stability_index(run, other) > 0.5


def test_stability_index_is_the_formula() -> None:
    """Two clusters by hand: half a point added, what chance makes taken off."""
    p, q = np.array([80.5, 20.5]) / 101, np.array([50.5, 50.5]) / 101
    expected = ((q - p) * np.log(q / p)).sum() - (1 / 100 + 1 / 100)
    assert stability_index({0: 80, 1: 20}, {0: 50, 1: 50}) == pytest.approx(expected)
    assert stability_index({}, {0: 1}) == 0.0
