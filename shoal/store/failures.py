"""Engines' errors as Shoal's: the one module that knows the errors of engines.

Those share no base class. A client of a server raises ``ApiException`` (REST), ``QdrantException``
or ``grpc.RpcError``. The in-memory engine raises ValueError and KeyError. The embedded engine
raises bare Exception, or pyo3's PanicException, which is not even an Exception.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
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
from shoal.troubles import Trouble, http_status_in, tls_reason_in, trouble_of

_BY_CODE: dict[grpc.StatusCode, type[ShoalError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: ConfigError,
    grpc.StatusCode.PERMISSION_DENIED: ConfigError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}
_BY_HTTP: dict[int, type[ShoalError]] = {
    400: InvalidArgument,
    401: ConfigError,
    403: ConfigError,
    404: NotFound,
    409: Conflict,
    422: InvalidArgument,
    429: Overloaded,
}
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""The system's errors that mean DiskFull: a full disk or quota, a read-only file system."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The embedded engine's way to tell an error of the system."""

_TROUBLES: dict[Trouble, str] = {
    Trouble.REFUSED: "the Qdrant server cannot be reached: connection refused",
    Trouble.UNTRUSTED: "the certificate of the Qdrant server is not trusted",
    Trouble.OTHER_NAME: "the certificate of the Qdrant server is for another name",
    Trouble.NO_TLS: "the Qdrant server does not speak TLS: write http:// in --store-url",
    Trouble.TLS_CLOSED: (
        "the Qdrant server closed the connection when TLS began; if it does not speak TLS, write "
        "http:// in --store-url"
    ),
    Trouble.NO_GRPC: (
        "what answers in place of the Qdrant server does not speak gRPC; --store-grpc-port is "
        "its gRPC port, 6334, where 6333 is for REST"
    ),
    Trouble.SILENT: "the Qdrant server takes the connection and does not answer",
    Trouble.HUNG_UP: (
        "the Qdrant server closed the connection before a first answer; if it speaks TLS, write "
        "https:// in --store-url"
    ),
    Trouble.VANISHED: "the Qdrant server, or the network to it, failed without a word",
    Trouble.CLOSED: (
        "the connection to the Qdrant server was closed during the call; it was stopped or killed"
    ),
    Trouble.RESET: (
        "the connection to the Qdrant server was reset during the call; it was killed or crashed"
    ),
    Trouble.NO_NAME: "the name of the Qdrant server's host cannot be resolved",
    Trouble.NO_WAY: "the Qdrant server cannot be reached: its host does not answer",
}
_CALLER_MISTAKES = ("not existing vector name", "vector dimension error", "wrong input")


@contextmanager
def engine_errors(subject: str) -> Iterator[None]:
    """Turns an engine's error in the block, a call about ``subject``, into a ShoalError.

    Errors of ours pass through, and so does any error that is not an engine's (KeyboardInterrupt, a
    bug).

    Raises:
        NotFound, InvalidArgument, Conflict, Overloaded: the engine says so.
        ConfigError: the server refuses the API key.
        DiskFull: the embedded engine's disk is full.
        StoreUnavailable: the engine cannot be reached, or failed.
    """
    try:
        yield
    except ShoalError:
        raise
    except Exception as exc:
        if _means_no_room(exc):
            raise DiskFull(f"{subject}: the disk is full: {_one_line(exc)}") from exc
        translated = _translate(exc, subject)
        if translated is None:
            raise
        raise translated from exc
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        raise StoreUnavailable(f"{subject}: the engine failed: {_one_line(exc)}") from exc


def _translate(error: Exception, subject: str) -> ShoalError | None:
    """``error`` as one of ours; None if it is no engine's."""
    match error:
        case UnexpectedResponse():
            kind = _BY_HTTP.get(error.status_code or 0, StoreUnavailable)
            return kind(f"{subject}: {_one_line(error)}")
        case ResourceExhaustedResponse():
            message = f"{subject}: the vector store is overloaded: {_one_line(error)}"
            return Overloaded(message, retry_after_s=float(error.retry_after_s))
        case ApiException() | QdrantException() | OSError():
            cause = error.source if isinstance(error, ResponseHandlingException) else error
            return StoreUnavailable(f"{subject}: {_one_line(cause)}")
        case grpc.RpcError():
            return _from_rpc(error, subject)
        case ValueError() | KeyError() | RuntimeError():
            return _from_memory(error, subject)
        case _:
            return _from_edge(error, subject) if type(error) is Exception else None


def _means_no_room(error: Exception) -> bool:
    """Whether an error of the system, or of the embedded engine, means a full disk."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    number = _OS_ERROR.search(str(error)) if type(error) is Exception else None
    return number is not None and int(number[1]) in NO_ROOM


def _from_rpc(error: grpc.RpcError, subject: str) -> ShoalError:
    """A server's gRPC status as one of ours. The errors of calls are also ``grpc.Call``."""
    if not isinstance(error, grpc.Call):
        return StoreUnavailable(f"{subject}: {_one_line(error)}")
    code, said = error.code(), error.details() or ""
    kind = _BY_CODE.get(code, StoreUnavailable)
    trouble = trouble_of(said)
    if trouble is Trouble.WEB or code is grpc.StatusCode.UNAVAILABLE:
        return StoreUnavailable(f"{subject}: {_connection(trouble, said)}")
    return kind(f"{subject}: {code.name}: {said}")


def _connection(trouble: Trouble | None, said: str) -> str:
    """What is wrong with the connection to the Qdrant server, in words for its operator."""
    if trouble in (Trouble.PROXY, Trouble.WEB):
        who = "the proxy on the way" if trouble is Trouble.PROXY else "a web server"
        return (
            f"{who} answered HTTP {http_status_in(said)} in place of the Qdrant server; "
            "--store-url and --store-grpc-port say where that is"
        )
    if trouble is Trouble.TLS_FAILED:
        said = f"the TLS handshake with the Qdrant server failed: {tls_reason_in(said)}"
    unknown = f"UNAVAILABLE: {said}"
    return unknown if trouble is None else _TROUBLES.get(trouble, unknown)


def _from_memory(error: Exception, subject: str) -> ShoalError:
    text = _one_line(error)
    if isinstance(error, KeyError) or ("Collection" in text and "not found" in text):
        return NotFound(f"{subject}: {text}")
    if "closed" in text:
        return StoreUnavailable(f"{subject}: {text}")
    if isinstance(error, RuntimeError):
        return StoreUnavailable(f"{subject}: {text}")
    return InvalidArgument(f"{subject}: {text}")


def _from_edge(error: Exception, subject: str) -> ShoalError:
    text = _one_line(error)
    if text.lower().startswith(_CALLER_MISTAKES):
        return InvalidArgument(f"{subject}: {text}")
    return StoreUnavailable(f"{subject}: the embedded engine failed: {text}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
