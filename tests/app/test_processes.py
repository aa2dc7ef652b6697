"""Several processes on one port: they stand and fall together. Their work here is to wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.app.processes import run_processes
from shoal.errors import ConfigError, OperatorError, StoreLocked
from shoal.rpc.config import ServerConfig

ROOT = Path(__file__).parents[2]
LOOPBACK = ServerConfig(address="127.0.0.1:0", grace_s=0.0)


def serve(_index: int, server: ServerConfig, on_ready: Callable[[str], object]) -> None:
    """Takes the shared port, says so, and waits for the signal that ends it."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        host, _, port = server.address.rpartition(":")
        listening.bind((host, int(port)))
        listening.listen()
        on_ready(server.address)
        signal.pause()


def fail_in_the_second(index: int, server: ServerConfig, on_ready: Callable[[str], object]) -> None:
    """An error of ours in one process, while the other serves."""
    if index == 1:
        raise StoreLocked("the store is taken", path="p")
    serve(index, server, on_ready)


def end_in_the_second(index: int, server: ServerConfig, on_ready: Callable[[str], object]) -> None:
    """One process returns, as it was not told to."""
    on_ready(server.address)
    if index == 0:
        signal.pause()


def refuse_to_stop(index: int, server: ServerConfig, on_ready: Callable[[str], object]) -> None:
    """One process does not hear the signal that is to end it."""
    if index == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    on_ready(server.address)
    while True:
        signal.pause()


PROGRAM = """
import sys
from test_processes import LOOPBACK, {work} as work
from shoal.app import processes
processes._MARGIN_S = 1.0
processes.run_processes(2, work, LOOPBACK, on_ready=lambda address: print(address, flush=True))
print("stopped")
"""


@contextmanager
def parent(work: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs two processes; in the end it is gone, whatever happens here."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(ROOT)))},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """The processes that work, in the order of their start."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in command(int(child))]


def command(pid: int) -> bytes:
    """The command line of a process; empty if it is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def gone(pids: list[int]) -> bool:
    """Whether these processes end, within some time."""
    until = time.monotonic() + 30
    while any(map(command, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_all(number: signal.Signals) -> None:
    """Once all of them answer, it is told where, once; a signal then ends the run, not in error."""
    with parent("serve") as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        workers = children(process.pid)
        assert len(workers) == 2
        host, _, port = address.rpartition(":")
        for _ in range(2):
            socket.create_connection((host, int(port))).close()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "stopped\n", "")
        assert gone(workers)
    socket.create_server((host, int(port))).close()


def test_one_that_dies_ends_all() -> None:
    """Who runs them is told which one it was, and how it ended."""
    with parent("serve") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        first, second = children(process.pid)
        os.kill(second, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert "OperatorError: process 1 of the service ended with status -9: expected" in err
        assert gone([first])


def test_they_stop_when_their_parent_is_killed() -> None:
    """Nobody goes on listening on the port unseen."""
    with parent("serve") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        workers = children(process.pid)
        process.kill()
        assert gone(workers)


def test_one_that_does_not_stop_is_killed() -> None:
    """After the grace of its calls and a margin; the others have stopped by then."""
    with parent("refuse_to_stop") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "stopped\n")
        assert "killed: it did not stop" in err
        assert gone(workers)


def test_error_of_one_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    """With its class and its facts, and without a traceback of the process's own."""
    with pytest.raises(StoreLocked, match="the store is taken") as caught:
        run_processes(2, fail_in_the_second, LOOPBACK, on_ready=pytest.fail)
    assert caught.value.metadata == {"path": "p"}
    assert capfd.readouterr().err == ""


def test_one_that_returns_is_an_error() -> None:
    """It was to serve until it is told to stop."""
    with pytest.raises(OperatorError, match="process 1 of the service ended with status 0"):
        run_processes(2, end_in_the_second, LOOPBACK, on_ready=lambda _: None)


@pytest.mark.parametrize("share", [False, True])
def test_a_port_that_is_taken_is_not_shared(*, share: bool) -> None:
    """Not even with one who would share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = ServerConfig(address=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(ConfigError, match="cannot listen"):
            run_processes(1, serve, taken, on_ready=pytest.fail)


def test_wrong_setting_starts_no_process() -> None:
    """It is told before anything is started."""
    with pytest.raises(ConfigError, match="expected a bearer token"):
        run_processes(1, serve, ServerConfig(address="0.0.0.0:0"), on_ready=pytest.fail)
