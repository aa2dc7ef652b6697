"""Real images that are not part of the project: tests that want them skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SHOAL_TEST_DATA", _ROOT.parent / "shared" / "data"))
"""Where they are: SHOAL_TEST_DATA, or a folder beside the checkout."""


def real(name: str) -> Path:
    """The file called ``name``; skips the test, and says so, if it is not there."""
    file = DATA / name
    if not file.exists():
        pytest.skip(f"needs {name} in SHOAL_TEST_DATA ({DATA})")
    return file
