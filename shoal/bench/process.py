"""``shoal up`` as a process of its own, as a user would run it."""

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
_START_S = 60.0
_STOP_S = 60.0


class UpProcess:
    """A running ``shoal up`` over ``data`` on a free loopback port; stopped on leaving.

    ``options`` are more of its options.

    Raises:
        ServiceUnavailable: it did not come up; the message ends with what it printed.
    """

    def __init__(self, data: Path, *options: str) -> None:
        self._log = data.with_suffix(".log")
        command = [sys.executable, "-m", "shoal.cli", "up", "--data", str(data), *options]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                [*command, "--address", "127.0.0.1:0", "--metrics-address", "off"],
                stdout=log,
                stderr=log,
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
        raise ServiceUnavailable(f"shoal up did not become ready: {self._log.read_text()}")

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
