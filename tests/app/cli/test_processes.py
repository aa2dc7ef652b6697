"""``shoal serve embedder --processes``: several embedders on one port."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from stand_in import qdrant_server

from shoal.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

PROCESSES = 2
CALLS = 16


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, int]]:
    with qdrant_server() as found:
        yield found


class Crew:
    """A running ``shoal serve embedder --processes 2``."""

    def __init__(self, place: tuple[str, int], directory: Path, *options: str) -> None:
        self._ready = directory / "ready"
        self._errors = directory / "stderr"
        url, port = place
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "shoal", "serve", "embedder"),
                    *("--processes", str(PROCESSES), "--address", "127.0.0.1:0"),
                    *("--store-url", url, "--store-grpc-port", str(port)),
                    *("--metrics-address", "off", "--ready-file", str(self._ready), *options),
                ],
                stderr=errors,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Where it answers, once all processes do."""
        wait_until(lambda: self._ready.exists() and self._ready.read_text().endswith("\n"))
        return self._ready.read_text().strip()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def members(self) -> list[int]:
        """The processes that serve."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in command(int(child))]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def command(pid: int) -> bytes:
    """The command line of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def crew(place: tuple[str, int], tmp_path: Path) -> Iterator[Callable[..., Crew]]:
    with ExitStack() as stack:

        def start(*options: str) -> Crew:
            started = Crew(place, tmp_path, *options)
            stack.callback(started.kill)
            return started

        yield start


def embed(address: str, image: bytes) -> int:
    """The dimension of the image's vector, asked for over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        request = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=image)])
        (result,) = stub.Embed(request, timeout=30).results
        return int(result.vector.dim)


def two_ports() -> int:
    """A free port whose next one is free too."""
    while True:
        with closing(socket.create_server(("127.0.0.1", 0))) as one:
            port = int(one.getsockname()[1])
        try:
            for each in (port, port + 1):
                socket.create_server(("127.0.0.1", each)).close()
        except OSError:
            continue
        return port


def counted(port: int, counter: str, label: str) -> float:
    """The sum of a counter, of its rows with this label, by the process with this metrics port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(f"{counter}{{") and label in line
    )


def test_calls_and_streams_spread_over_the_processes(
    crew: Callable[..., Crew], one_picture: bytes, tmp_path: Path, pictures: Any, in_process: Any
) -> None:
    """Every call is answered, and each process has its share; a stop leaves nobody behind.

    With one stream one process stores all images; with several, each stores some.
    """
    port = two_ports()
    running = crew("--metrics-address", f"127.0.0.1:{port}", "--run-size", "1")
    address = running.address
    members = running.members()
    assert len(members) == PROCESSES
    assert {embed(address, one_picture) for _ in range(CALLS)} == {1280}
    embedded = ("shoal_rpc_requests_total", '/Embed"')
    counts = [counted(port + index, *embedded) for index in range(PROCESSES)]
    assert sum(counts) == CALLS
    assert min(counts) > 0  # all on one: 2 in 65,536
    assert '"worker": 1' in running.errors

    pictures(tmp_path / "p", [f"{number}.png" for number in range(120)])
    stored = ("shoal_embedder_images_total", 'outcome="stored",rpc="Ingest"')

    def ingest(collection: str, *options: str) -> list[float]:
        """How many images each process has stored."""
        before = [counted(port + index, *stored) for index in range(PROCESSES)]
        where = ("--collection", collection, "--address", address)
        result = in_process("ingest", "p", "--json", *where, *options)
        assert json.loads(result.stdout)["stored"] == 120, result.stderr
        after = [counted(port + index, *stored) for index in range(PROCESSES)]
        return [now - then for now, then in zip(after, before, strict=True)]

    assert sorted(ingest("one")) == [0, 120]
    spread = ingest("several", "--streams", "16", "--window", "16")
    assert sum(spread) == 120
    assert min(spread) > 0  # all on one: 2 in 65,536

    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert not any(command(member) for member in members)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "nowhere"], "nowhere"),
        (["--address", "192.0.2.1:7801", "--token", "a-token-of-some-length"], "192.0.2.1"),
        (["--address", "0.0.0.0:0"], "expected a bearer token"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(
    crew: Callable[..., Crew], options: list[str], said: str
) -> None:
    """As with one process, whichever of them finds it."""
    running = crew(*options, "--log-level", "error")
    assert running.process.wait(60) == 1
    (line,) = running.errors.splitlines()
    assert line.startswith("shoal: error: ")
    assert said in line
