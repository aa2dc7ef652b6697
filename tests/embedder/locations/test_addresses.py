"""Connections to public addresses only: which addresses are, and what is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import httpcore
import pytest
from places import PAGES, allowing, kinds, read
from websites import WebServer, web_server

from embedder.locations.addresses import CheckedBackend, is_public
from embedder.locations.config import LocationsConfig
from embedder.locations.slots import Slots
from shoal.errors import LocationUnavailable, Unsupported

T = TypeVar("T")
PUBLIC = ("93.184.215.14", "2606:4700::1111")


class Stream(httpcore.AsyncNetworkStream):
    """An open connection that answers with what it was asked, and fails to start TLS if told."""

    def __init__(self, *, tls: BaseException | None = None) -> None:
        self.tls = tls
        self.calls: list[Any] = []
        self.closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        self.calls.append(("read", max_bytes, timeout))
        return b"read"

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        self.calls.append(("write", buffer, timeout))

    async def aclose(self) -> None:
        self.closed = True

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        self.calls.append(("tls", ssl_context, server_hostname, timeout))
        if self.tls is not None:
            raise self.tls
        return self

    def get_extra_info(self, info: str) -> Any:
        return f"extra {info}"


class Network:
    """What is behind the checks: answers at the addresses of ``answers``, and counts who connects.

    An address leads to a stream or to an error; at the others nobody is.
    """

    def __init__(self, answers: dict[str, Stream | Exception]) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []

    async def connect_tcp(self, *given: Any) -> Stream:
        self.asked.append(given)
        answer = self.answers.get(given[0], httpcore.ConnectError(f"nobody at {given[0]}"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def addresses(self) -> list[str]:
        """The addresses that were connected to, in order."""
        return [str(given[0]) for given in self.asked]


class Names:
    """A resolver that knows one host; it notes what it was asked, and in which thread."""

    def __init__(self, patch: pytest.MonkeyPatch, addresses: Sequence[str] | Exception) -> None:
        self._addresses = addresses
        self.asked: list[tuple[Any, ...]] = []
        self.threads: list[str] = []
        patch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append((host, port, options))
        self.threads.append(threading.current_thread().name)
        if isinstance(self._addresses, Exception):
            raise self._addresses
        return [(None, None, 6, "", (address, port)) for address in self._addresses]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 20))


def connect(
    network: Network, *given: Any, allow_private: bool = False, **named: Any
) -> httpcore.AsyncNetworkStream:
    """A connection to "images.test", port 443, through the checks."""

    async def scenario() -> httpcore.AsyncNetworkStream:
        slots = Slots("names of hosts", 1, patience_s=5)
        backend = CheckedBackend(slots, allow_private=allow_private)
        backend._inner = network  # type: ignore[assignment]
        try:
            return await backend.connect_tcp("images.test", 443, *given, **named)
        finally:
            slots.close()

    return run(scenario())


def test_name_is_resolved_once_and_its_first_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address goes to the network, never the name: nothing is resolved a second time."""
    names = Names(monkeypatch, PUBLIC)
    network = Network({address: Stream() for address in PUBLIC})
    connect(network)
    assert names.asked == [("images.test", 443, {"type": socket.SOCK_STREAM})]
    assert network.addresses == [PUBLIC[0]]


def test_name_is_resolved_in_a_thread_of_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that blocks holds up neither the event loop nor the threads of others."""
    names = Names(monkeypatch, PUBLIC)
    connect(Network({PUBLIC[0]: Stream()}))
    assert names.threads == ["shoal-read-names of hosts"]


def test_what_was_asked_of_the_connection_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port, timeout, local address and options reach the network as they came, by place or name."""
    Names(monkeypatch, PUBLIC[:1])
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    network = Network({PUBLIC[0]: Stream()})
    connect(network, 7.5, "192.0.2.9", options)
    connect(network, timeout=7.5, local_address="192.0.2.9", socket_options=options)
    connect(network)
    whole = (PUBLIC[0], 443, 7.5, "192.0.2.9", options)
    assert network.asked == [whole, whole, (PUBLIC[0], 443, None, None, None)]


