"""Pages of a listing: how many entries one has, the token of the next, and their bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from shoal.errors import InvalidArgument
from shoal.rpc.config import MAX_MESSAGE_BYTES

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


class AnswerRoom:
    """The bytes that an answer may still have, which is to fit into one message."""

    def __init__(self, most: int = MAX_MESSAGE_BYTES) -> None:
        """Prepares for an answer of at most ``most`` bytes."""
        self._most = most
        self._taken = 0
        self._entries = 0

    def take(self, size: int) -> None:
        """Counts an entry of ``size`` bytes.

        Raises:
            InvalidArgument: the answer is too large with it; says how many entries fit.
        """
        self._taken += size
        if self._taken > self._most:
            msg = (
                f"the answer is larger than the {self._most} bytes of one message: the first "
                f"{self._entries} entries fit. Ask for fewer at once (limit and offset, "
                "page_size), for fewer exemplars, or without vectors"
            )
            raise InvalidArgument(msg, max_bytes=str(self._most), fitting=str(self._entries))
        self._entries += 1
