"""Between the items of an ingestion and their messages: what cannot be sent fails alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.client.messages import from_item_error
from shoal.client.values import IngestItem, IngestOutcome, IngestStatus, ItemFailure
from shoal.errors import ImageTooLarge, InvalidArgument, ShoalError
from shoal.v1 import embedder_pb2
from shoal.values import Json

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

_STATUS = {
    embedder_pb2.INGEST_STATUS_STORED: IngestStatus.STORED,
    embedder_pb2.INGEST_STATUS_UPDATED: IngestStatus.UPDATED,
    embedder_pb2.INGEST_STATUS_UNCHANGED: IngestStatus.UNCHANGED,
}

MAX_PAYLOAD_DEPTH = 32
"""Objects and lists inside each other: protobuf parses 100 messages deep, and an object is 3."""

_FRAMING_BYTES = 64
"""More than the tags and lengths around an image take."""

_MAX_SHOWN_CHARS = 200


def to_struct(payload: Mapping[str, Json]) -> struct_pb2.Struct:
    """``payload`` as a Struct, whose numbers are float64.

    Raises:
        InvalidArgument: it holds what JSON cannot or a whole number that a float64 would change, or
            nests too deep.
    """
    request = embedder_pb2.IngestRequest()
    try:
        fields = dict(payload)
        _check(fields)
        request.payload.update(fields)
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        why = str(exc)[:_MAX_SHOWN_CHARS] or type(exc).__name__
        msg = f"payload: expected an object of JSON values: {why}"
        raise InvalidArgument(msg, field="payload") from exc
    return request.payload


def _check(payload: Mapping[str, Json]) -> None:
    """InvalidArgument past MAX_PAYLOAD_DEPTH, and for a number that would arrive as another.

    Level by level, so that no depth costs a stack.
    """
    level: list[object] = [payload]
    for _ in range(MAX_PAYLOAD_DEPTH):
        inner: dict[int, object] = {}  # by identity: an object that holds itself twice is one
        for each in level:
            values = each.values() if isinstance(each, Mapping) else each
            for value in values:  # type: ignore[attr-defined]  # a Mapping, list or tuple
                if isinstance(value, (Mapping, list, tuple)):
                    inner[id(value)] = value
                elif type(value) is int and float(value) != value:
                    msg = (
                        "payload: expected whole numbers that a float64 holds (all up to 2**53), "
                        f"got {value}: send it as a text"
                    )
                    raise InvalidArgument(msg, field="payload")
        level = list(inner.values())
        if not level:
            return
    msg = f"payload: expected at most {MAX_PAYLOAD_DEPTH} levels of objects and lists, got more"
    raise InvalidArgument(msg, field="payload")


@dataclass(frozen=True, slots=True)
class IngestTarget:
    """Where items go: a collection, the encoders that fill it, and a message's most bytes."""

    collection: str
    encoders: tuple[str, ...]
    max_bytes: int


def to_ingest_request(
    item: IngestItem, target: IngestTarget, *, sequence: int
) -> embedder_pb2.IngestRequest:
    """``item`` as sent under the number ``sequence``.

    Raises:
        InvalidArgument: it cannot be sent, or takes more than ``target.max_bytes`` as a message
            (ImageTooLarge, where that is the image).
    """
    max_bytes = target.max_bytes
    try:
        request = embedder_pb2.IngestRequest(
            sequence=sequence,
            collection=target.collection,
            encoders=target.encoders,
            key=item.key,
            uri=item.uri,
            source=item.source,
        )
        if item.data is None:
            request.image.uri = item.uri
    except (ValueError, TypeError) as exc:  # a file name that is not UTF-8
        raise _unsendable(item, exc) from exc
    if item.payload:
        request.payload.CopyFrom(to_struct(item.payload))
    rest = request.ByteSize()  # before the image is in: it serializes everything to count it
    try:
        _check_size(image=len(item.data or b""), rest=rest, max_bytes=max_bytes)
        if item.data is not None:
            request.image.data = item.data
    except (ValueError, TypeError) as exc:  # a str
        raise _unsendable(item, exc) from exc
    return request


def _unsendable(item: IngestItem, error: Exception) -> InvalidArgument:
    return InvalidArgument(f"item {item.name or item.key!r}: it cannot be sent: {error}")


def _check_size(*, image: int, rest: int, max_bytes: int) -> None:
    """A larger message than the channel takes would end the stream for all items."""
    size = image + rest + _FRAMING_BYTES
    if size <= max_bytes:
        return
    msg = f"expected at most {max_bytes:,} bytes as a message, got {size:,}; not sent"
    raise ImageTooLarge(msg) if image > rest else InvalidArgument(msg)


def from_ingest_response(message: embedder_pb2.IngestResponse, *, name: str) -> IngestOutcome:
    """What became of the item called ``name``; FAILED unless the server says that it is stored."""
    if message.WhichOneof("outcome") == "error":
        failure = from_item_error(message.error)
        return IngestOutcome(name, IngestStatus.FAILED, message.key, failure=failure)
    status = _STATUS.get(message.result.status)
    if status is None:
        why = f"the answer says neither stored nor why not (status {message.result.status})"
        failure = ItemFailure(ShoalError.reason, why)
        return IngestOutcome(name, IngestStatus.FAILED, message.key, failure=failure)
    return IngestOutcome(name, status, message.key, message.result.id)


def prepared(
    item: IngestItem | IngestOutcome, target: IngestTarget, *, sequence: int
) -> embedder_pb2.IngestRequest | IngestOutcome:
    """``item`` as sent; or its outcome, if it has one already or cannot be sent."""
    if isinstance(item, IngestOutcome):
        return item
    try:
        return to_ingest_request(item, target, sequence=sequence)
    except InvalidArgument as exc:
        failure = ItemFailure(exc.reason, exc.message, exc.metadata)
        return IngestOutcome(name_of(item), IngestStatus.FAILED, item.key, failure=failure)


def name_of(item: IngestItem | IngestOutcome) -> str:
    """What reports call ``item``: its name, or its place, or its key."""
    if isinstance(item, IngestOutcome):
        return item.name
    return item.name or item.uri or item.key
