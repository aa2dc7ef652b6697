"""Items of an ingestion as messages, and answers as outcomes. Pure.

An item that cannot be sent fails alone.
"""

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
"""How deep objects and lists may nest: protobuf parses 100 messages deep, an object is 3."""

_FRAMING_BYTES = 64
"""An upper bound of the bytes that the tags and lengths around an image take."""

_MAX_SHOWN_CHARS = 200


def to_struct(payload: Mapping[str, Json]) -> struct_pb2.Struct:
    """``payload`` as a Struct, whose numbers are float64.

    Raises:
        InvalidArgument: a value is not JSON, a whole number would change as a float64, or objects
            nest too deep.
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
    """Checks the depth of ``payload``, and that each number arrives as it is.

    It goes level by level, so that no depth can exhaust the stack.

    Raises:
        InvalidArgument: it is deeper than MAX_PAYLOAD_DEPTH, or a float64 would change a number.
    """
    level: list[object] = [payload]
    for _ in range(MAX_PAYLOAD_DEPTH):
        inner: dict[int, object] = {}  # by identity: each object is visited once in a level
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
    """Where items go: a collection, the encoders that fill it, and the largest message in bytes."""

    collection: str
    encoders: tuple[str, ...]
    max_bytes: int


def to_ingest_request(
    item: IngestItem, target: IngestTarget, *, sequence: int
) -> embedder_pb2.IngestRequest:
    """``item`` as a message with the number ``sequence``.

    Raises:
        InvalidArgument: it cannot be sent, or its message is larger than ``target.max_bytes``
            (ImageTooLarge, if that is because of the image).
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
            merge_fields=item.merge_fields,
        )
        if item.data is None:
            request.image.uri = item.uri
    except (ValueError, TypeError) as exc:  # a file name that is not UTF-8
        raise _unsendable(item, exc) from exc
    if item.payload:
        request.payload.CopyFrom(to_struct(item.payload))
    # Before the image is in the message: ByteSize serializes everything to count it.
    rest = request.ByteSize()
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
    """Refuses a message that is larger than the channel takes: it would end the whole stream."""
    size = image + rest + _FRAMING_BYTES
    if size <= max_bytes:
        return
    msg = f"expected at most {max_bytes:,} bytes as a message, got {size:,}; not sent"
    raise ImageTooLarge(msg) if image > rest else InvalidArgument(msg)


def from_ingest_response(message: embedder_pb2.IngestResponse, *, name: str) -> IngestOutcome:
    """The outcome of the item called ``name``; FAILED unless the server says that it is stored."""
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
    """``item`` as a message; its outcome instead, if it has one already or cannot be sent."""
    if isinstance(item, IngestOutcome):
        return item
    try:
        return to_ingest_request(item, target, sequence=sequence)
    except InvalidArgument as exc:
        failure = ItemFailure(exc.reason, exc.message, exc.metadata)
        return IngestOutcome(name_of(item), IngestStatus.FAILED, item.key, failure=failure)


def name_of(item: IngestItem | IngestOutcome) -> str:
    """The name of ``item`` in reports: its name, or else its place, or else its key."""
    if isinstance(item, IngestOutcome):
        return item.name
    return item.name or item.uri or item.key
