"""What every test needs of its process, whoever started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick_disk import quick_directory

# `make test &`, nohup and some CI systems start us with SIGINT ignored. Python then raises no
# KeyboardInterrupt, and our children inherit it: no test could interrupt anything.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP's threads would spin while they wait, on cores that other workers and servers need. The
# libraries read this when they are loaded, which is after this; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """As ``tmp_path``, for stores: in memory where there is room, because syncing is slow."""
    with quick_directory() as path:
        yield path
