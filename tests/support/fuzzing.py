"""Targets for data by chance: a few in every run of the tests, many with ``make fuzz``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

TIMES: Final = int(os.environ.get("SHOAL_TEST_FUZZ", "1"))
"""How many times as many examples as usual; above 1, other ones in each run."""


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Marks a test of Hypothesis as a target that is tried with this many examples as usual."""

    def mark(test: Any) -> Any:
        bounded = settings(
            max_examples=examples * TIMES,
            deadline=None,
            derandomize=TIMES == 1,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        timeout = pytest.mark.timeout(60 * (1 + TIMES))
        return pytest.mark.fuzz(timeout(bounded(test)))

    return mark
