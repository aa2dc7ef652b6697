"""Images on hosts: a real web server, with and without TLS, and hosts that answer as told."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, replace
from typing import Any

import httpcore
import pytest
from places import PAGES, Plain, allowing, kinds, read
from websites import WebServer, web_server

from embedder.locations.config import LocationsConfig
from embedder.locations.web import Web
from shoal.errors import (
    ImageTooLarge,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    ServiceUnavailable,
    ShoalError,
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


def test_web_image_is_read_from_its_host_and_by_no_proxy(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would resolve the name itself, where no address is checked."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    assert read(allowing(web), web.url("/a.png")) == [b"picture"]


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


# What a host is asked and what its answers mean, without a network: it says what it is told to.


class Host(httpcore.AsyncNetworkBackend):
    """Hosts that answer with ``answers``, one to a connection, and note what they were asked."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self._answers = list(answers)
        self.addresses: list[tuple[str, int]] = []
        self.requests: list[bytes] = []

    async def connect_tcp(self, host: str, port: int, *_: Any) -> httpcore.AsyncNetworkStream:
        self.addresses.append((host, port))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        requests = self.requests

        class Answering(httpcore.AsyncMockStream):
            async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
                if buffer:  # the end of a request is written too
                    requests.append(buffer)

        return Answering([answer])


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """An answer that ends with its connection; ``headers`` with _ for -."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} Status\r\n{lines}Connection: close\r\n\r\n"
    return head.encode() + body


@dataclass
class Asked:
    """What reading one place led to."""

    outcome: bytes | ShoalError
    host: Host
    reserved: list[int]

    @property
    def message(self) -> str:
        assert isinstance(self.outcome, ShoalError)
        return self.outcome.message

    @property
    def targets(self) -> list[str]:
        """The targets of the requests, in order."""
        return [line.split()[1].decode() for line in self.host.requests]


TLS = ssl.create_default_context()
PLAIN = LocationsConfig(hosts=("a.test",), allow_http=True, allow_private=True)


def ask(
    uri: str, *answers: bytes | Exception, config: LocationsConfig = PLAIN, max_bytes: int = 100
) -> Asked:
    """Read ``uri`` from hosts that give ``answers``; every name is 192.0.2.1."""

    async def scenario() -> Asked:
        host, means = Host(*answers), Plain()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(httpcore, "AnyIOBackend", lambda: host)
            patch.setattr(ssl, "create_default_context", lambda: TLS)  # reads a large file
            patch.setattr(
                socket, "getaddrinfo", lambda _, port, **__: [(0, 0, 6, "", ("192.0.2.1", port))]
            )
            web = Web(config)
            try:
                outcome: bytes | ShoalError = await web.read(uri, max_bytes=max_bytes, means=means)
            except ShoalError as exc:
                outcome = exc
            finally:
                await web.close()
        return Asked(outcome, host, means.reserved)

    return asyncio.run(asyncio.wait_for(scenario(), 20))


def test_host_is_asked_for_the_file_as_it_is() -> None:
    """One GET with the host's name, who asks, and that nothing is to be compressed."""
    asked = ask("http://a.test/x.png?size=1#part", answer(body=b"picture"))
    assert asked.outcome == b"picture"
    assert asked.host.addresses == [("192.0.2.1", 80)]
    (request,) = asked.host.requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /x.png?size=1 HTTP/1.1"
    assert sorted(lines[1:-2]) == [
        "Accept-Encoding: identity",
        "Accept: image/*",
        "Host: a.test",
        "User-Agent: shoal",
    ]


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("", "/"),
        ("/", "/"),
        ("?a=b", "/?a=b"),
        ("/a b", "/a%20b"),
        ("/a%20b%2F", "/a%20b%2F"),
        ("/é?ü=ß", "/%C3%A9?%C3%BC=%C3%9F"),
        ("/a'b(c)!$&*+,;=:@-._~", "/a'b(c)!$&*+,;=:@-._~"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/x?a=b?c/d&e=%26", "/x?a=b?c/d&e=%26"),
        ("/x?", "/x"),
    ],
)
def test_path_and_query_are_quoted_once(written: str, target: str) -> None:
    """What a path may have stays, also what is quoted already; all else is quoted."""
    asked = ask(f"http://a.test{written}", answer(body=b"x"))
    assert asked.targets == [target]


@pytest.mark.parametrize(
    ("entry", "uri", "port"),
    [
        ("a.test", "http://a.test/x", 80),
        ("a.test", "http://a.test:80/x", 80),
        ("a.test", "http://A.TEST/x", 80),
        ("a.test", "http://a.test./x", 80),
        ("a.test", "HTTP://a.test/x", 80),
        ("a.test:8080", "http://a.test:8080/x", 8080),
        ("*.a.test", "http://b.a.test/x", 80),
        ("*.a.test", "http://c.b.a.test/x", 80),
        ("*.a.test:8080", "http://b.a.test:8080/x", 8080),
        ("xn--bcher-kva.test", "http://bücher.test/x", 80),
        ("[::1]", "http://[::1]/x", 80),
        ("[::1]:8080", "http://[::1]:8080/x", 8080),
        ("192.0.2.7", "http://192.0.2.7/x", 80),
    ],
)
def test_host_is_allowed_by_its_name_and_port(entry: str, uri: str, port: int) -> None:
    """A name, its subdomains with a star, an address; the scheme's own port without another."""
    asked = ask(uri, answer(body=b"x"), config=replace(PLAIN, hosts=("other.test", entry)))
    assert asked.outcome == b"x"
    assert asked.host.addresses == [("192.0.2.1", port)]


