from __future__ import annotations

import pytest

from shoal.clock import SKEW_S, seen_through


@pytest.mark.parametrize(
    ("ahead_s", "believed"), [(-1e9, True), (0, True), (SKEW_S, True), (SKEW_S + 1, False)]
)
def test_time_further_ahead_than_clocks_differ_is_none(ahead_s: float, believed: bool) -> None:  # noqa: FBT001 - a parameter
    """Nothing can have happened then: it counts as long ago."""
    now = 2e9
    assert seen_through(now + ahead_s, now) == (now + ahead_s if believed else 0.0)
