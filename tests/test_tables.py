"""Tables of the tests themselves: a row that has gone stale would leave something out unseen."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

TESTS = Path(__file__).parent


def test_quick_leaves_out_what_exists() -> None:
    """Each place that ``--quick`` leaves out is a file or a folder of the tests."""
    left_out = run_path(str(TESTS / "conftest.py"))["NOT_QUICK"]
    assert [place for place in left_out if not (TESTS / place).exists()] == []


def test_mutants_are_made_of_modules_and_tests_that_exist() -> None:
    """Each module that ``make mutants`` sabotages, and each file that owns it."""
    owners = run_path(str(TESTS / "mutants.py"))["OWNERS"]
    named = [*owners, *(test for tests in owners.values() for test in tests)]
    assert [place for place in named if not (TESTS.parent / place).exists()] == []
