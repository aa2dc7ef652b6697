"""The number of cores that this process may use, by which it sizes its threads and workers."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""A container's quota (cgroup v2): microseconds of processor time, and of their period."""


def usable_cores(quota_file: Path = _CPU_MAX) -> int:
    """The cores of the process's affinity, or of the container's quota, rounded up, if less."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(affinity, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        return affinity
