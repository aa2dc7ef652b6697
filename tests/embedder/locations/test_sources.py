"""What all kinds of place tell a caller: the place, cut short, and never what is there."""

from __future__ import annotations

import pytest

from embedder.locations.sources import check_size, not_allowed, shown
from shoal.errors import ImageTooLarge


def test_uri_is_shown_up_to_a_length() -> None:
    """200 characters stay whole; of more, those and three dots. Odd ones are escaped."""
    assert shown("x" * 200) == repr("x" * 200)
    assert shown("x" * 201) == repr("x" * 200 + "...")
    assert shown("a\nb") == "'a\\nb'"


def test_place_that_is_not_allowed_is_told_by_name_only() -> None:
    """One answer, whatever is there."""
    error = not_allowed("file:///x")
    told = "image.uri: expected a place that this server may read, got 'file:///x'"
    assert (error.message, error.metadata["field"]) == (told, "image.uri")


def test_size_may_be_the_limit() -> None:
    """One byte more is refused, with both numbers."""
    check_size("u", 10, 10)
    with pytest.raises(ImageTooLarge) as caught:
        check_size("u", 11, 10)
    assert caught.value.message == "image 'u': expected at most 10 bytes, got 11"
    assert (caught.value.metadata["max_bytes"], caught.value.metadata["bytes"]) == ("10", "11")
