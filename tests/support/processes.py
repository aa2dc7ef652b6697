"""Real processes: ``shoal up`` started, killed and started again."""

from __future__ import annotations

from pathlib import Path

from shoal.app.bench.process import UpProcess
from shoal.client import Client


class Up(UpProcess):
    """A ``shoal up`` over one data directory, with a client. A context manager."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.client = Client(self.address)

    def kill(self) -> None:
        """SIGKILL, at once."""
        self.process.kill()
        self.process.wait(timeout=30)
        self.client.close()

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        super().__exit__(*exc)  # type: ignore[arg-type]
