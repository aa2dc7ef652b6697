"""The standard streams of a program that somebody started without them, or in a poor encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import Final, TextIO

_STREAMS: Final = (0, 1, 2)


def mend_streams() -> None:
    """Makes standard input, output and error usable, whatever the program was started with.

    A closed one becomes the null device: otherwise the next file or connection that is opened
    takes its number, and whatever writes to standard error writes into it. A character that the
    encoding of a stream lacks is written as an escape.
    """
    for number in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - a stream for good
    sys.stdout = _usable(sys.stdout)
    sys.stderr = _usable(sys.stderr)


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - a stream for good
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
