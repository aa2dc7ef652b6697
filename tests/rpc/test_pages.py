from __future__ import annotations

import pytest

from shoal.errors import InvalidArgument
from shoal.rpc.pages import MAX_PAGE, AnswerRoom, first_page, no_such_page, page_size


def test_page_size_is_what_was_asked_for_or_the_default() -> None:
    """0 means the default; anything up to the most stands."""
    assert [page_size(asked, 50) for asked in (0, 1, 49, MAX_PAGE)] == [50, 1, 49, MAX_PAGE]


def test_page_size_past_the_most_is_refused() -> None:
    """One entry more than the most is an error that names the field."""
    with pytest.raises(InvalidArgument, match="page_size: expected 1 to 1000, got 1001") as refused:
        page_size(MAX_PAGE + 1, 50)
    assert refused.value.metadata == {"field": "page_size"}


def test_pages_give_every_entry_once() -> None:
    """Following the tokens gives all entries in their order; the last page has no token."""
    entries = list("abcdefg")
    for size in range(1, 9):
        pages, start = [], 0
        while True:
            page, token = first_page(entries[start:], size, lambda entry: entry)
            pages.append("".join(page))
            if not token:
                break
            start = entries.index(token) + 1
        assert "".join(pages) == "abcdefg"
        assert {len(page) for page in pages[:-1]} <= {size}
        assert pages[-1]


def test_empty_listing_is_one_empty_page() -> None:
    """Without entries there is a page, and none after it."""
    assert first_page([], 3, str) == ([], "")


def test_unknown_page_is_named() -> None:
    """The error repeats the token, and names the field."""
    error = no_such_page("x:y")
    assert str(error) == "page_token: no such page: 'x:y'"
    assert error.metadata == {"field": "page_token"}


def test_answer_past_its_room_says_how_many_entries_fit() -> None:
    """To the byte, and what to ask for instead."""
    room = AnswerRoom(10)
    for size in (4, 6, 0):
        room.take(size)
    with pytest.raises(InvalidArgument, match="the first 3 entries fit") as caught:
        room.take(1)
    assert "limit and offset" in caught.value.message
    assert caught.value.metadata == {"max_bytes": "10", "fitting": "3"}
