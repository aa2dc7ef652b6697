"""The standard streams of a program that somebody started without them, or in a poor encoding."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Final, TextIO

_STREAMS: Final = (0, 1, 2)


def mend_streams() -> None:
    """Makes standard input, output and error usable, whatever the program was started with.

    A closed one becomes the null device: otherwise the next file or connection that is opened
    takes its number, and whatever writes to standard error writes into it. A character that the
    encoding of a stream lacks is written as an escape. Standard error may lose its reader.
    """
    for number in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - a stream for good
    sys.stdout = _usable(sys.stdout)
    talk = _usable(sys.stderr)
    replaced = talk is not sys.__stderr__  # as tests do
    sys.stderr = talk if replaced else _Talk(talk)


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - a stream for good
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


class _Talk(io.TextIOWrapper):
    """Standard error that goes silent once nobody reads it, and never stops the work.

    A reader of stdout that leaves ends a command: nobody wants its data. But a command that stores
    images is not to stop halfway for ``2>&1 | head``.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            io.BufferedWriter(io.FileIO(stream.fileno(), "wb", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )

    def write(self, text: str) -> int:
        with self._unheard():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._unheard():
            super().flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        """Sends all that follows to the null device where there is no reader any more."""
        try:
            yield
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
