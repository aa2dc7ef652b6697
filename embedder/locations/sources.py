"""The interface of a kind of place, and the errors that all kinds share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from shoal.errors import ImageTooLarge, Unsupported

P = ParamSpec("P")
T = TypeVar("T")

_MAX_SHOWN_CHARS = 200


class Means(Protocol):
    """The memory and the thread of one read."""

    async def reserve(self, size: int) -> None:
        """Waits until there is memory for ``size`` bytes; called once, before a body is read."""

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the blocking ``call``, run in a thread; one call after the other."""


class Source(Protocol):
    """Reads the places of one kind."""

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The bytes at ``uri``.

        Raises:
            Unsupported: the place is not allowed.
            InvalidArgument: the URI is malformed, or names something that is not a file.
            ImageTooLarge: there are more than ``max_bytes``.
            NotFound: there is nothing at ``uri``.
            LocationUnavailable: the place cannot be read now.
        """


def shown(uri: str) -> str:
    """``uri`` as a message shows it: quoted, and cut if it is long."""
    return repr(uri if len(uri) <= _MAX_SHOWN_CHARS else f"{uri[:_MAX_SHOWN_CHARS]}...")


def not_allowed(uri: str) -> Unsupported:
    """The error for a place that is not allowed; it does not tell whether anything is there."""
    msg = f"image.uri: expected a place that this server may read, got {shown(uri)}"
    return Unsupported(msg, field="image.uri")


def check_size(uri: str, size: int, max_bytes: int) -> None:
    """Raises ImageTooLarge if ``size`` is more than ``max_bytes``."""
    if size > max_bytes:
        msg = f"image {shown(uri)}: expected at most {max_bytes} bytes, got {size}"
        raise ImageTooLarge(msg, max_bytes=str(max_bytes), bytes=str(size))
