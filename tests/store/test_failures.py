from __future__ import annotations

import grpc
import httpx
import pytest
from pydantic import SecretStr
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from shoal.errors import (
    ConfigError,
    Conflict,
    DiskFull,
    InvalidArgument,
    NotFound,
    Overloaded,
    ShoalError,
    StoreUnavailable,
)
from shoal.store import StoreConfig, open_store
from shoal.store.failures import engine_errors


class PanicException(BaseException):
    """As pyo3 raises when Rust panics: not an Exception."""


class Status(grpc.RpcError, grpc.Call):
    """As a gRPC call raises."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "the server's words"


Status.__abstractmethods__ = frozenset()  # the rest of grpc.Call is not asked for


def http(status: int) -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", b"the server's words", httpx.Headers())


CASES: list[tuple[BaseException, type[ShoalError]]] = [
    (http(400), InvalidArgument),
    (http(401), ConfigError),
    (http(403), ConfigError),
    (http(404), NotFound),
    (http(409), Conflict),
    (http(422), InvalidArgument),
    (http(429), Overloaded),
    (http(500), StoreUnavailable),
    (http(503), StoreUnavailable),
    (ResponseHandlingException(OSError("refused")), StoreUnavailable),
    (ApiException("?"), StoreUnavailable),
    (ResourceExhaustedResponse("slow down", 7), Overloaded),
    (QdrantException("?"), StoreUnavailable),
    (Status(grpc.StatusCode.NOT_FOUND), NotFound),
    (Status(grpc.StatusCode.ALREADY_EXISTS), Conflict),
    (Status(grpc.StatusCode.INVALID_ARGUMENT), InvalidArgument),
    (Status(grpc.StatusCode.UNAUTHENTICATED), ConfigError),
    (Status(grpc.StatusCode.PERMISSION_DENIED), ConfigError),
    (Status(grpc.StatusCode.RESOURCE_EXHAUSTED), Overloaded),
    (Status(grpc.StatusCode.UNAVAILABLE), StoreUnavailable),
    (Status(grpc.StatusCode.DEADLINE_EXCEEDED), StoreUnavailable),
    (Status(grpc.StatusCode.INTERNAL), StoreUnavailable),
    (grpc.RpcError("?"), StoreUnavailable),
    (ValueError("Collection x not found"), NotFound),
    (ValueError("Wrong input: ..."), InvalidArgument),
    (ValueError("Cannot invoke RPC on closed channel!"), StoreUnavailable),
    (KeyError("an id"), NotFound),
    (ValueError("Collection x is odd"), InvalidArgument),
    (ValueError("Point x not found"), InvalidArgument),
    (RuntimeError("QdrantLocal instance is closed"), StoreUnavailable),
    (RuntimeError("a worker died"), StoreUnavailable),
    (OSError(28, "No space left on device"), DiskFull),
    (OSError(122, "Disk quota exceeded"), DiskFull),
    (OSError(5, "Input/output error"), StoreUnavailable),
    (Exception("failed to write to file `x`: No space left on device (os error 28)"), DiskFull),
    (Exception("failed to write to file `x`: Read-only file system (os error 30)"), DiskFull),
    (Exception("failed to read file `x`: Input/output error (os error 5)"), StoreUnavailable),
    (ValueError("(os error 28)"), InvalidArgument),
    (Exception("Vector dimension error: expected dim: 8, got 7"), InvalidArgument),
    (Exception("Not existing vector name error: x"), InvalidArgument),
    (Exception("Wrong input: ..."), InvalidArgument),
    (Exception("Service runtime error: wrong input"), StoreUnavailable),
    (PanicException("index out of bounds"), StoreUnavailable),
]


@pytest.mark.parametrize(("raised", "expected"), CASES, ids=lambda case: str(case)[:40])
def test_every_engine_error_becomes_one_of_ours(
    raised: BaseException, expected: type[ShoalError]
) -> None:
    """One line that names the subject, of the right class, with the original as its cause."""
    with pytest.raises(expected) as caught, engine_errors("collection 'x'"):
        raise raised
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    assert caught.value.message.startswith("collection 'x': ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (http(404), "x: Unexpected Response: 404 (reason) Raw response content: b\"the server's"),
        (ResponseHandlingException(OSError("refused")), "x: refused"),
        (ResourceExhaustedResponse("slow", 7), "x: the vector store is overloaded: slow"),
        (Status(grpc.StatusCode.NOT_FOUND), "x: NOT_FOUND: the server's words"),
        (grpc.RpcError("?"), "x: ?"),
        (grpc.RpcError(), "x: RpcError"),
        (ValueError("two\n  lines"), "x: two lines"),
        (KeyError("an id"), "x: 'an id'"),
        (Exception("Wrong input: a"), "x: Wrong input: a"),
        (Exception("disk"), "x: the embedded engine failed: disk"),
        (PanicException("a\nb"), "x: the engine failed: a b"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_message_says_what_failed_and_what_the_engine_said(
    raised: BaseException, says: str
) -> None:
    """The subject, then the engine's words in one line, or its error's name if it says nothing."""
    with pytest.raises(ShoalError) as caught, engine_errors("x"):
        raise raised
    assert caught.value.message.startswith(says)


def test_overload_keeps_the_delay_that_the_server_asked_for() -> None:
    """The server's retry-after reaches the caller."""
    with pytest.raises(Overloaded) as caught, engine_errors("x"):
        raise ResourceExhaustedResponse("slow down", 7)
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(
    "raised",
    [
        *(NotFound("ours"), TypeError("a bug"), AssertionError("another")),
        *(KeyboardInterrupt(), SystemExit(1), GeneratorExit()),
    ],
)
def test_everything_else_passes_unchanged(raised: BaseException) -> None:
    """Our own errors, interrupts and bugs are not the engine's: they are left alone."""
    with pytest.raises(type(raised)) as caught, engine_errors("x"):
        raise raised
    assert caught.value is raised