@pytest.mark.parametrize("failure", [httpcore.ConnectError("no"), httpcore.ConnectTimeout("late")])
def test_next_address_is_tried_where_one_does_not_answer(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the resolver's order, and no further than the first that answers."""
    addresses = ("2606:4700::1111", "2606:4700::1112", "93.184.215.14", "93.184.215.15")
    Names(monkeypatch, addresses)
    stream = Stream()
    network = Network({addresses[0]: failure, addresses[2]: stream, addresses[3]: Stream()})
    found = connect(network)
    assert network.addresses == list(addresses[:3])
    assert found.get_extra_info("x") == "extra x"


def test_last_failure_is_told_where_no_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As httpcore has it, so that it is understood above."""
    Names(monkeypatch, PUBLIC)
    last = httpcore.ConnectTimeout("late")
    with pytest.raises(httpcore.ConnectTimeout, match="late"):
        connect(Network({PUBLIC[0]: httpcore.ConnectError("no"), PUBLIC[1]: last}))


def test_host_without_addresses_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer of the resolver is nobody to connect to, with and without the check."""
    Names(monkeypatch, ())
    for allow_private in (False, True):
        with pytest.raises(httpcore.ConnectError, match=r"^images\.test has no address$"):
            connect(Network({}), allow_private=allow_private)


def test_failure_of_another_kind_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that nobody answers leads on to the next address."""
    Names(monkeypatch, PUBLIC)
    network = Network({PUBLIC[0]: RuntimeError("broken"), PUBLIC[1]: Stream()})
    with pytest.raises(RuntimeError, match="broken"):
        connect(network)
    assert network.addresses == [PUBLIC[0]]


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("127.0.0.1", *PUBLIC), (*PUBLIC, "10.0.0.1"), (PUBLIC[0], "::1", PUBLIC[1])],
)
def test_host_with_any_private_address_is_not_connected_to(
    addresses: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is enough, wherever it stands; its public addresses are not connected to either."""
    Names(monkeypatch, addresses)
    network = Network({address: Stream() for address in addresses})
    with pytest.raises(Unsupported) as refused:
        connect(network)
    assert network.asked == []
    told = "image.uri: expected a host with public addresses only, got 'images.test'"
    assert refused.value.message == told
    assert refused.value.metadata["field"] == "image.uri"


def test_private_address_is_connected_to_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``allow_private`` lets any address through, and only it does."""
    Names(monkeypatch, ("10.0.0.1", PUBLIC[0]))
    network = Network({"10.0.0.1": Stream()})
    connect(network, allow_private=True)
    assert network.addresses == ["10.0.0.1"]


@pytest.mark.parametrize(
    "failure", [socket.gaierror(-2, "unknown"), OSError("no network"), UnicodeError("too long")]
)
def test_name_that_is_not_resolved_is_unavailable(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the resolver raises, the host is named and its own words are not."""
    Names(monkeypatch, failure)
    with pytest.raises(LocationUnavailable) as told:
        connect(Network({}))
    assert told.value.message == "host 'images.test' cannot be resolved"
    assert told.value.__cause__ is failure


def test_connection_is_used_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, timeouts and TLS settings reach the connection, and its answers come back."""
    Names(monkeypatch, PUBLIC)
    inner = Stream()
    stream = connect(Network({PUBLIC[0]: inner}))
    context = ssl.create_default_context()

    async def scenario() -> None:
        assert await stream.read(10, 1.5) == b"read"
        await stream.write(b"GET", 2.5)
        assert await stream.start_tls(context, "images.test", 3.5) is inner
        assert not inner.closed
        await stream.aclose()

    run(scenario())
    assert inner.closed
    assert stream.get_extra_info("socket") == "extra socket"
    tls = ("tls", context, "images.test", 3.5)
    assert inner.calls == [("read", 10, 1.5), ("write", b"GET", 2.5), tls]


@pytest.mark.parametrize("failure", [asyncio.CancelledError(), ssl.SSLError("bad")])
def test_connection_closes_when_tls_does_not_start(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives up in the middle of it leaves no open socket behind."""
    Names(monkeypatch, PUBLIC)
    inner = Stream(tls=failure)
    stream = connect(Network({PUBLIC[0]: inner}))

    async def scenario() -> None:
        await stream.start_tls(ssl.create_default_context())

    with pytest.raises(type(failure)):
        run(scenario())
    assert inner.closed


def test_web_host_with_a_private_address_is_refused(web: WebServer) -> None:
    """An allowed name that resolves to this machine is not connected to."""
    answers = read(allowing(web, allow_private=False), web.url("/a.png"))
    assert kinds(answers) == [Unsupported]
    assert not web.asked


def test_redirect_to_an_allowed_host_with_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A redirect is held to the same rules as the first place, whichever host it comes from."""
    resolved = {"outside.test": PUBLIC[0], "inside.test": "10.0.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 6, "", (resolved[host], port))]
    )
    asked: list[str] = []

    class Redirecting(httpcore.AnyIOBackend):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            asked.append(host)
            to = (
                b"HTTP/1.1 302 Found\r\nLocation: http://inside.test/x\r\nContent-Length: 0\r\n\r\n"
            )
            return httpcore.AsyncMockStream([to])

    monkeypatch.setattr(httpcore, "AnyIOBackend", Redirecting)
    config = LocationsConfig(hosts=tuple(resolved), allow_http=True)
    answers = read(config, "http://outside.test/a.png", "http://inside.test/x")
    assert kinds(answers) == [Unsupported, Unsupported]
    assert asked == [PUBLIC[0]]


def test_web_connects_to_the_addresses_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is not resolved again, and the next address is tried where one does not answer."""
    Names(monkeypatch, ("::1", "127.0.0.1"))  # nobody listens on the first
    with web_server(PAGES) as web:
        hosts = (f"images.invalid:{web.port}",)
        config = LocationsConfig(hosts=hosts, allow_http=True, allow_private=True)
        assert read(config, web.url("/a.png", host="images.invalid")) == [b"picture"]


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "93.184.215.14",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:93.184.215.14",
        "::ffff:5db8:d70e",
    ],
)
def test_public_addresses(address: str) -> None:
    """What is reachable from everywhere is public, up to the very edges of what is not."""
    assert is_public(address) is True


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.170",
        "192.0.2.1",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.0",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::93.184.215.14",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:224.0.0.1",
        "::ffff:240.0.0.1",
        "::ffff:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::5db8:d70e",
        "64:ff9b:1::1",
        "100::1",
        "1fff:ffff::1",
        "4000::1",
        "2001:0:7f00:1::",
        "2001:0:5db8:d70e::",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:5db8:d70e::",
        "fc00::1",
        "fd00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    """This machine, its networks, the cloud's metadata, groups, and detours to any of them."""
    assert is_public(address) is False


@pytest.mark.parametrize(
    "text",
    ["", "no address", "localhost", "1.1.1", "1.1.1.1.1", "0x7f000001", "01.1.1.1", "1.1.1.1/32"],
)
def test_what_is_no_address_is_not_public(text: str) -> None:
    """What cannot be read as one address is refused and not guessed at."""
    assert is_public(text) is False


@pytest.mark.parametrize(
    "address",
    ["224.0.0.1", "240.0.0.1", "2002:5db8:d70e::", "2001:0:5db8:d70e::", "64:ff9b::1", "ff0e::1"],
)
def test_detours_and_groups_are_refused_whatever_python_counts_as_global(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own tables change from release to release; these are refused beside them."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        monkeypatch.setattr(kind, "is_global", property(lambda _: True))
    assert is_public("10.0.0.1"), "the tables are out of the way"
    assert is_public(address) is False
