"""What every kind of place has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from shoal.errors import ImageTooLarge, Unsupported

P = ParamSpec("P")
T = TypeVar("T")

_MAX_SHOWN_CHARS = 200


class Means(Protocol):
    """What one read has at its disposal."""

    async def reserve(self, size: int) -> None:
        """Wait until there is memory for ``size`` bytes. Once, before a body is read."""

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of what blocks, run in a thread; one call after the other."""


class Source(Protocol):
    """Reads the places of one kind."""

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The bytes at ``uri``.

        Raises:
            Unsupported: the place is not among those that are allowed.
            InvalidArgument: the URI is malformed, or leads to what is not an image's file.
            ImageTooLarge: there are more than ``max_bytes``.
            NotFound: there is nothing.
            LocationUnavailable: it cannot be read now.
        """


def shown(uri: str) -> str:
    """``uri`` as a message repeats it."""
    return repr(uri if len(uri) <= _MAX_SHOWN_CHARS else f"{uri[:_MAX_SHOWN_CHARS]}...")


def not_allowed(uri: str) -> Unsupported:
    """The error for a place that is not allowed: it tells nothing about what is there."""
    msg = f"image.uri: expected a place that this server may read, got {shown(uri)}"
    return Unsupported(msg, field="image.uri")


def check_size(uri: str, size: int, max_bytes: int) -> None:
    """ImageTooLarge if ``size`` is more than ``max_bytes``."""
    if size > max_bytes:
        msg = f"image {shown(uri)}: expected at most {max_bytes} bytes, got {size}"
        raise ImageTooLarge(msg, max_bytes=str(max_bytes), bytes=str(size))
