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
    "TooManyCollections": CODE.FAILED_PRECONDITION,
    "Unauthenticated": CODE.UNAUTHENTICATED,
    "Unsupported": CODE.UNIMPLEMENTED,
    "ServiceMissing": CODE.UNIMPLEMENTED,
    "OperatorError": CODE.INTERNAL,
    "ConfigError": CODE.INTERNAL,
    "ArtefactError": CODE.INTERNAL,
    "SelfTestFailed": CODE.INTERNAL,
    "Unrecoverable": CODE.INTERNAL,
    "ExportRefused": CODE.INTERNAL,
    "StoreLocked": CODE.FAILED_PRECONDITION,
    "DiskFull": CODE.RESOURCE_EXHAUSTED,
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
    final = from_item_error(common_pb2.ItemError(reason="TOO_BLUE", message="m", retryable=False))
    assert type(final) is errors.CallerError


def test_status_of_another_domain_falls_back_to_the_code() -> None:
    """A stranger may use our words for something else."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="CONFLICT", domain="stranger.example"))
    status = status_pb2.Status(code=CODE.NOT_FOUND.value[0], message="gone", details=[detail])
    back = from_rpc_error(carrying(status), "h:1")
    assert type(back) is errors.NotFound
    assert back.message == "the server at h:1 failed: gone"


def test_status_details_are_found_among_others() -> None:
    """In any order, and beside details of kinds that we do not know."""
    status = to_status(errors.Overloaded("full", retry_after_s=2.25, queue="q"))
    unknown = any_pb2.Any(type_url="type.googleapis.com/unknown.Kind", value=b"x")
    details = [unknown, *reversed(status.details)]
    shuffled = status_pb2.Status(code=status.code, message=status.message, details=details)
    back = from_rpc_error(carrying(shuffled), "h:1")
    assert isinstance(back, errors.Overloaded)
    assert (back.retry_after_s, back.metadata) == (2.25, {"queue": "q"})


@pytest.mark.parametrize("delay", [0.0, -1.0])
def test_status_retry_delay_is_never_negative(delay: float) -> None:
    """At once is the soonest."""
    back = from_rpc_error(carrying(to_status(errors.Overloaded("x", retry_after_s=delay))), "h:1")
    assert isinstance(back, errors.Overloaded)
    assert back.retry_after_s == 0


def test_status_of_an_overload_and_a_store_that_is_away_say_when_to_come_back() -> None:
    """A class without a delay carries none, on the wire and in an item."""
    for cls in (errors.Overloaded, errors.StoreUnavailable):
        back = from_rpc_error(carrying(to_status(cls("x"))), "h:1")
        assert isinstance(back, cls)
        assert (back.retry_after_s, from_item_error(item_error(back)).metadata) == (1.0, {})
        assert item_error(back).metadata == {"retry_after_s": "1.0"}
    for cls in set(CLASSES) - {errors.Overloaded, errors.StoreUnavailable}:
        assert len(to_status(cls("x")).details) == 1
        assert not item_error(cls("x")).metadata


def test_item_error_with_a_delay_that_is_no_number_keeps_it_as_metadata() -> None:
    """What a peer wrote there is never lost, and never raises."""
    told = common_pb2.ItemError(
        reason="OVERLOADED", message="m", metadata={"retry_after_s": "soon"}
    )
    item = from_item_error(told)
    assert isinstance(item, errors.Overloaded)
    assert (item.retry_after_s, item.metadata) == (1.0, {"retry_after_s": "soon"})
    other = common_pb2.ItemError(reason="NOT_FOUND", message="m", metadata={"retry_after_s": "2"})
    assert from_item_error(other).metadata == {}


@pytest.mark.parametrize(("size", "cut"), [(1024, False), (1025, True)])
def test_status_message_is_cut_at_a_character(size: int, *, cut: bool) -> None:
    """A message of 1024 bytes stays; a longer one ends in dots, and in no half character."""
    message = to_status(errors.NotFound("a" * (size % 2) + "ü" * (size // 2))).message
    assert message.endswith("...") is cut
    assert len(message.encode()) in range(1020, 1025)
    assert "\ufffd" not in message


def test_status_metadata_is_cut_at_a_fact() -> None:
    """Facts that fit, in their order, up to 2048 bytes of names and values; then none."""
    fits = {"a": "x" * 1023, "b": "x" * 1023}
    assert set(from_rpc_error(carrying(to_status(errors.NotFound("m", **fits))), "h").metadata) == {
        "a",
        "b",
    }
    over = {"a": "x" * 1023, "b": "x" * 1024, "c": "x"}
    found = from_rpc_error(carrying(to_status(errors.NotFound("m", **over))), "h").metadata
    assert set(found) == {"a"}


@pytest.mark.parametrize(
    ("code", "details", "cls", "says"),
    [
        (CODE.UNAVAILABLE, "x: Connection refused (111)", errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: connection refused; start one with `shoal up`"),
        (CODE.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED: self signed", errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: its certificate is not trusted; name its authority"),
        (CODE.UNAVAILABLE, "SSL: WRONG_VERSION_NUMBER", errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: it does not speak TLS; leave --tls out"),
        (CODE.UNAVAILABLE, "Socket closed", errors.ServiceUnavailable,
         "lost the Shoal server at h:1: the connection was closed during the call"),
        (CODE.UNAVAILABLE, "words that nobody knows", errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: words that nobody knows"),
        (CODE.UNIMPLEMENTED, "Received http2 header with status: 404", errors.ServiceUnavailable,
         "a web server or proxy answers at h:1, with HTTP 404: expected a Shoal server"),
        (CODE.UNAVAILABLE, None, errors.ServiceUnavailable,
         "cannot reach a Shoal server at h:1: UNAVAILABLE"),
        (CODE.OUT_OF_RANGE, "past the end", errors.InvalidArgument, "past the end"),
        (CODE.ALREADY_EXISTS, "x", errors.Conflict, "the server at h:1 failed: x"),
        (CODE.ABORTED, "x", errors.Conflict, "x"),
        (CODE.FAILED_PRECONDITION, "x", errors.Conflict, "x"),
        (CODE.UNAUTHENTICATED, "x", errors.Unauthenticated, "x"),
        (CODE.INVALID_ARGUMENT, "x", errors.InvalidArgument, "x"),
        (CODE.NOT_FOUND, "x", errors.NotFound, "x"),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded,
         "the server at h:1 did not answer before the deadline"),
        (CODE.UNIMPLEMENTED, "Method not found!", errors.Unsupported,
         "the server at h:1 does not offer this call: Method not found!"),
        (CODE.CANCELLED, "Locally cancelled", errors.Cancelled, "the call to h:1 was cancelled"),
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
