"""Errors to status codes and back, without a server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from shoal import errors
from shoal.rpc.status import (
    DOMAIN,
    from_item_error,
    from_rpc_error,
    item_error,
    status_code,
    to_status,
)
from shoal.v1 import common_pb2

CODE = grpc.StatusCode

# Written out by hand, class by class: this is what clients in other languages rely on.
EXPECTED = {
    "ShoalError": CODE.INTERNAL,
    "CallerError": CODE.INVALID_ARGUMENT,
    "InvalidArgument": CODE.INVALID_ARGUMENT,
    "ImageInvalid": CODE.INVALID_ARGUMENT,
    "ImageEmpty": CODE.INVALID_ARGUMENT,
    "ImageTooLarge": CODE.INVALID_ARGUMENT,
    "ImageTooManyPixels": CODE.INVALID_ARGUMENT,
    "ImageUnsupportedFormat": CODE.INVALID_ARGUMENT,
    "ImageCorrupt": CODE.INVALID_ARGUMENT,
    "NotFound": CODE.NOT_FOUND,
    "Conflict": CODE.FAILED_PRECONDITION,
    "EncoderMismatch": CODE.FAILED_PRECONDITION,
    "LeaseHeld": CODE.ABORTED,
    "LeaseLost": CODE.ABORTED,
    "NotEnoughPoints": CODE.FAILED_PRECONDITION,
    "NothingToRollBack": CODE.FAILED_PRECONDITION,
    "Unauthenticated": CODE.UNAUTHENTICATED,
    "Unsupported": CODE.UNIMPLEMENTED,
    "OperatorError": CODE.INTERNAL,
    "ConfigError": CODE.INTERNAL,
    "ArtefactError": CODE.INTERNAL,
    "SelfTestFailed": CODE.INTERNAL,
    "Unrecoverable": CODE.INTERNAL,
    "ExportRefused": CODE.INTERNAL,
    "StoreLocked": CODE.FAILED_PRECONDITION,
    "FitFailed": CODE.INTERNAL,
    "TransientError": CODE.UNAVAILABLE,
    "Overloaded": CODE.RESOURCE_EXHAUSTED,
    "StoreUnavailable": CODE.UNAVAILABLE,
    "ServiceUnavailable": CODE.UNAVAILABLE,
    "LocationUnavailable": CODE.UNAVAILABLE,
    "DeadlineExceeded": CODE.DEADLINE_EXCEEDED,
    "Cancelled": CODE.CANCELLED,
}


def tree(root: type[errors.ShoalError] = errors.ShoalError) -> Iterator[type[errors.ShoalError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


CLASSES = list(tree())


class Failed(grpc.RpcError):
    """What a stub raises, made by hand."""

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None,
        trailers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        super().__init__()
        self._answer = (code, details, trailers)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str | None:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._answer[2]


def carrying(status: status_pb2.Status) -> Failed:
    code = next(each for each in CODE if each.value[0] == status.code)
    return Failed(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


def test_status_table_is_as_documented() -> None:
    """Every class of the tree, and no other, has the code that is written out above."""
    assert {cls.__name__: status_code(cls("x")) for cls in CLASSES} == EXPECTED


@pytest.mark.parametrize("cls", CLASSES)
def test_status_round_trip_keeps_class_message_and_metadata(cls: type[errors.ShoalError]) -> None:
    """What a handler raised is what the caller gets; classes that share a reason meet in one."""
    error = cls("the message: ü", collection="photos")
    back = from_rpc_error(carrying(to_status(error)), "h:1")
    assert back.reason == error.reason
    assert type(back) is (errors.ShoalError if error.reason == "INTERNAL" else cls)
    assert back.message == "the message: ü"
    assert back.metadata == {"collection": "photos"}


@pytest.mark.parametrize("cls", CLASSES)
def test_item_error_round_trip_keeps_class_message_and_metadata(
    cls: type[errors.ShoalError],
) -> None:
    """The same for one item of a batch; only transient errors are retryable."""
    error = cls("the message", collection="photos")
    message = item_error(error)
    back = from_item_error(message)
    assert message.retryable is issubclass(cls, errors.TransientError)
    assert type(back) is (errors.ShoalError if error.reason == "INTERNAL" else cls)
    assert (back.message, back.metadata) == ("the message", {"collection": "photos"})


def test_status_overloaded_carries_its_retry_delay() -> None:
    """RetryInfo says when to come back, on the wire and in the error that is made of it."""
    status = to_status(errors.Overloaded("full", retry_after_s=2.25))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 2_250_000_000
    back = from_rpc_error(carrying(status), "h:1")
    assert isinstance(back, errors.Overloaded)
    assert back.retry_after_s == 2.25
    item = from_item_error(item_error(errors.Overloaded("full", retry_after_s=0.5)))
    assert isinstance(item, errors.Overloaded)
    assert (item.retry_after_s, item.metadata) == (0.5, {})


@given(
    message=st.text(st.characters(), max_size=5000),
    metadata=st.dictionaries(st.text(min_size=1, max_size=30), st.text(max_size=3000), max_size=5),
)
def test_status_always_fits_into_trailers(message: str, metadata: dict[str, str]) -> None:
    """Whatever the message says, lone surrogates included, the trailers stay below 8 KiB."""
    error = errors.InvalidArgument(message)
    error.metadata = metadata
    status = to_status(error)
    assert len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 / 3 < 8000
    assert from_rpc_error(carrying(status), "h:1").message == status.message


def test_status_reason_from_a_newer_server_falls_back_to_the_code() -> None:
    """An unknown reason becomes the code's class and stays readable."""
    info = error_details_pb2.ErrorInfo(reason="TOO_BLUE", domain=DOMAIN, metadata={"message": "m"})
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=CODE.NOT_FOUND.value[0], message="too blue", details=[detail])
    back = from_rpc_error(carrying(status), "h:1")
    assert type(back) is errors.NotFound
    assert back.metadata == {"message": "m", "reason": "TOO_BLUE"}
    item = from_item_error(common_pb2.ItemError(reason="TOO_BLUE", message="m", retryable=True))
    assert type(item) is errors.TransientError
    assert item.metadata == {"reason": "TOO_BLUE"}


