"""One service as several processes on one port, for where one Python process is the limit.

A Python process moves about a thousand gRPC messages a second, however fast the model behind them
is. The processes here are alike and know nothing of each other. The kernel gives each connection
to one of them (``SO_REUSEPORT``), so it takes several connections to use them all. Each process
opens the model for itself, on the same GPU if there is one.
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
from dataclasses import dataclass, replace
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
"""Longest time until a signal is noticed."""
_MARGIN_S = 10.0
"""Time that a process gets to stop, beyond the grace of its calls, before it is killed."""


class Work(Protocol):
    """The work of each process, until SIGTERM. It is pickled: a module's function, or a partial."""

    def __call__(
        self, index: int, server: ServerConfig, on_ready: Callable[[str], object]
    ) -> object:
        """Serves by ``server``; ``index`` counts the processes from 0."""


def run_processes(
    count: int, work: Work, server: ServerConfig, *, on_ready: Callable[[str], object]
) -> None:
    """Runs ``count`` processes on the port of ``server`` until SIGTERM or SIGINT.

    ``on_ready`` gets ``HOST:PORT`` once all of them answer. A process that ends ends the others,
    so that whoever runs this one starts all of them anew. If this process is killed, they stop.

    Raises:
        ConfigError: the port is taken, or a setting is wrong.
        ShoalError: the error of the first process that failed.
        OperatorError: a process ended without being told to.
    """
    with (
        catch_signals_in_thread() as signalled,
        _shared_port(server.validate()) as address,
        ExitStack() as stack,
    ):
        shared = replace(server, address=str(address), share_port=True)
        workers: list[_Worker] = []
        stack.callback(_stop_all, workers, server.grace_s + _MARGIN_S)
        workers.extend(_Worker.start(index, work, shared) for index in range(count))
        told = False
        while not signalled.is_set():
            connection.wait([end for worker in workers for end in worker.ends], _POLL_S)
            for worker in workers:
                worker.check()
            if not told and all(worker.ready for worker in workers):
                on_ready(str(address))
                told = True


@dataclass(slots=True)
class _Worker:
    """One process, as its parent sees it.

    Attributes:
        index: Its number, from 0.
        process: The process.
        reports: From the process: None once it answers, or the error that ended it.
        ready: Whether it answers.
    """

    index: int
    process: SpawnProcess
    reports: Connection
    ready: bool = False

    @classmethod
    def start(cls, index: int, work: Work, server: ServerConfig) -> _Worker:
        context = get_context("spawn")  # a fork would copy gRPC's threads in whatever state
        reports, reporter = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(index, work, server, reporter))
        process.start()
        reporter.close()
        return cls(index, process, reports)

    @property
    def ends(self) -> list[Connection | int]:
        """What to wait for: a report, or the end of the process."""
        return [self.reports, self.process.sentinel]

    def check(self) -> None:
        """Reads the reports; raises the error among them, or OperatorError after an end."""
        try:
            while self.reports.poll():
                report = self.reports.recv()
                if isinstance(report, ShoalError):
                    raise report
                self.ready = True
        except EOFError:
            self.process.join(_MARGIN_S)
        if self.process.exitcode is not None:
            msg = (
                f"process {self.index} of the service ended with status {self.process.exitcode}: "
                "expected it to serve until this one is told to stop"
            )
            raise OperatorError(msg)


def _stop_all(workers: list[_Worker], seconds: float) -> None:
    """Asks all processes to stop at the same time, and kills those that run after ``seconds``."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            _LOG.error("killed: it did not stop", extra={"index": worker.index})
            worker.process.kill()
            worker.process.join()
        worker.reports.close()


def _main(index: int, work: Work, server: ServerConfig, reporter: Connection) -> None:
    """The main function of a process."""
    os.setsid()  # a terminal's Ctrl-C is for the parent, which passes on one SIGTERM
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    try:
        work(index, server, lambda _address: reporter.send(None))
    except ShoalError as exc:
        reporter.send(exc)
        raise SystemExit(1) from None


def _stop_with_parent() -> None:
    """Sends this process SIGTERM once its parent has ended."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _shared_port(wanted: Address) -> Iterator[Address]:
    """An address on whose port processes of this user can listen together, and nobody else.

    Raises:
        ConfigError: somebody else listens there.
    """
    require_free(wanted)
    family = socket.AF_INET6 if ":" in wanted.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((wanted.bind_host, wanted.port))
        yield Address(wanted.host, held.getsockname()[1])
