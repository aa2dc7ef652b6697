"""A real ``shoal up`` for the command line's tests, and pictures that are made, not found."""

from __future__ import annotations

import functools
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from shoal.app.cli import main

ROOT = Path(__file__).parents[3]
READY = "shoal: serving on "
START_S = 60.0
NOWHERE = "/nonexistent"
"""Where no contexts of a user are."""


def clean_environment() -> dict[str, str]:
    """This process's environment without Shoal's settings, able to import the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    kept["XDG_CONFIG_HOME"] = NOWHERE
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished command left."""

    code: int
    stdout: str
    stderr: str


def run_shoal(
    *arguments: str, cwd: Path, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> Result:
    """Run ``shoal`` in a process of its own to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=100,
        check=False,
        env={**clean_environment(), **(environment or {})},
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass
class Server:
    """A running ``shoal up``."""

    process: subprocess.Popen[bytes]
    log: Path
    data: Path
    address: str = ""
    commands: list[str] = field(default_factory=list)

    def wait_ready(self) -> None:
        """Poll the log for the line that says where it serves."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if line.startswith(READY):
                    self.address = line.removeprefix(READY).split()[0]
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"shoal up did not become ready: {self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=30)


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server() -> Iterator[StartServer]:
    """Start ``shoal up --data DATA --address 127.0.0.1:0`` with more arguments; ended at last."""
    running: list[Server] = []

    def start(data: Path, *arguments: str, address: str = "127.0.0.1:0") -> Server:
        data.mkdir(parents=True, exist_ok=True)
        log = data / f"log-{len(running)}.txt"
        command = [sys.executable, "-m", "shoal", "up", "--data", str(data)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--address", address, *arguments],
                stdout=out,
                stderr=out,
                cwd=data,
                env=clean_environment(),
            )
        server = Server(process, log, data)
        running.append(server)
        server.wait_ready()
        return server

    yield start
    for server in running:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(timeout=30)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, start_server: StartServer) -> Server:
    """One ``shoal up`` for all tests that do not stop it; each uses a collection of its own."""
    return start_server(tmp_path_factory.mktemp("up"))


Shoal = Callable[..., Result]


def invoke(*arguments: str, stdin: bytes = b"", address: str = "127.0.0.1:9") -> Result:
    """Run a client command in this process, without Shoal's settings in the environment."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith("SHOAL_"))
    environment = {**unset, "SHOAL_ADDRESS": address, "XDG_CONFIG_HOME": NOWHERE}
    result = CliRunner().invoke(main, arguments, input=stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def shoal(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Shoal:
    """Run a client command against ``server``, in this process, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(invoke, address=server.address)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shoal]:
    """Run a command in this process, in ``tmp_path``; it has no server but one that it is told."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield invoke
    root.handlers[:] = handlers  # a command that serves sends its process's logs to stderr
    root.setLevel(level)


def picture(*, group: int, seed: int, form: str = "PNG") -> bytes:
    """An image file: stripes, a disc or noise by ``group``, in colours by ``seed``."""
    rng = np.random.default_rng([group, seed])
    y, x = np.mgrid[0:64, 0:64]
    shape = [
        (x // 4) % 2,
        (x - 32) ** 2 + (y - 32) ** 2 < 400,
        rng.integers(0, 2, (64, 64)),
    ][group % 3]
    low, high = rng.integers(0, 80, 3), rng.integers(150, 256, 3)
    pixels = np.where(shape[..., None] > 0, high, low).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def write_pictures(directory: Path, names: Sequence[str]) -> Path:
    """Pictures called ``names`` under ``directory``, all different, in three groups."""
    for seed, name in enumerate(names):
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        form = "JPEG" if file.suffix == ".jpg" else "PNG"
        file.write_bytes(picture(group=seed % 3, seed=seed, form=form))
    return directory


@pytest.fixture(name="run_shoal")
def _run_shoal() -> Shoal:
    """Run a command; the arguments of ``run_shoal``."""
    return run_shoal


@pytest.fixture
def pictures() -> Callable[[Path, Sequence[str]], Path]:
    """Write pictures; the arguments of ``write_pictures``."""
    return write_pictures


@pytest.fixture
def one_picture() -> bytes:
    """A PNG."""
    return picture(group=0, seed=1)
