"""Servers that are not reached, or lost: real sockets that misbehave, and the caller's error."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from shoal.errors import ServiceUnavailable
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.rpc.status import from_rpc_error
from shoal.rpc.unreachable import reason_of
from shoal.v1 import embedder_pb2, embedder_pb2_grpc

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(behave: Behaviour) -> Iterator[int]:
    """The port of a server that does ``behave`` with each connection, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def told(config: ChannelConfig) -> str:
    """The message of the error of a call."""
    with open_channel(config) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetInfo(embedder_pb2.GetInfoRequest(), timeout=20)
    error = from_rpc_error(caught.value, config.address)
    assert type(error) is ServiceUnavailable
    assert error.metadata == {"address": config.address}
    return error.message


def reset(connection: socket.socket) -> None:
    """Lets the closing of the connection reset it."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answering(data: bytes) -> Behaviour:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)

    return answer


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
NO_GRPC = "what answers there does not speak gRPC; is it the port of its metrics"
NO_TLS = "it does not speak TLS; leave --tls out"
CASES: dict[str, tuple[Behaviour, str, str]] = {
    "closes": (
        lambda _: None,
        "it closed the connection before a first answer; if it speaks TLS, --tls is needed",
        "it closed the connection when TLS began; if it does not speak TLS, leave --tls out",
    ),
    "resets": (
        reset,
        "it closed the connection before a first answer; if it speaks TLS, --tls is needed",
        "it closed the connection when TLS began; if it does not speak TLS, leave --tls out",
    ),
    "web server": (answering(HTTP), NO_GRPC, NO_TLS),
    "web page": (answering(HTTP.replace(b"400 Bad Request", b"200 OK")), NO_GRPC, NO_TLS),
    "ssh": (answering(b"SSH-2.0-OpenSSH_9.6\r\n"), NO_GRPC, NO_TLS),
    "another TLS": (
        answering(b"\x15\x03\x01\x00\x02\x02\x46"),  # an alert: protocol_version
        "if it speaks TLS, --tls is needed",
        "the TLS handshake failed: TLSV1_ALERT_PROTOCOL_VERSION",
    ),
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_port_of_something_else_is_told_as_that(case: str, *, tls: bool) -> None:
    """What it is decides the sentence, and what the caller may have to change."""
    behave, plain, encrypted = CASES[case]
    with listening(behave) as port:
        message = told(ChannelConfig(f"127.0.0.1:{port}", tls=tls))
    assert message.startswith(f"cannot reach a Shoal server at 127.0.0.1:{port}: ")
    assert (encrypted if tls else plain) in message


@pytest.mark.parametrize("tls", [False, True])
def test_port_that_nobody_answers_at_is_told(monkeypatch: pytest.MonkeyPatch, *, tls: bool) -> None:
    """A stuck server takes connections, and does nothing with them."""
    real = grpc.insecure_channel, grpc.secure_channel
    hasty = [("grpc.min_reconnect_backoff_ms", 100)]

    def insecure(target: str, options: Any) -> grpc.Channel:
        return real[0](target, [*hasty, *options])

    def secure(target: str, credentials: Any, options: Any) -> grpc.Channel:
        return real[1](target, credentials, [*hasty, *options])

    monkeypatch.setattr(grpc, "insecure_channel", insecure)
    monkeypatch.setattr(grpc, "secure_channel", secure)
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        port = stuck.getsockname()[1]
        assert "it takes the connection and does not answer" in told(
            ChannelConfig(f"127.0.0.1:{port}", tls=tls)
        )


def test_host_without_an_address_is_told() -> None:
    """The name is at fault, and no server."""
    config = ChannelConfig("no-such-host.invalid:7800")
    assert told(config) == (
        "cannot reach a Shoal server at no-such-host.invalid:7800: the name of its host cannot be "
        "resolved"
    )


class Embedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """Answers once it is let go."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(1))

    def GetInfo(self, request: Any, context: Any) -> embedder_pb2.GetInfoResponse:
        self.entered.set()
        self.release.wait(20)
        return embedder_pb2.GetInfoResponse()


