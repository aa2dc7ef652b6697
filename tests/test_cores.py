from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.cores import usable_cores

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(2, AFFINITY)),
        ("6400000 100000", min(64, AFFINITY)),
        ("0 100000", 1),
        ("max 100000", AFFINITY),
        ("", AFFINITY),
    ],
)
def test_cores_follow_the_containers_quota(tmp_path: Path, quota: str, expected: int) -> None:
    """A quota below the affinity counts, rounded up; none, or an unreadable one, does not."""
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == expected


def test_cores_without_cgroups_are_those_of_the_affinity(tmp_path: Path) -> None:
    """Where there is no quota file, the affinity decides."""
    assert usable_cores(tmp_path / "missing") == AFFINITY
