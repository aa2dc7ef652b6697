"""Runs the commands of docs/tour.md.

``python tests/support/tour.py`` writes their outputs into the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.md"
write_digits = run_path(str(ROOT / "docs" / "digits.py"))["write_digits"]
_BLOCK = re.compile(r"```(console|python)\n(.*?)```\n", re.DOTALL)
_STAGE = re.compile(r"shoal: (sample|fit|assign|plan|write|cutover)")


@dataclass(frozen=True, slots=True)
class Step:
    """A command line, or a Python program, and the lines that it prints."""

    kind: str
    source: str
    output: tuple[str, ...]


def steps(text: str) -> list[Step]:
    """The steps of a page: each ``$`` line of a console block, and each Python block."""
    found: list[Step] = []
    for kind, body in _BLOCK.findall(text):
        if kind == "python":
            found.append(Step(kind, body, ()))
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            found.append(Step(kind, command, tuple(output)))
    return found


@dataclass(frozen=True, slots=True)
class Walk:
    """A directory in which the tour is walked, with a server that ``&`` starts."""

    directory: Path
    environment: dict[str, str]

    def run(self, step: Step) -> list[str]:
        """The lines that ``step`` prints, without the stages that a run happens to show."""
        if step.kind == "python":
            source = step.source.replace("localhost:7800", self.environment["SHOAL_ADDRESS"])
            return self._lines([sys.executable, "-c", source])
        command = re.sub(r"\bdocs/digits\.py", str(ROOT / "docs" / "digits.py"), step.source)
        return self._lines(["bash", "-c", command])

    def _lines(self, command: list[str]) -> list[str]:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=200,
            check=False,
            text=True,
        )
        shown = done.stdout.replace(str(self.directory.resolve()), "/tour")
        return [line for line in shown.rstrip("\n").split("\n") if not _STAGE.fullmatch(line)]

    def start(self, step: Step) -> tuple[subprocess.Popen[str], list[str]]:
        """The process of a step that ends with ``&``, and what it prints until it serves."""
        words = step.source.removesuffix("&").split()
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.directory,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("shoal: serving"):
                address = self.environment["SHOAL_ADDRESS"]
                return process, [line.rstrip("\n").replace(address, "127.0.0.1:7800")]
        raise AssertionError(f"{step.source}: ended with status {process.wait()}")


@contextmanager
def walk(directory: Path, port: int) -> Iterator[Walk]:
    """A walk in ``directory``; commands reach the server on ``port`` by their environment twins."""
    scripts = directory / "bin"
    scripts.mkdir()
    for name, program in (("shoal", f"{sys.executable} -m shoal"), ("python", sys.executable)):
        (scripts / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (scripts / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    yield Walk(
        directory,
        {
            **kept,
            "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "SHOAL_ADDRESS": f"127.0.0.1:{port}",
            "SHOAL_LOG_LEVEL": "error",
            "TZ": "UTC",
        },
    )


def _write() -> None:
    """Runs the tour and writes its outputs into the page."""
    servers: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as name, walk(Path(name), 7899) as made:

        def ran(step: Step) -> str:
            if step.source.endswith("&"):
                server, lines = made.start(step)
                servers.append(server)
            else:
                lines = made.run(step)
            return "".join(f"{line}\n" for line in (f"$ {step.source}", *lines) if line)

        def block(match: re.Match[str]) -> str:
            found = steps(match[0])
            if match[1] == "python":
                made.run(found[0])
                return match[0]
            return "```console\n" + "".join(map(ran, found)) + "```\n"

        try:
            text = _BLOCK.sub(block, TOUR.read_text(encoding="utf-8"))
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    TOUR.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write()