@pytest.mark.parametrize(
    ("entry", "uri"),
    [
        ("a.test", "http://b.test/x"),
        ("a.test", "http://b.a.test/x"),
        ("a.test", "http://xa.test/x"),
        ("a.test", "http://a.test.b.test/x"),
        ("a.test", "http://a.test:8080/x"),
        ("a.test", "http://a.test:443/x"),
        ("a.test:8080", "http://a.test/x"),
        ("a.test:8080", "http://a.test:80/x"),
        ("*.a.test", "http://a.test/x"),
        ("*.a.test", "http://xa.test/x"),
        ("*.a.test", "http://b.a.test:8080/x"),
        ("*.a.test", "http://b.a.test.c.test/x"),
        ("[::1]", "http://[::2]/x"),
        ("[::1]", "http://[::1]:8080/x"),
        ("[::1]:8080", "http://[::1]/x"),
        ("a.test", "http://user@a.test/x"),
        ("a.test", "http://:secret@a.test/x"),
        ("a.test", "http://a.test@b.test/x"),
        ("a.test", "ftp://a.test/x"),
        ("a.test", "//a.test/x"),
        ("a.test", "http:/x"),
        ("a.test", "http://./x"),
    ],
)
def test_other_hosts_ports_schemes_and_passwords_are_refused(entry: str, uri: str) -> None:
    """Nothing of the place is looked up or asked, and the answer says only that it may not be."""
    asked = ask(uri, config=replace(PLAIN, hosts=(entry,)))
    assert isinstance(asked.outcome, Unsupported)
    assert asked.message == f"image.uri: expected a place that this server may read, got {uri!r}"
    assert asked.host.addresses == []


@pytest.mark.parametrize("hosts", [("a.test:443",), ("a.test",)])
def test_http_is_refused_unless_it_is_allowed(hosts: tuple[str, ...]) -> None:
    """Also on the port of https."""
    config = replace(PLAIN, hosts=hosts, allow_http=False)
    for uri in ("http://a.test/x", "http://a.test:443/x"):
        assert isinstance(ask(uri, config=config).outcome, Unsupported)


