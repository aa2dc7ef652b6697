"""The one table from Shoal's errors to gRPC status codes, and the way back.

A call that fails carries ``google.rpc.ErrorInfo`` (the error's reason and metadata, domain
``shoal.dev``) and, where it is known when to come back, ``google.rpc.RetryInfo``. An item of a
batch that fails carries the same facts as an ``ItemError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shoal import errors
from shoal.rpc.unreachable import unreachable, web_answer
from shoal.v1 import common_pb2

DOMAIN: Final = "shoal.dev"

_CODES: Final[Mapping[type[errors.ShoalError], grpc.StatusCode]] = {
    errors.ShoalError: grpc.StatusCode.INTERNAL,
    errors.CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseHeld: grpc.StatusCode.ABORTED,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.OperatorError: grpc.StatusCode.INTERNAL,
    errors.StoreLocked: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TransientError: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
}
"""The code of each class; a class that is not listed has that of its nearest listed ancestor."""

_CLASSES: Final[Mapping[grpc.StatusCode, type[errors.ShoalError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
}
"""The class for each code of a status without our ErrorInfo; ShoalError for a code not listed."""

# A status travels in HTTP/2 trailers, which peers cut off at 8 KiB. The message travels twice, once
# of that percent-encoded (up to 3 bytes for 1); the rest travels once, in base64 (4 bytes for 3).
_MAX_MESSAGE_BYTES = 1024
_MAX_METADATA_BYTES = 2048

_RETRY_AFTER = "retry_after_s"

_Detail = TypeVar("_Detail", error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)


def status_code(error: errors.ShoalError) -> grpc.StatusCode:
    """The gRPC code of an error, by its class."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def to_status(error: errors.ShoalError) -> status_pb2.Status:
    """The error as ``google.rpc.Status``, cut to what fits into trailers."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    room = _MAX_METADATA_BYTES
    for key, value in _clean(error.metadata):
        room -= len(key.encode()) + len(value.encode())
        if room < 0:
            break
        info.metadata[key] = value
    details = [_pack(info)]
    if (retry_after_s := _delay_of(error)) is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(max(0.0, retry_after_s) * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    number: int = status_code(error).value[0]
    return status_pb2.Status(code=number, message=_cut(error.message), details=details)


def item_error(error: errors.ShoalError) -> common_pb2.ItemError:
    """The error of one item of a batch."""
    message = common_pb2.ItemError(
        reason=error.reason,
        message=_utf8(error.message),
        metadata=dict(_clean(error.metadata)),
        retryable=isinstance(error, errors.TransientError),
    )
    if (retry_after_s := _delay_of(error)) is not None:
        message.metadata[_RETRY_AFTER] = repr(retry_after_s)
    return message


def _delay_of(error: errors.ShoalError) -> float | None:
    """How many seconds from now the same request may succeed; None if that is not known."""
    return error.retry_after_s if isinstance(error, errors.TransientError) else None


def from_item_error(message: common_pb2.ItemError) -> errors.ShoalError:
    """The error that ``item_error`` was given, as an instance of the same class.

    A reason that this version does not know becomes TransientError or CallerError, by
    ``retryable``, and stays readable in ``metadata["reason"]``.
    """
    metadata = dict(message.metadata)
    retry_after = metadata.pop(_RETRY_AFTER, "")
    found = errors.by_reason(message.reason)
    if found is None:
        metadata["reason"] = message.reason
        found = errors.TransientError if message.retryable else errors.CallerError
    error = _rebuild(found, message.message, metadata)
    if isinstance(error, errors.TransientError) and retry_after:
        try:
            error.retry_after_s = float(retry_after)
        except ValueError:
            metadata[_RETRY_AFTER] = retry_after
    return error


def from_rpc_error(error: grpc.RpcError, address: str, *, service: str = "") -> errors.ShoalError:
    """The ShoalError behind a failed call; raise it ``from`` that call's error.

    Args:
        error: The error that a stub raised, sync or asyncio.
        address: The server's address, for the message.
        service: The word for the called service in options, such as ``clusterer``; empty where
            the server can have no other.

    Returns:
        An error of the class that a Shoal handler raised; if none did, of a class chosen by the
        status code.
    """
    try:
        code: grpc.StatusCode = error.code()
        details: str = error.details() or ""
    except AttributeError:  # grpc.RpcError itself promises neither
        return errors.ShoalError(f"a call to {address} failed: {error}", address=address)
    status = _rich_status(error)
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info is None or info.domain != DOMAIN:
        if answer := web_answer(details, address):
            return errors.ServiceUnavailable(answer, address=address)
        if code is grpc.StatusCode.UNIMPLEMENTED and service:
            return _without_service(service, address)
        return _from_code(code, details, address)
    metadata = dict(info.metadata)
    found = errors.by_reason(info.reason)
    if found is None:
        metadata["reason"] = info.reason
        found = _CLASSES.get(code, errors.ShoalError)
    rebuilt = _rebuild(found, details, metadata)
    retry = _detail(status, error_details_pb2.RetryInfo())
    if isinstance(rebuilt, errors.TransientError) and retry is not None:
        rebuilt.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return rebuilt


def _without_service(service: str, address: str) -> errors.ServiceMissing:
    """The error for a server that has other services than the one that was called."""
    name = "search service" if service == "search" else service
    return errors.ServiceMissing(
        f"the server at {address} is not the {name}, or is older than this client: expected the "
        f"{name}'s address (--{service}-address, or Addresses({service}=...))",
        address=address,
        service=service,
    )


def _from_code(code: grpc.StatusCode, details: str, address: str) -> errors.ShoalError:
    """The error for a status that gRPC itself, a proxy or another server made."""
    found = _CLASSES.get(code, errors.ShoalError)
    said = details or code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        text = unreachable(said, address)
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"the server at {address} did not answer before the deadline"
    elif code is grpc.StatusCode.CANCELLED:
        text = f"the call to {address} was cancelled"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        text = f"the server at {address} does not offer this call: {said}"
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
        found = errors.InvalidArgument
        text = f"the message is larger than client or server at {address} allows: {said}"
    else:
        text = f"the server at {address} failed: {said}"
    return found(text, address=address)


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    """The ``google.rpc.Status`` in the trailers; None when absent or damaged."""
    try:
        # A stub raises the call itself; only the types tell the two apart.
        found = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        return None
    return found if isinstance(found, status_pb2.Status) else None


def _detail(status: status_pb2.Status | None, message: _Detail) -> _Detail | None:
    """The first detail of ``message``'s type, read into ``message``."""
    try:
        found = status is not None and any(detail.Unpack(message) for detail in status.details)
    except DecodeError:
        return None
    return message if found else None


def _rebuild(
    cls: type[errors.ShoalError], message: str, metadata: dict[str, str]
) -> errors.ShoalError:
    """An instance of ``cls``. The peer chose the metadata's keys, so they cannot be arguments."""
    error = cls(message)
    error.metadata = metadata
    return error


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clean(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in metadata.items():
        yield _utf8(key), _utf8(str(value))


def _utf8(text: str) -> str:
    """``text`` without lone surrogates, which file names bring in and protobuf refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return encoded.decode("utf-8")
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."
