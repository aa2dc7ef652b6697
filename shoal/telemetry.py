"""Logs on stderr and metrics on a port of their own.

Modules log with ``logging.getLogger(__name__)`` and put facts into ``extra``; they define their
own ``shoal_*`` metrics with ``prometheus_client``, at module level, in the default registry. Only
composition roots call this module.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TextIO, get_args
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import Info
from pydantic import SecretStr
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from shoal import __version__
from shoal.errors import ConfigError
from shoal.printable import printable
from shoal.rpc.address import cannot_listen, parse_address, require_free, require_token

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

OFF: Final = "off"
"""The metrics address that means no endpoint."""

_LEVELS: Final = get_args(LogLevel)
_FORMATS: Final = get_args(LogFormat)
# These log every request or connection at INFO: they are kept to WARNING, unless at level debug.
_CHATTY: Final = ("httpcore", "httpx", "grpc", "PIL", "asyncio")

_BUILD = Info("shoal_build", "Shoal's version.")
_BUILD.info({"version": __version__})


def configure_logging(level: str = "info", fmt: str = "json", **facts: object) -> None:
    """Sends the process's logs to stderr. A second call replaces the settings of the first.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``, in any case.
        fmt: ``json`` (one object a line: time, level, logger, message and the extra fields) or
            ``text`` (for people).
        facts: Added to every line.

    Raises:
        ConfigError: ``level`` or ``fmt`` is not one of these.
    """
    if level.lower() not in _LEVELS:
        msg = f"log level {level!r} is not known: expected one of {', '.join(_LEVELS)}"
        raise ConfigError(msg)
    if fmt not in _FORMATS:
        msg = f"log format {fmt!r} is not known: expected one of {', '.join(_FORMATS)}"
        raise ConfigError(msg)
    handler = _StderrHandler()
    handler.setFormatter(_JsonLines() if fmt == "json" else _TextLines())
    handler.addFilter(_Facts(facts))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _StderrHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        quiet = logging.DEBUG if level.lower() == "debug" else logging.WARNING
        logging.getLogger(name).setLevel(quiet)


def trace_crashes() -> None:
    """Has a crash of the process (SIGBUS, SIGSEGV) write on stderr what each thread was doing."""
    # A closed stderr is None, and one that was replaced may have no file.
    with contextlib.suppress(RuntimeError, ValueError, OSError, AttributeError):
        faulthandler.enable()


@dataclass(frozen=True, slots=True)
class Metrics:
    """A running metrics endpoint, ``GET /metrics``.

    Attributes:
        port: The port that it listens on.
    """

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def close(self) -> None:
        """Stops answering, and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics(address: str, *, tokens: Sequence[SecretStr] = ()) -> Metrics | None:
    """Serves the process's metrics over HTTP, in a thread.

    The endpoint itself asks for no token: it tells counts and durations, never content. Still
    ``tokens`` must be set for an address that other machines reach, which keeps the rule simple:
    without a token, nothing of Shoal can be reached from elsewhere.

    Args:
        address: ``HOST:PORT``, port 0 for a free one, or ``off``.
        tokens: The server's bearer tokens.

    Returns:
        The endpoint, to be closed by the caller; None when ``off``.

    Raises:
        ConfigError: the address is malformed, taken, or reachable without a token configured.
    """
    if address == OFF:
        return None
    wanted = parse_address(address)
    require_token(wanted, tokens)
    require_free(wanted)
    try:
        server, thread = prometheus_client.start_http_server(wanted.port, wanted.bind_host)
    except OSError as exc:
        raise cannot_listen(wanted, exc.strerror or str(exc)) from exc
    return Metrics(server.server_port, server, thread)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """A handler of ours: it writes to the ``sys.stderr`` of the moment at which it writes."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Facts(logging.Filter):
    """Adds the same facts to every line."""

    def __init__(self, facts: Mapping[str, object]) -> None:
        super().__init__()
        self._facts = facts

    def filter(self, record: logging.LogRecord) -> bool:
        vars(record).update(self._facts)
        return True


class _JsonLines(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["time", "levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            json_ensure_ascii=False,
        )

    def add_fields(
        self,
        log_data: dict[str, object],
        record: logging.LogRecord,
        message_dict: dict[str, object],
    ) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data["time"] = _time(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))  # JSON itself escapes only what is below a space


class _TextLines(logging.Formatter):
    """``12:00:00.000 INFO    shoal.rpc.server listening address=127.0.0.1:7800``."""

    def __init__(self) -> None:
        super().__init__("%(clock)s %(levelname)-7s %(name)s %(message)s%(facts)s")

    def format(self, record: logging.LogRecord) -> str:
        facts = {key: value for key, value in vars(record).items() if key not in _NOT_FACTS}
        record.clock = (
            datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        )
        record.facts = "".join(f" {key}={value}" for key, value in facts.items())
        lines = super().format(record).split("\n")  # a traceback has several
        return "\n".join(map(printable, lines))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


_NOT_FACTS: Final = frozenset({*RESERVED_ATTRS, "clock", "facts", "message", "asctime", "taskName"})


def _time(record: logging.LogRecord) -> str:
    """The record's time as ISO 8601 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
