"""Logs and metrics as an operator sees them."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from shoal import __version__
from shoal.errors import ConfigError
from shoal.telemetry import configure_logging, start_metrics, trace_crashes

CHATTY = ("httpx", "httpcore", "grpc", "PIL", "asyncio")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Other tests find the root logger as they left it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    chatty = {name: logging.getLogger(name).level for name in CHATTY}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in chatty.items():
        logging.getLogger(name).setLevel(before)


def test_logging_json_is_one_object_a_line_with_the_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Time, level, logger, message and the extra fields, on stderr; stdout stays for data."""
    configure_logging("info", "json")
    log = logging.getLogger("shoal.test")
    log.info("stored %d", 3, extra={"collection": "größe", "seconds": 0.5})
    log.debug("not shown")
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    entry = json.loads(line)
    moment = datetime.fromisoformat(entry.pop("time"))
    assert moment.utcoffset() == timedelta(0)
    assert entry == {
        "level": "INFO",
        "logger": "shoal.test",
        "message": "stored 3",
        "collection": "größe",
        "seconds": 0.5,
    }


def test_logging_json_keeps_a_traceback_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A log collector gets one line per event, whatever it holds."""
    configure_logging("info", "json")
    try:
        raise ValueError("two\nlines")  # noqa: TRY301 - its traceback is what is tested
    except ValueError:
        logging.getLogger("shoal.test").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: two\nlines" in json.loads(line)["exc_info"]


def test_crash_leaves_a_trace() -> None:
    """A signal that ends the process (SIGBUS, as on a full disk) tells where it was."""
    program = (
        "import os, signal; from shoal.telemetry import trace_crashes\n"
        "def writing(): os.kill(os.getpid(), signal.SIGBUS)\n"
        "trace_crashes(); writing()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
    assert "in writing" in done.stderr


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_crash_without_a_file_for_its_trace_is_no_error(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    """A program may have closed or replaced stderr."""
    monkeypatch.setattr(sys, "stderr", stream)
    trace_crashes()


def test_logging_text_is_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Clock, level, logger, message, then key=value."""
    configure_logging("INFO", "text")
    logging.getLogger("shoal.test").warning("queue is full", extra={"waiting": 64})
    (line,) = capsys.readouterr().err.splitlines()
    clock, rest = line.split(" ", 1)
    assert datetime.strptime(clock, "%H:%M:%S.%f")  # noqa: DTZ007 - only its form matters
    assert rest == "WARNING shoal.test queue is full waiting=64"


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_logging_of_texts_from_outside_is_one_safe_line(
    capsys: pytest.CaptureFixture[str], fmt: str
) -> None:
    """A name that a caller sent acts on no terminal and fakes no line; JSON gives it back."""
    hostile = "a\x1b[2J\x9b31m\u202e\n12:00:00.000 ERROR fake"
    configure_logging("info", fmt)
    logging.getLogger("shoal.test").info("refused %s", hostile, extra={"key": hostile})
    (line,) = capsys.readouterr().err.splitlines()
    assert not set("\x1b\x9b\u202e") & set(line)
    assert line.count(r"[2J\u009b31m\u202e\n12:00:00.000 ERROR fake") == 2
    if fmt == "json":
        assert json.loads(line)["key"] == hostile


def test_logging_text_keeps_a_traceback_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of their own, and in each what acts on a terminal is escaped."""
    configure_logging("info", "text")
    try:
        raise ValueError("a\x1b[2J")  # noqa: TRY301 - its traceback is what is tested
    except ValueError:
        logging.getLogger("shoal.test").exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: a\u001b[2J"


def test_logging_configured_again_replaces_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line per event however often it is configured, at the last level, to today's stderr."""
    configure_logging("debug", "json")
    configure_logging("warning", "text")
    logging.getLogger("shoal.test").info("not shown")
    logging.getLogger("shoal.test").error("shown")
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    logging.getLogger("shoal.test").error("moved")
    assert "moved" in capsys.readouterr().out


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_logging_adds_facts_to_every_line(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    """Such as the number of a process among several; a line's own facts stand beside them."""
    configure_logging("info", fmt, replica=3)
    logging.getLogger("shoal.test").info("hello", extra={"waiting": 64})
    logging.getLogger("another").info("hello")
    first, second = capsys.readouterr().err.splitlines()
    if fmt == "json":
        assert (json.loads(first)["replica"], json.loads(first)["waiting"]) == (3, 64)
        assert json.loads(second)["replica"] == 3
    else:
        assert first.endswith(" hello waiting=64 replica=3")
        assert second.endswith(" another hello replica=3")


@pytest.mark.parametrize(("level", "shown"), [("info", []), ("DEBUG", ["a request"])])
def test_logging_keeps_libraries_quiet_unless_everything_is_asked_for(
    capsys: pytest.CaptureFixture[str], level: str, shown: list[str]
) -> None:
    """Requests and connections are no news at level info; warnings are."""
    configure_logging(level, "json")
    for name in CHATTY:
        logging.getLogger(name).info("a request")
        logging.getLogger(name).warning("a warning")
        told = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
        assert told == [*shown, "a warning"]


@pytest.mark.parametrize(("level", "fmt"), [("loud", "json"), ("info", "xml"), ("", "json")])
def test_logging_unknown_level_or_format_is_refused(level: str, fmt: str) -> None:
    """A ConfigError that lists what there is."""
    with pytest.raises(ConfigError, match="expected one of"):
        configure_logging(level, fmt)


def test_metrics_are_served_until_closed() -> None:
    """``GET /metrics`` answers with Shoal's version; after ``close`` the port is free."""
    metrics = start_metrics("127.0.0.1:0")
    assert metrics is not None
    url = f"http://127.0.0.1:{metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as response:
        text = response.read().decode()
    assert f'shoal_build_info{{version="{__version__}"}} 1.0' in text
    with pytest.raises(ConfigError, match=f":{metrics.port}: address already in use"):
        start_metrics(f"127.0.0.1:{metrics.port}")
    metrics.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=20)
    again = start_metrics(f"localhost:{metrics.port}")
    assert again is not None
    again.close()


def test_metrics_off_opens_nothing() -> None:
    """``off`` is a setting, not an address."""
    assert start_metrics("off") is None


def test_metrics_reachable_address_needs_a_token_configured() -> None:
    """The server's rule holds here too."""
    with pytest.raises(ConfigError, match="reachable from other machines"):
        start_metrics("0.0.0.0:0")
    metrics = start_metrics("0.0.0.0:0", tokens=[SecretStr("t")])
    assert metrics is not None
    with socket.create_connection(("127.0.0.1", metrics.port), timeout=20):
        pass
    metrics.close()
