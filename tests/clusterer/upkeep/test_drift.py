from __future__ import annotations

import numpy as np
import pytest

from clusterer.upkeep.drift import Baseline, compare, stability_index
from shoal.values import Drift
from shoal.vectors import NOISE

RUN = Baseline({0: 500, 1: 300, NOISE: 200}, confidence=0.6)


def grown(*, c0: int = 0, c1: int = 0, c2: int = 0, noise: int = 0) -> dict[int, int]:
    """The sizes of the run with this many more points in each cluster."""
    more = {0: c0, 1: c1, NOISE: noise} | ({2: c2} if c2 else {})
    return {key: RUN.sizes.get(key, 0) + count for key, count in more.items()}


def signs(sizes: dict[int, int], confidence: float = 0.6) -> tuple[str, ...]:
    return compare(RUN, sizes, confidence=confidence).signs


def test_nothing_new_is_no_drift() -> None:
    """Without newcomers there is no sign, and points that were deleted are none."""
    for sizes in (dict(RUN.sizes), {0: 400, 1: 300, NOISE: 200}):
        drift = compare(RUN, sizes, confidence=None)
        assert drift == Drift(
            newcomers=0,
            noise_share=0,
            run_noise_share=0.2,
            confidence=0.6,
            run_confidence=0.6,
            psi=0,
            due=False,
            signs=(),
        )


def test_deleted_points_do_not_hide_newcomers() -> None:
    """Each cluster's newcomers count, a new cluster's too, whatever another cluster has lost."""
    assert compare(RUN, {0: 100, 1: 340, NOISE: 205, 7: 9}, confidence=0.6).newcomers == 54
    assert compare(RUN, {}, confidence=None).newcomers == 0


def test_newcomers_like_the_run_are_no_drift() -> None:
    """The same shares and confidence, and fewer than half as many: no sign."""
    drift = compare(RUN, grown(c0=200, c1=120, noise=80), confidence=0.6)
    assert drift.newcomers == 400
    assert drift.noise_share == pytest.approx(0.2)
    assert drift.psi == 0
    assert drift.signs == ()


def test_signs_say_what_was_found_and_what_was_there() -> None:
    """Each in one sentence with its numbers; all four at once."""
    drift = compare(RUN, grown(c1=100, noise=400), confidence=0.3)
    assert drift.signs == (
        "500 points came in since a run of 1000",
        "80% of them are noise, and 20% of the run's were",
        "their confidence is 0.30, and the run's was 0.60",
        f"they go to other clusters: stability index {drift.psi:.2f}",
    )
    assert (drift.noise_share, drift.run_noise_share) == (0.8, 0.2)
    assert (drift.confidence, drift.run_confidence) == (0.3, 0.6)
    assert drift.due


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


def test_two_signs_are_due_and_one_is_not() -> None:
    """The border between watching and running again."""
    grows = grown(c0=250, c1=150, noise=100)
    assert not compare(RUN, grows, confidence=0.6).due
    both = compare(RUN, grows, confidence=0.4)
    assert len(both.signs) == 2
    assert both.due


def test_growth_begins_at_half() -> None:
    """One point fewer is no growth; a run of nothing grows with its first point."""
    assert signs(grown(c0=250, c1=150, noise=99)) == ()
    assert len(signs(grown(c0=250, c1=150, noise=100))) == 1
    nothing = Baseline({}, confidence=0.0)
    assert compare(nothing, {}, confidence=None).signs == ()
    assert compare(nothing, {0: 1}, confidence=None).signs == ("1 points came in since a run of 0",)


def test_shares_say_something_from_fifty_newcomers_on() -> None:
    """Forty-nine that are all noise are no sign yet."""
    assert signs(grown(noise=49), confidence=0.1) == ()
    assert len(signs(grown(noise=50), confidence=0.1)) == 3