def test_unreachable_server_is_unavailable() -> None:
    """A server that is not there: StoreUnavailable within the timeout, whatever is asked."""
    config = StoreConfig(url="http://127.0.0.1:1", grpc_port=1, timeout_s=2)
    with open_store(config) as store, pytest.raises(StoreUnavailable, match="connection refused"):
        store.collections()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_api_key_reaches_the_server_and_no_message() -> None:
    """The key is passed on, and never shown by the settings."""
    config = StoreConfig(
        url="http://127.0.0.1:1", grpc_port=1, timeout_s=2, api_key=SecretStr("hush")
    )
    assert "hush" not in repr(config)
    with open_store(config) as store:
        client = store._session._backend.engine
        assert ("api-key", "hush") in client._client._grpc_headers


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("Failed to connect to remote host: Connection refused", "be reached: connection refused"),
        ("CERTIFICATE_VERIFY_FAILED: self signed", "certificate of the Qdrant server is not trust"),
        ("Hostname Verification Check failed.", "is for another name"),
        ("SSL: WRONG_VERSION_NUMBER", "does not speak TLS: write http:// in --store-url"),
        ("Handshake read failed (Socket closed)", "closed the connection when TLS began"),
        (
            "Tls handshake failed (x): SSL_ERROR: OPENSSL_internal:TLSV1_ALERT_ACCESS_DENIED: y",
            "the TLS handshake with the Qdrant server failed: TLSV1_ALERT_ACCESS_DENIED",
        ),
        ("Failed parsing HTTP/2 (Expected SETTINGS)", "--store-grpc-port is its gRPC port, 6334"),
        ("timed out before receiving SETTINGS frame", "takes the connection and does not answer"),
        ("failed to connect to all addresses; last error: Socket closed", "write https:// in"),
        ("Stream removed (ping timeout)", "failed without a word"),
        ("Stream removed (Socket closed)", "was closed during the call; it was stopped or killed"),
        ("Stream removed (recvmsg:Connection reset by peer (104))", "was reset during the call"),
        ("DNS resolution failed for x:1", "the name of the Qdrant server's host cannot be resolv"),
        ("connect: No route to host", "its host does not answer"),
        (
            "HTTP proxy returned response code 403",
            "the proxy on the way answered HTTP 403 in place",
        ),
        ("Received http2 header with status: 502", "a web server answered HTTP 502 in place of"),
        ("the shard is not active", "x: UNAVAILABLE: the shard is not active"),
    ],
)
def test_connection_that_fails_is_told_in_words_for_its_operator(said: str, says: str) -> None:
    """Each kind of trouble has its own sentence, with the option that may be wrong."""

    class Told(Status):
        def details(self) -> str:
            return said

    Told.__abstractmethods__ = frozenset()
    web = said.startswith("Received http2")  # whose code is chosen by the HTTP status
    code = grpc.StatusCode.UNIMPLEMENTED if web else grpc.StatusCode.UNAVAILABLE
    with pytest.raises(StoreUnavailable) as caught, engine_errors("x"):
        raise Told(code)
    assert says in caught.value.message
    assert caught.value.message.startswith("x: ")
