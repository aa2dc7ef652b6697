"""What a process that serves tells whoever started it: log lines, a sentence, a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from shoal.app.cli.printing.output import talk
from shoal.errors import ConfigError
from shoal.files import replacing
from shoal.rpc.config import ServerConfig
from shoal.settings import Setting
from shoal.telemetry import LogFormat, LogLevel, configure_logging, trace_crashes


@dataclass(frozen=True, slots=True)
class Reporting:
    """Settings of what a server's process tells."""

    log_level: LogLevel = "info"
    """Least severe log line to write."""
    log_format: LogFormat = "json"
    """Log lines for people or for programs; on stderr."""
    ready_file: Annotated[Path | None, Setting(path="file")] = None
    """File to write the bound HOST:PORT to once the server answers."""

    def begin(self, server: ServerConfig) -> None:
        """Checks what can be checked before a model is loaded; then logs go to stderr.

        Raises:
            ConfigError: a setting of the server is wrong, or the ready file cannot be there.
        """
        server.validate()
        if self.ready_file is not None and not self.ready_file.parent.is_dir():
            expected = f"expected a file in a directory that exists, got {self.ready_file}"
            raise ConfigError(f"--ready-file: {expected}", field="ready_file")
        self.log()

    def log(self, **facts: object) -> None:
        """Sends log lines, each with ``facts``, and the traces of a crash to stderr."""
        configure_logging(self.log_level, self.log_format, **facts)
        trace_crashes()

    def announce(self, address: str, *, what: str) -> None:
        """Says on stderr, and in the ready file if there is one, that ``address`` answers."""
        talk(f"shoal: serving on {address} ({what})")
        if self.ready_file is not None:
            with replacing(self.ready_file) as fresh:  # whoever waits for it reads it whole
                fresh.write_text(f"{address}\n", encoding="utf-8")
