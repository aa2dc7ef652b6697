"""Pages of a listing: how many entries one has, and the token of the next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from shoal.errors import InvalidArgument

MAX_PAGE = 1000
"""The most entries of one page."""

T = TypeVar("T")


def page_size(asked: int, default: int) -> int:
    """``asked``, or ``default`` for 0.

    Raises:
        InvalidArgument: it is more than MAX_PAGE.
    """
    if asked > MAX_PAGE:
        raise InvalidArgument(
            f"page_size: expected 1 to {MAX_PAGE}, got {asked}", field="page_size"
        )
    return asked or default


def first_page(
    entries: Sequence[T], size: int, token_of: Callable[[T], str]
) -> tuple[Sequence[T], str]:
    """The first ``size`` entries, and the token of the page after them; empty if none are left.

    ``token_of`` gives the token of the page that begins after an entry.
    """
    page = entries[:size]
    return page, token_of(page[-1]) if len(entries) > size else ""


def no_such_page(token: str) -> InvalidArgument:
    """The error for a ``token`` that no page ended with."""
    return InvalidArgument(f"page_token: no such page: {token!r}", field="page_token")
