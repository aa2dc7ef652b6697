"""The process that decodes slow images: ``python -m embedder.images.apart_main DESCRIPTOR``.

The descriptor is one end of a pipe. Images come in over it, with limits and preprocessings, and
pixels or errors go out, one for each. The process ends when the other end is closed, also by the
death of its parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Final

from embedder.images.preprocess import decode_for
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from embedder.images.preprocess import UInt8

NICENESS: Final = 10
"""The process's niceness: everything else comes first, by about ten to one."""


def main(pipe: Connection) -> None:
    """Decodes what comes in over ``pipe`` until it is closed."""
    os.nice(NICENESS)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            data, limits, specs = pipe.recv()
            try:
                answer: tuple[UInt8, ...] | ShoalError = decode_for(
                    data, limits=limits, specs=specs
                )
            except ShoalError as exc:
                exc.__cause__ = exc.__context__ = None
                answer = exc.with_traceback(None)
            del data
            pipe.send(answer)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
