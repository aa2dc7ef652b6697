"""What every test needs of its process, whoever started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from distribution import LongestFirst, rank_of
from quick_disk import quick_directory

# `make test &`, nohup and some CI systems start us with SIGINT ignored. Python then raises no
# KeyboardInterrupt, and our children inherit it: no test could interrupt anything.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP's threads would spin while they wait, on cores that other workers and servers need. The
# libraries read this when they are loaded, which is after this; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

TESTS: Final = Path(__file__).parent
NOT_QUICK: Final = {
    "app/bench": "measures for minutes",
    "app/cli/test_bench.py": "measures for minutes",
    "app/cli/test_clustering.py": "starts many processes",
    "app/cli/test_demo.py": "starts many processes",
    "app/cli/test_ingest.py": "starts many processes",
    "app/cli/test_model.py": "PyTorch",
    "app/cli/test_processes.py": "starts many processes",
    "app/cli/test_streams.py": "starts many processes",
    "app/cli/test_text.py": "PyTorch",
    "app/cli/test_train.py": "PyTorch",
    "app/cli/test_up.py": "starts many processes",
    "clusterer/fits/test_methods.py": "evoc and umap, which compile for minutes",
    "clusterer/heads": "PyTorch",
    "docs": "walks the tour for a minute",
    "e2e": "starts, kills and waits for many processes",
    "embedder/export": "PyTorch",
    "packaging": "builds and installs the package",
    "spark": "Spark, on Java",
    "store/test_kills.py": "starts and kills processes",
}
"""Tests that ``pytest --quick`` (``make quick``) leaves out, and why; ``make test`` runs them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="leave out NOT_QUICK of tests/conftest.py"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True for what ``--quick`` leaves out; otherwise pytest decides."""
    if config.getoption("--quick"):
        name = collection_path.relative_to(TESTS).as_posix() if collection_path != TESTS else ""
        return True if name in NOT_QUICK else None
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LongestFirst | None:
    """With several processes and ``--dist loadfile``, tests/support/distribution.py decides."""
    return LongestFirst(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves the longest files to the front, where several processes share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank_of(item.nodeid))


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.getoption("--quick"):
        return f"quick: without {', '.join(NOT_QUICK)}"
    return None


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """As ``tmp_path``, for stores: in memory where there is room, because syncing is slow."""
    with quick_directory() as path:
        yield path
