"""Images on hosts: a real web server, with and without TLS."""

from __future__ import annotations

import socket

import pytest
from places import PAGES, allowing, kinds, read
from websites import WebServer, web_server

from embedder.locations.config import LocationsConfig
from shoal.errors import (
    ImageTooLarge,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    Unsupported,
)


def test_web_images_are_read_redirects_followed_connections_kept(web: WebServer) -> None:
    """What the host serves is what is read, over one connection."""
    answers = read(
        allowing(web),
        web.url("/a.png"),
        web.url("/with space?x=1&y=é"),
        web.url("/a.png").replace("https", "HTTPS"),
        web.url("/to"),
        web.url("/undeclared"),
    )
    assert answers == [b"picture", b"quoted", b"picture", b"picture", b"x" * 1000]
    assert len({client for client, _ in web.asked[:3]}) == 1


def test_web_errors_say_whether_to_try_again(web: WebServer) -> None:
    """Gone, refused, busy, cut, encoded and too large are different answers."""
    again, bad = LocationUnavailable, InvalidArgument
    expected = {
        "/absent": NotFound,
        "/gone": NotFound,
        "/forbidden": bad,
        "/busy": again,
        "/throttled": again,
        "/zipped": bad,
        "/large": ImageTooLarge,
        "/endless": ImageTooLarge,
        "/cut": again,
        "/loop": bad,
        "/to-metadata": Unsupported,
        "/to-file": Unsupported,
        "/to-nowhere": bad,
    }
    answers = read(allowing(web), *map(web.url, expected))
    assert dict(zip(expected, kinds(answers), strict=True)) == expected


def test_web_place_is_refused_unless_host_port_and_scheme_are_allowed(web: WebServer) -> None:
    """Nothing is asked of another host, port or scheme, or with a password."""
    config = LocationsConfig(hosts=("images.test", "*.cdn.test", f"localhost:{web.port}"))
    answers = read(
        config,
        f"https://localhost:{web.port + 1}/a.png",
        "https://localhost/a.png",
        web.url("/a.png").replace("https", "http"),
        web.url("/a.png", host="user:pass@localhost"),
        web.url("/a.png", host="127.0.0.1"),
        "https://cdn.test/a.png",
        "https://evilcdn.test/a.png",
        "https://images.test.evil.test/a.png",
        "https://images.test:8443/a.png",
        "https:///a.png",
        "ftp://images.test/a.png",
        "s3://images.test/a.png",
    )
    assert kinds(answers) == [Unsupported] * 12
    assert not web.asked


def test_web_certificate_is_verified(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose authority is not trusted is not read."""
    monkeypatch.delenv("SSL_CERT_FILE")
    (answer,) = read(allowing(web), web.url("/a.png"))
    assert isinstance(answer, LocationUnavailable)
    assert "certificate" in answer.message.lower()
    assert not web.asked


def test_web_host_that_is_slow_absent_or_silent_ends_in_time(web: WebServer) -> None:
    """Neither a slow body, nor a host that accepts and says nothing, nor nobody holds a caller."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hosts = (f"localhost:{web.port}", f"localhost:{port}", "absent.invalid")
        config = allowing(web, hosts=hosts, timeout_s=0.5)
        answers = read(
            config, web.url("/slow"), f"https://localhost:{port}/x", "https://absent.invalid/x"
        )
    assert kinds(answers) == [LocationUnavailable] * 3
    assert "within 0.5 s" in str(answers[0])


def test_web_without_tls_needs_to_be_allowed() -> None:
    """Http is off unless asked for, also for a redirect."""
    with web_server(PAGES) as web:
        assert kinds(read(allowing(web), web.url("/a.png"))) == [Unsupported]
        assert read(allowing(web, allow_http=True), web.url("/to")) == [b"picture"]
