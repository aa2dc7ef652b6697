"""Interleaved rounds of several workloads, and what came of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Workload:
    """Something to time: ``run`` does it once and returns the seconds of each of its calls.

    ``units`` is what one run handles, in the row's unit (images, points, searches); ``prepare``
    comes before each run and is not timed.
    """

    name: str
    units: int
    run: Callable[[], Sequence[float]]
    prepare: Callable[[], object] = lambda: None


@dataclass(slots=True)
class Row:
    """What was measured of one workload; ``rates`` are units per second, one per round."""

    name: str
    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Units per second: the median of the rounds."""
        return statistics.median(self.rates)

    def percentile_ms(self, q: float) -> float | None:
        """The ``q``-th percentile of the calls, in ms; None where calls were not timed."""
        return float(np.percentile(self.latencies_s, q)) * 1e3 if self.latencies_s else None


def measure(workloads: Sequence[Workload], rounds: int) -> list[Row]:
    """Runs all ``workloads`` in turn, ``rounds`` times, after one round that is not counted."""
    rows = [Row(workload.name) for workload in workloads]
    for counted in range(rounds + 1):
        for workload, row in zip(workloads, rows, strict=True):
            workload.prepare()
            began = time.perf_counter()
            latencies = workload.run()
            elapsed = time.perf_counter() - began
            if counted:
                row.rates.append(workload.units / elapsed)
                row.latencies_s.extend(latencies)
    return rows