@pytest.mark.parametrize(
    "uri", ["http://a.test:99999/x", "http://a.test:b/x", "http://[::1/x", f"http://{'é' * 70}/x"]
)
def test_malformed_url_is_told_apart(uri: str) -> None:
    """What is no URL at all is the caller's mistake, with the reason; nothing is asked."""
    asked = ask(uri)
    assert isinstance(asked.outcome, InvalidArgument)
    assert asked.message.startswith(f"image.uri: expected https://host/path, got {uri!r}: ")
    assert asked.outcome.metadata["field"] == "image.uri"
    assert asked.host.addresses == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 400"),
        (401, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 401"),
        (403, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 403"),
        (404, NotFound, "no such image: {0}: a.test answered 404"),
        (408, LocationUnavailable, "image {0}: a.test answered 408"),
        (409, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 409"),
        (410, NotFound, "no such image: {0}: a.test answered 410"),
        (425, LocationUnavailable, "image {0}: a.test answered 425"),
        (429, LocationUnavailable, "image {0}: a.test answered 429"),
        (499, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 499"),
        (500, LocationUnavailable, "image {0}: a.test answered 500"),
        (503, LocationUnavailable, "image {0}: a.test answered 503"),
        (204, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 204"),
        (206, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 206"),
        (300, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 300"),
        (304, InvalidArgument, "image.uri: expected an image at {0}, a.test answered 304"),
    ],
)
def test_status_says_whether_to_try_again(status: int, kind: type, message: str) -> None:
    """Not there, not now, or not so: each status is one of three answers."""
    asked = ask("http://a.test/x", answer(status, b""))
    assert type(asked.outcome) is kind
    assert asked.message == message.format("'http://a.test:80/x'")
    assert asked.reserved == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(status: int) -> None:
    """Each kind of it, to a relative place and to another allowed host."""
    config = replace(PLAIN, hosts=("a.test", "b.test:8080"))
    asked = ask(
        "http://a.test/dir/x?q=1",
        answer(status, Location="y"),
        answer(status, Location="http://b.test:8080/z?q=2"),
        answer(body=b"found"),
        config=config,
    )
    assert asked.outcome == b"found"
    assert asked.targets == ["/dir/x?q=1", "/dir/y", "/z?q=2"]
    assert [port for _, port in asked.host.addresses] == [80, 80, 8080]


@pytest.mark.parametrize(
    "to",
    [
        "http://b.test/x",
        "http://a.test:8080/x",
        "//b.test/x",
        "http://user@a.test/x",
        "ftp://a.test/x",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
    ],
)
def test_redirect_is_held_to_the_same_rules(to: str) -> None:
    """It is refused by its own name and not asked."""
    asked = ask("http://a.test/x", answer(302, Location=to))
    assert isinstance(asked.outcome, Unsupported)
    assert len(asked.host.addresses) == 1


def test_redirect_to_http_is_refused_where_only_https_is_allowed(web: WebServer) -> None:
    """An answer that came encrypted does not lead to one that is not."""
    (outcome,) = read(allowing(web, hosts=(f"localhost:{web.port}", "a.test")), web.url("/to-http"))
    assert isinstance(outcome, Unsupported)
    assert "http://a.test/x" in outcome.message


@pytest.mark.parametrize("most", [0, 1, 3])
def test_redirects_are_counted(most: int) -> None:
    """As many as are allowed are followed; with one more nothing is read."""
    config = replace(PLAIN, max_redirects=most)
    hops = [answer(302, Location=f"/{number}") for number in range(most)]
    assert ask("http://a.test/x", *hops, answer(body=b"x"), config=config).outcome == b"x"
    asked = ask("http://a.test/x", *hops, answer(302, Location="/more"), config=config)
    assert isinstance(asked.outcome, InvalidArgument)
    told = f"image.uri: expected at most {most} redirects, got more from 'http://a.test/x'"
    assert asked.message == told
    assert asked.outcome.metadata["field"] == "image.uri"
    assert len(asked.host.addresses) == most + 1


def test_memory_is_reserved_for_what_is_declared() -> None:
    """As much as the host says, or as an image may have if it says nothing; before the body."""
    assert ask("http://a.test/x", answer(body=b"x" * 7, Content_Length="7")).reserved == [7]
    assert ask("http://a.test/x", answer(body=b"x" * 7)).reserved == [100]


@pytest.mark.parametrize("declared", [{}, {"Content_Length": "100"}])
def test_image_may_have_as_many_bytes_as_the_limit(declared: dict[str, str]) -> None:
    """The limit itself is allowed, whether the host tells the size or not."""
    assert ask("http://a.test/x", answer(body=b"x" * 100, **declared)).outcome == b"x" * 100


def test_image_of_more_bytes_than_the_limit_is_refused() -> None:
    """By its declared size before memory is taken, or else as soon as there is more."""
    declared = ask("http://a.test/x", answer(body=b"x" * 101, Content_Length="101"))
    assert isinstance(declared.outcome, ImageTooLarge)
    assert declared.reserved == []
    endless = ask("http://a.test/x", answer(body=b"x" * 5000))
    assert isinstance(endless.outcome, ImageTooLarge)
    assert endless.message.startswith("image 'http://a.test:80/x': expected at most 100 bytes, got")


def test_body_that_the_host_encoded_is_refused() -> None:
    """Its size would say nothing; "identity", however written, is no encoding."""
    asked = ask("http://a.test/x", answer(body=b"zipped", Content_Encoding="gzip"))
    assert isinstance(asked.outcome, InvalidArgument)
    assert asked.message == "image.uri: expected the file as it is, a.test sent it encoded"
    assert asked.outcome.metadata["field"] == "image.uri"
    assert ask("http://a.test/x", answer(body=b"x", Content_Encoding="Identity")).outcome == b"x"


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (httpcore.ConnectError("refused"), "refused"),
        (httpcore.ConnectTimeout(), "ConnectTimeout"),
        (httpcore.ReadError("reset"), "reset"),
        (httpcore.WriteTimeout("late"), "late"),
        (b"no http at all\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Content-Length"),
    ],
)
def test_host_that_breaks_off_is_unavailable(failure: bytes | Exception, why: str) -> None:
    """Whatever the network did, the answer names the place, the host and the reason."""
    asked = ask("http://a.test/x", failure)
    assert isinstance(asked.outcome, LocationUnavailable)
    assert asked.message.startswith("image 'http://a.test/x': a.test: ")
    assert why in asked.message


def test_closed_web_resolves_no_names() -> None:
    """Its threads end with it."""

    async def scenario() -> None:
        web = Web(PLAIN)
        await web.close()
        with pytest.raises(ServiceUnavailable):
            await web.read("http://a.test/x", max_bytes=1, means=Plain())

    asyncio.run(scenario())


def test_connections_are_as_many_as_reads_and_kept_for_a_while() -> None:
    """More would wait for no read, and fewer would make reads wait."""
    web = Web(replace(PLAIN, concurrency=7, timeout_s=9))
    assert (web._pool._max_connections, web._pool._keepalive_expiry) == (7, 30)
    assert (web._name_slots._count, web._name_slots._patience_s) == (7, 9)
