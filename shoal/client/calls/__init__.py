"""The calls of the SDK, each declared once: its arguments, its request and its answer.

The functions of this room build values of the four kinds below. ``Client`` and ``AsyncClient``
carry them out, each in its own way. Pure: no channel, no clock, no thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, get_args

from google.protobuf.message import Message

COLLECTION = "images"
CLUSTERING = "default"

Service: TypeAlias = Literal["embedder", "clusterer", "search"]
SERVICES: tuple[Service, ...] = get_args(Service)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")
_Method = TypeVar("_Method", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Asked:
    """The ``method`` of a service, and the request to call it with."""

    service: Service
    method: str
    request: Message


@dataclass(frozen=True, slots=True)
class Call(Asked, Generic[T]):
    """One request with one answer, which ``parse`` makes a value."""

    parse: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Stream(Asked, Generic[T]):
    """One request with a stream of answers, each of which ``parse`` makes a value."""

    parse: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Pages(Asked, Generic[T]):
    """A list that comes in pages: the same request again and again, with the last page's token.

    ``parse`` takes the values out of one page.
    """

    parse: Callable[[Any], Iterable[T]]

    def next_request(self, page: Any) -> bool:
        """Makes the request ask for the page after ``page``; False if that was the last page."""
        request: Any = self.request
        request.page_token = page.next_page_token
        return bool(request.page_token)


class Gatherer(Protocol[T_co]):
    """Makes one value of several parts."""

    def add(self, part: Any, /) -> None:
        """Takes one part, in order."""

    def value(self) -> T_co:
        """The value, once all parts are there."""


@dataclass(frozen=True, slots=True)
class Gathered(Generic[T]):
    """All pages or all answers of a stream as one value, which a new ``gatherer`` makes."""

    parts: Stream[Any] | Pages[Any]
    gatherer: Callable[[], Gatherer[T]]


def method_of(
    build: Callable[..., object], *, owner: str, returns: str = "{}"
) -> Callable[[_Method], _Method]:
    """Decorates a method of the client ``owner`` that carries out ``build``.

    The method gets the name, the help and the parameters of ``build``. Its signature shows
    ``returns``, whose braces stand for the type of the call's value.
    """

    def decorate(method: _Method) -> _Method:
        signature = inspect.signature(build)
        value = str(signature.return_annotation).partition("[")[2].removesuffix("]")
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [own, *signature.parameters.values()]
        told: Any = method
        told.__name__, told.__qualname__ = build.__name__, f"{owner}.{build.__name__}"
        told.__doc__ = build.__doc__
        told.__signature__ = signature.replace(
            parameters=parameters, return_annotation=returns.format(value)
        )
        return method

    return decorate
