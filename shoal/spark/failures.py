"""Brings an error of Shoal's tree from a Spark task to the driver: as a value, or in a trace.

An error that would only happen again is a value, so that Spark does not repeat the task. A
TransientError is raised, so that Spark does. The driver then gets Java's text of Python's trace, in
which a marked line holds the error. Pure: knows no Spark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from shoal.errors import ShoalError, TransientError, by_reason

T = TypeVar("T")
R = TypeVar("R")

_MARK: Final = "SHOAL-TASK-ERROR "
_MARKED: Final = re.compile(_MARK + r"(\{.*\})")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a task, by its reason and message."""

    reason: str
    message: str

    def error(self) -> ShoalError:
        """The error again."""
        return (by_reason(self.reason) or ShoalError)(self.message)


class TaskError(Exception):
    """A TransientError of a task, with its marked line for a message."""


def guarded(function: Callable[[T], R]) -> Callable[[T], R | Failure]:
    """``function`` for a task: its errors become values, or marked lines if Spark is to repeat."""

    def call(item: T) -> R | Failure:
        try:
            return function(item)
        except TransientError as exc:
            told = json.dumps({"reason": exc.reason, "message": exc.message})
            raise TaskError(_MARK + told) from None
        except ShoalError as exc:
            return Failure(exc.reason, exc.message)

    return call


def merged(merge: Callable[[R, R], R]) -> Callable[[R | Failure, R | Failure], R | Failure]:
    """``merge`` for results that may be Failures: the first Failure is then the result."""

    def call(first: R | Failure, second: R | Failure) -> R | Failure:
        if isinstance(first, Failure):
            return first
        if isinstance(second, Failure):
            return second
        return merge(first, second)

    return call


def marked(text: str) -> ShoalError | None:
    """The error whose marked line is in ``text``; None if there is none."""
    found = _MARKED.search(text)
    if found is None:
        return None
    try:
        told = json.loads(found.group(1))
        return Failure(str(told["reason"]), str(told["message"])).error()
    except (ValueError, KeyError, TypeError):
        return None