def test_noise_is_a_sign_past_a_tenth_more() -> None:
    """Against a quarter in the run, five in sixteen are none and three in eight are."""
    run = Baseline({0: 768, NOISE: 256}, confidence=0.6)

    def noisy(noise: int) -> bool:
        drift = compare(run, {0: 768 + 64 - noise, NOISE: 256 + noise}, confidence=0.6)
        return any("noise" in sign for sign in drift.signs)

    assert [noisy(16), noisy(20), noisy(22), noisy(23), noisy(24)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_confidence_is_a_sign_below_four_fifths() -> None:
    """At exactly four fifths of the run's it is none."""
    run = Baseline({0: 1000}, confidence=0.5)
    for confidence, sign in ((0.41, False), (0.4, False), (0.39, True)):
        drift = compare(run, {0: 1100}, confidence=confidence)
        assert bool(drift.signs) == sign


def test_stability_index_is_a_sign_from_its_bound_on() -> None:
    """Newcomers that go elsewhere by less than .25 are none; a little more and they are."""
    run = Baseline({0: 500, 1: 500}, confidence=0.6)
    found = [compare(run, {0: 500 + n, 1: 600 - n}, confidence=0.6) for n in range(51)]
    assert [bool(drift.signs) for drift in found] == [drift.psi >= 0.25 for drift in found]
    assert 0 < sum(bool(drift.signs) for drift in found) < 51


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
    """Three clusters by hand, one of them new: half a point added, chance taken off."""
    p, q = np.array([80.5, 20.5, 0.5]) / 101.5, np.array([50.5, 40.5, 10.5]) / 101.5
    expected = ((q - p) * np.log(q / p)).sum() - 2 * (1 / 100 + 1 / 100)
    got = stability_index({0: 80, 1: 20}, {0: 50, 1: 40, 2: 10})
    assert got == pytest.approx(expected)
    unequal = np.array([20.5, 20.5]) / 41, np.array([9.5, 1.5]) / 11
    expected = ((unequal[1] - unequal[0]) * np.log(unequal[1] / unequal[0])).sum()
    got = stability_index({0: 20, 1: 20}, {0: 9, 1: 1})
    assert got == pytest.approx(expected - (1 / 40 + 1 / 10))


@pytest.mark.parametrize(("expected", "got"), [({}, {0: 1}), ({0: 1}, {}), ({0: 0}, {0: 5})])
def test_stability_index_without_points_on_a_side_is_zero(
    expected: dict[int, int], got: dict[int, int]
) -> None:
    """There is nothing to compare."""
    assert stability_index(expected, got) == 0.0


def test_a_run_without_noise_has_a_share_of_none() -> None:
    """What is missing from the sizes counts as no point, on either side."""
    drift = compare(Baseline({0: 10}, 0.5), {0: 20}, confidence=0.5)
    assert (drift.run_noise_share, drift.noise_share) == (0, 0)
    assert compare(Baseline({0: 0, 1: 10}, 0.5), {1: 10}, confidence=None).newcomers == 0


def test_shares_of_one_point_are_whole() -> None:
    """One point of noise is all of one point, in the run and since."""
    drift = compare(Baseline({NOISE: 1}, 0.5), {NOISE: 2}, confidence=0.5)
    assert (drift.run_noise_share, drift.noise_share) == (1, 1)


def test_noise_must_be_more_than_ten_points_above_the_runs() -> None:
    """Exactly ten points above is no sign."""
    run = Baseline({0: 1000}, 0.5)
    at, above = ({0: 1090, NOISE: 10}, {0: 1089, NOISE: 11})
    assert compare(run, at, confidence=0.5).noise_share == 0.1
    assert not any("noise" in sign for sign in compare(run, at, confidence=0.5).signs)
    assert any("noise" in sign for sign in compare(run, above, confidence=0.5).signs)


def test_stability_index_takes_a_missing_cluster_for_an_empty_one() -> None:
    """On either side."""
    whole = {0: 60, 1: 40, 2: 0}
    assert stability_index({0: 60, 1: 40}, {0: 10, 2: 90}) == pytest.approx(
        stability_index(whole, {0: 10, 1: 0, 2: 90})
    )
