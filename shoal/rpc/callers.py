"""Who calls: the name under which a caller gets its share of a server."""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import grpc.aio

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only

CALLER: Final = "x-shoal-caller"
"""The metadata key by which a proxy, or a program that calls for many, tells its callers apart."""

_MOST: Final = 64
_FORM: Final = re.compile(rf"[A-Za-z0-9._:@-]{{1,{_MOST}}}")
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._:@-]")


def on_behalf_of(context: Context) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that is made for the caller of ``context``."""
    return ((CALLER, _NO_NAME.sub("-", caller_of(context))[:_MOST]),)


def caller_of(context: Context) -> str:
    """The caller's connection, and the name that it gives in ``x-shoal-caller`` if it does.

    Who opens many connections counts as many callers, as who names many does: the shares keep
    honest callers from each other's way, and the bounds on calls the others.
    """
    for key, value in context.invocation_metadata() or ():
        if key == CALLER and isinstance(value, str) and _FORM.fullmatch(value):
            return f"{context.peer()} {value}"
    return str(context.peer())