@contextlib.contextmanager
def serving(embedder: Embedder, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    server = embedder.server
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(embedder, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        stopped = server.stop(0)
        embedder.release.set()
        stopped.wait()


@contextlib.contextmanager
def relaying(port: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """The port of a relay to ``port``, and its clients' connections."""
    clients: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def relay(client: socket.socket) -> None:
        clients.append(client)
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client))
            threads.append(back)
            back.start()
            pump(client, server)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # a thread that reads from it wakes up

    with listening(relay) as found:
        yield found, clients
    for each in threads:
        each.join()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("closed", "the server was stopped or killed, or something on the way closed it"),
        ("reset", "the server was killed or crashed, or something on the way cut it"),
    ],
)
def test_server_that_is_lost_during_a_call_is_told_as_lost(how: str, says: str) -> None:
    """Whoever was answered before knows that neither TLS nor the address is at fault."""
    embedder = Embedder()
    with (
        serving(embedder) as port,
        relaying(port) as (way, clients),
        open_channel(ChannelConfig(f"127.0.0.1:{way}")) as channel,
    ):
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        call = stub.GetInfo.future(embedder_pb2.GetInfoRequest(), timeout=20)
        assert embedder.entered.wait(20)
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            clients[0].shutdown(socket.SHUT_RD)
            clients[0].close()
        else:
            clients[0].shutdown(socket.SHUT_RDWR)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
    error = from_rpc_error(caught.value, "h:1")
    assert type(error) is ServiceUnavailable
    assert error.message == (
        f"lost the Shoal server at h:1: the connection was {how} during the call; {says}"
    )


def test_server_that_is_stopped_during_a_call_is_told_as_lost() -> None:
    """It cancels its calls, which is a closing too."""
    embedder = Embedder()
    with (
        serving(embedder) as port,
        open_channel(ChannelConfig(f"127.0.0.1:{port}")) as channel,
    ):
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        call = stub.GetInfo.future(embedder_pb2.GetInfoRequest(), timeout=20)
        assert embedder.entered.wait(20)
        embedder.server.stop(0)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
    message = from_rpc_error(caught.value, "h:1").message
    assert message.startswith("lost the Shoal server at h:1: the connection was ")


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """An authority, and its file."""
    found, path = trustme.CA(), tmp_path / "ca.pem"
    found.cert_pem.write_to_path(str(path))
    return found, path


def credentials(authority: trustme.CA, name: str) -> grpc.ServerCredentials:
    made = authority.issue_cert(name)
    chain = b"".join(each.bytes() for each in made.cert_chain_pems)
    return grpc.ssl_server_credentials([(made.private_key_pem.bytes(), chain)])


def test_tls_on_one_side_only_is_told(authority: tuple[trustme.CA, Path]) -> None:
    """Both ways round, with the option to add or to leave out; by ``localhost`` too."""
    secured = credentials(authority[0], "127.0.0.1")
    with serving(Embedder(), secured) as port:
        assert "if it speaks TLS, --tls is needed" in told(ChannelConfig(f"127.0.0.1:{port}"))
    with serving(Embedder()) as port:
        config = ChannelConfig(f"127.0.0.1:{port}", tls=True, tls_ca=authority[1])
        assert NO_TLS in told(config)


def test_certificate_that_does_not_fit_is_told(authority: tuple[trustme.CA, Path]) -> None:
    """Of another authority, or for another name."""
    with serving(Embedder(), credentials(authority[0], "127.0.0.1")) as port:
        message = told(ChannelConfig(f"127.0.0.1:{port}", tls=True))
        assert "its certificate is not trusted; name its authority with --tls-ca" in message
    with serving(Embedder(), credentials(authority[0], "elsewhere.example")) as port:
        config = ChannelConfig(f"127.0.0.1:{port}", tls=True, tls_ca=authority[1])
        assert "its certificate is for another name" in told(config)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "answered HTTP 403, a refusal; without --via-proxy it is left out"),
        (407, "answered HTTP 407, which asks for a name and a password"),
        (502, "answered HTTP 502, a refusal"),
    ],
)
def test_proxy_that_refuses_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    """The server was not even asked."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with listening(answering(HTTP.replace(b"400", str(status).encode()))) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        message = told(ChannelConfig("192.0.2.1:7800", via_proxy=True))
    assert f"the proxy that https_proxy or http_proxy names {says}" in message


def refused(address: str) -> str:
    """What a caller reads of a refused connection to ``address``."""

    class Refused(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return "last error: ipv6:[::1]:1: Connection refused"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    return from_rpc_error(Refused(), address).message


def test_address_of_localhost_that_does_listen_is_named() -> None:
    """Of two addresses gRPC tells the failure of one: perhaps not of the one that matters."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        message = refused(f"localhost:{port}")
        assert f"what listens at 127.0.0.1:{port} does not answer as it should" in message
        assert refused(f"127.0.0.1:{port}").endswith("start one with `shoal up`")
    assert refused(f"localhost:{port}").endswith("start one with `shoal up`")


def test_reason_alone_names_no_server_and_no_remedy() -> None:
    """For services that call others: their callers start none."""
    assert reason_of("x: Connection refused") == "connection refused"
    assert reason_of("Stream removed (Socket closed)").startswith("the connection was closed dur")
    assert reason_of("words that nobody knows") == "words that nobody knows"
