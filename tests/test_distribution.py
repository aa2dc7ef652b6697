"""Which tests share a process, and which come first."""

from __future__ import annotations

from pathlib import Path

import pytest
from distribution import FIRST, TOGETHER, rank_of, scope_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/spark/test_ingest.py::test_one[a::b]", "tests/spark"),
        ("tests/e2e/test_kill.py::test_one", "tests/e2e/test_kill.py"),
        ("tests/e2e/test_kill.py::TestSome::test_one", "tests/e2e/test_kill.py"),
    ],
)
def test_scope_is_the_file_or_a_directory_that_stays_together(nodeid: str, scope: str) -> None:
    """A test's name, whatever is in it, changes nothing."""
    assert scope_of(nodeid) == scope


def test_long_files_come_first() -> None:
    """In the order of FIRST; by whole names, and all others last."""
    wanted = ["tests/spark/test_slices.py::t", "tests/embedder/export/test_timm.py::t"]
    others = ["tests/sparkling.py::t", "tests/embedder/test_service.py::t"]
    assert sorted([*others, *reversed(wanted)], key=rank_of) == [*wanted, *others]


def test_tables_name_places_that_exist() -> None:
    """A file that was moved must move there too."""
    assert [place for place in (*TOGETHER, *FIRST) if not (ROOT / place).exists()] == []
