"""What a plan is told as."""

from __future__ import annotations

import pytest

from shoal.app.cli.printing.describe import amount, describe_plan
from shoal.client.runs import Plan


@pytest.mark.parametrize(
    ("noise", "points", "told"),
    [(3, 12, "noise 3 (25.0%)"), (0, 12, "noise 0 (0.0%)"), (0, 0, "noise 0 (0.0%)")],
)
def test_noise_is_told_with_its_share(noise: int, points: int, told: str) -> None:
    """Of all points; of none where there are none."""
    plan = Plan(
        points=points,
        clusters=0,
        moved=0,
        moved_share=0.0,
        to_write=0,
        noise=noise,
        silhouette=None,
        agreement=None,
        inertia=0.0,
        lineage=(),
        objections=(),
    )
    assert told in describe_plan(plan)[1].split(", ")


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 clusters"), (1, "1 cluster"), (2000, "2,000 clusters")]
)
def test_amounts_are_told_in_the_singular_and_the_plural(count: int, told: str) -> None:
    """One of something is not several."""
    assert amount(count, "cluster") == told
