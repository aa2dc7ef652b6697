"""``shoal`` servers as processes of their own, as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.errors import ServiceUnavailable

_READY = "shoal: serving on "
_START_S = 300.0
"""A large model on a GPU is warmed up with every size of batch first."""
_STOP_S = 60.0


class ServerProcess:
    """A running ``shoal`` command that serves, on a free loopback port; stopped on leaving.

    Args:
        log: File for what it prints.
        arguments: The command and its options.

    Raises:
        ServiceUnavailable: it did not come up; the message ends with what it printed.
    """

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        self._command = f"shoal {' '.join(arguments[:2])}"
        command = [sys.executable, "-m", "shoal", *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        with self._log.open("wb") as log_file:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                [*command, "--address", "127.0.0.1:0", "--metrics-address", "off"],
                stdout=log_file,
                stderr=log_file,
                env=clean,
            )
        self.address = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self._log.read_text().splitlines():
                if line.startswith(_READY):
                    return line.removeprefix(_READY).split()[0]
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise ServiceUnavailable(f"{self._command} did not become ready: {self._log.read_text()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=_STOP_S)
            finally:
                self.process.kill()


class UpProcess(ServerProcess):
    """A running ``shoal up`` over ``data``; ``options`` are more of its options."""

    def __init__(self, data: Path, *options: str) -> None:
        super().__init__(data.with_suffix(".log"), "up", "--data", str(data), *options)
