"""A real web server on a free loopback port, with or without TLS, that serves what it is told."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme


@dataclass(frozen=True)
class Page:
    """An answer. ``declared`` replaces the true Content-Length; None leaves it out."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    declared: int | None = -1
    pause_s: float = 0.0


@dataclass(frozen=True)
class WebServer:
    """A running server: its port, the authority to trust (PEM), and the paths asked for."""

    port: int
    authority: Path | None
    asked: list[tuple[Any, str]]

    def url(self, path: str, *, host: str = "localhost") -> str:
        scheme = "https" if self.authority else "http"
        return f"{scheme}://{host}:{self.port}{path}"


@contextmanager
def web_server(pages: Mapping[str, Page], *, tls: Path | None = None) -> Iterator[WebServer]:
    """Serves ``pages`` by path; with TLS if ``tls`` names a directory for its certificates."""
    asked: list[tuple[Any, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append((self.client_address, self.path))
            page = pages.get(self.path, Page(status=404))
            self.send_response(page.status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if page.declared is None:
                self.close_connection = True
                self.send_header("Connection", "close")
            else:
                size = len(page.body) if page.declared < 0 else page.declared
                if size > len(page.body):  # cut short, not merely slow
                    self.close_connection = True
                self.send_header("Content-Length", str(size))
            self.end_headers()
            half = len(page.body) // 2
            try:
                self.wfile.write(page.body[:half])
                self.wfile.flush()
                time.sleep(page.pause_s)
                self.wfile.write(page.body[half:])
            except OSError:  # the client has had enough
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Clients go away as they please."""

    server = Server(("127.0.0.1", 0), Handler)
    authority = None
    if tls is not None:
        ca = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        authority = tls / "authority.pem"
        ca.cert_pem.write_to_path(str(authority))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="web")
    thread.start()
    try:
        yield WebServer(server.server_port, authority, asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