@pytest.mark.parametrize(
    ("code", "details", "cls", "says"),
    [
        (CODE.UNAVAILABLE, "x: Connection refused (111)", errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: connection refused; start one with `shoal up`"),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded, "deadline"),
        (CODE.UNIMPLEMENTED, "Method not found!", errors.Unsupported, "Method not found!"),
        (CODE.CANCELLED, "Locally cancelled", errors.Cancelled, "cancelled"),
        (CODE.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)",
         errors.InvalidArgument, "9 vs. 4"),
        (CODE.RESOURCE_EXHAUSTED, "quota", errors.Overloaded, "quota"),
        (CODE.PERMISSION_DENIED, None, errors.Unauthenticated, "PERMISSION_DENIED"),
        (CODE.UNKNOWN, "boom", errors.ShoalError, "boom"),
        (CODE.DATA_LOSS, "", errors.ShoalError, "DATA_LOSS"),
    ],
)  # fmt: skip
def test_status_without_our_details_is_chosen_by_code(
    code: grpc.StatusCode, details: str | None, cls: type[errors.ShoalError], says: str
) -> None:
    """What gRPC, a proxy or a stranger answered becomes the nearest class and names the server."""
    back = from_rpc_error(Failed(code, details), "h:1")
    assert type(back) is cls
    assert says in back.message
    assert back.metadata == {"address": "h:1"}


@pytest.mark.parametrize("trailer", [b"\xff\xff\xff", b""])
def test_status_damaged_details_do_not_hide_the_code(trailer: bytes) -> None:
    """Details that cannot be read count as none."""
    back = from_rpc_error(
        Failed(CODE.NOT_FOUND, "gone", (("grpc-status-details-bin", trailer),)), "h:1"
    )
    assert type(back) is errors.NotFound


def test_status_error_that_is_no_call_is_still_reported() -> None:
    """A bare RpcError, which promises neither code nor details, becomes a ShoalError."""
    assert type(from_rpc_error(grpc.RpcError("odd"), "h:1")) is errors.ShoalError
