"""A directory, a web server and object stores whose images are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from places import PAGES, Hanging
from websites import WebServer, web_server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a file; beside it one that is not to be read."""
    inside = tmp_path / "photos"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a b#1.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "photos-2").mkdir()
    (tmp_path / "photos-2" / "x").write_bytes(b"outside")
    return inside


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server with TLS whose authority this process trusts."""
    with web_server(PAGES, tls=tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
        yield server


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in fsspec's memory, with an object in it and one beside it."""
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/photos/a b.png": b"object", "/bucket/secret": b"outside"})
    yield "memory://bucket/photos"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def hanging() -> Iterator[type[Hanging]]:
    """The store behind hanging://, whose threads end with the test."""
    Hanging.go_on, Hanging.entered = threading.Event(), 0
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    yield Hanging
    Hanging.go_on.set()
