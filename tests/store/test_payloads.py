from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.payloads import clean_number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_clean_number_moves_little_and_once(value: float) -> None:
    """A number stays what it is to 13 digits, and is the same when it comes back."""
    cleaned = clean_number(value, "x")
    assert cleaned == pytest.approx(value, rel=1e-13, abs=sys.float_info.min)
    assert clean_number(float(cleaned), "x") == cleaned


@given(st.decimals(-10_000_000_000, 10_000_000_000, places=4))
def test_clean_number_keeps_decimals_of_fifteen_digits(value: object) -> None:
    """A decimal of ordinary size with up to 15 significant digits is kept exactly."""
    assert clean_number(float(str(value)), "x") == float(str(value))


@pytest.mark.parametrize("value", [sys.float_info.max, -sys.float_info.max, 5e-324, 2.0**53 * 3])
def test_clean_number_takes_the_extremes(value: float) -> None:
    """The largest, the smallest and whole numbers that are no exact integers are kept."""
    assert clean_number(value, "x") == value
