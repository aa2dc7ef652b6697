"""One service as several processes on one port, for where one Python process is the limit.

A Python process moves about a thousand gRPC messages a second, whatever the model behind them can
do. The processes here are alike and know nothing of each other: the kernel gives each connection
to one of them (``SO_REUSEPORT``), so it takes several connections to use them all. Each opens the
model for itself, on the same GPU if there is one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Protocol

from shoal.errors import OperatorError, ShoalError
from shoal.rpc.address import Address, require_free
from shoal.rpc.config import ServerConfig
from shoal.rpc.signals import catch_signals_in_thread

_LOG = logging.getLogger(__name__)

_POLL_S = 0.2
_MARGIN_S = 10.0
"""What a process gets beyond the grace of its calls before it is killed."""


class Work(Protocol):
    """What each process does, until SIGTERM. Pickled: a function of a module, or a partial one."""

    def __call__(
        self, index: int, server: ServerConfig, on_ready: Callable[[str], object]
    ) -> object:
        """Serve by ``server``; ``index`` counts the processes from 0."""


def run_processes(
    count: int, work: Work, server: ServerConfig, *, on_ready: Callable[[str], object]
) -> None:
    """Run ``count`` processes on the port of ``server`` until SIGTERM or SIGINT.

    ``on_ready`` gets ``HOST:PORT`` once all of them answer. One that ends ends the others: whoever
    runs this process is to start it again, whole. If this process is killed, the others stop.

    Raises:
        ConfigError: the port is taken, or a setting is wrong.
        ShoalError: what the first process to fail raised.
        OperatorError: one ended without being told to.
    """
    with (
        catch_signals_in_thread() as signalled,
        _shared_port(server.validate()) as address,
        ExitStack() as stack,
    ):
        shared = replace(server, address=str(address), share_port=True)
        crew = [_Member.start(index, work, shared) for index in range(count)]
        stack.callback(_stop, crew, server.grace_s + _MARGIN_S)
        waiting = set(range(count))
        while not signalled.is_set():
            connection.wait([end for one in crew for end in one.ends], _POLL_S)
            for one in crew:
                one.check()
            ready = {one.index for one in crew if one.ready}
            if waiting and waiting <= ready:
                on_ready(str(address))
                waiting.clear()


@dataclass(slots=True)
class _Member:
    """One process, and what it has said."""

    index: int
    process: SpawnProcess
    pipe: Connection
    ready: bool = False
    ends: list[Connection | int] = field(default_factory=list)

    @classmethod
    def start(cls, index: int, work: Work, server: ServerConfig) -> _Member:
        context = get_context("spawn")  # a fork would copy gRPC's threads in whatever state
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(index, work, server, there))
        process.start()
        there.close()
        return cls(index, process, here, ends=[here, process.sentinel])

    def check(self) -> None:
        """Reads what it says; raises what it raised, or OperatorError if it has ended."""
        try:
            while self.pipe.poll():
                said = self.pipe.recv()
                if isinstance(said, ShoalError):
                    raise said
                self.ready = True
        except EOFError:
            self.process.join(_MARGIN_S)
        if self.process.exitcode is not None:
            msg = (
                f"process {self.index} of the service ended with status {self.process.exitcode}: "
                "expected it to serve until this one is told to stop"
            )
            raise OperatorError(msg)


def _stop(crew: list[_Member], seconds: float) -> None:
    """Ends the processes: politely, all at once, and after ``seconds`` for certain."""
    for one in crew:
        one.process.terminate()
    deadline = time.monotonic() + seconds
    for one in crew:
        one.process.join(max(0.0, deadline - time.monotonic()))
        if one.process.exitcode is None:
            _LOG.error("killed: it did not stop", extra={"index": one.index})
            one.process.kill()
            one.process.join()
        one.pipe.close()


def _serve(index: int, work: Work, server: ServerConfig, pipe: Connection) -> None:
    """The main function of a process."""
    os.setsid()  # a terminal's Ctrl-C is for the parent, which passes on one SIGTERM
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    try:
        work(index, server, lambda _address: pipe.send(None))
    except ShoalError as exc:
        pipe.send(exc)
        raise SystemExit(1) from None


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _shared_port(wanted: Address) -> Iterator[Address]:
    """A port that is ours, and that processes of this user can listen on together.

    Raises:
        ConfigError: somebody else listens there.
    """
    require_free(wanted)
    family = socket.AF_INET6 if ":" in wanted.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((wanted.bind_host, wanted.port))
        yield Address(wanted.host, held.getsockname()[1])
