"""What a process loads before it works: every start of a server and of a Spark task pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = ("pandas", "scipy.optimize", "scipy.stats", "sklearn", "torch", "transformers", "numba")
"""Modules that take half a second or more, and are needed by some work only."""


@pytest.mark.parametrize(
    "module",
    ["clusterer.service", "clusterer.spark.passes", "embedder.service", "search.service"],
)
def test_service_loads_no_slow_module_before_it_needs_it(module: str) -> None:
    """Importing a service loads none of SLOW."""
    program = f"import sys, {module}; print(*(name for name in {SLOW} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "\n"
