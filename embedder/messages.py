"""Messages to values and back: what a request may say, and how an answer is put.

The one place that checks the fields of an ``IngestRequest``, and the one that says how the error
of an item looks to its sender.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from urllib.parse import unquote

from google.protobuf import struct_pb2

from embedder.encoding.artefact import Artefact
from embedder.inference.fleet import has_text
from embedder.inference.pipeline import Vector
from embedder.ingest.items import MAX_PAYLOAD_BYTES, Item, Outcome, Remote, Status, to_item
from shoal import vectors
from shoal.errors import (
    ImageEmpty,
    ImageTooLarge,
    InvalidArgument,
    ShoalError,
)
from shoal.rpc.status import item_error
from shoal.store import RESERVED_FIELDS, Json, Payload
from shoal.store.payloads import MAX_DEPTH, clean_number, is_addressable
from shoal.v1 import common_pb2, embedder_pb2

_LOG = logging.getLogger(__name__)

MAX_KEY_CHARS = 8192
"""Twice the bytes that a path may have, since a tar and its member have one each. A character that
is percent-encoded counts once, or a path in Japanese could have a ninth."""
MAX_URI_CHARS = MAX_KEY_CHARS
MAX_SOURCE_CHARS = 200
MAX_TEXT_CHARS = 10_000
MOST_ON_WIRE = 5 * MAX_PAYLOAD_BYTES
"""A payload of more bytes on the wire is too large: 3 bytes of JSON are at most 11 bytes there, in
a list of digits. Nulls, which are left out, count as well."""
_SURELY_FITS = MAX_PAYLOAD_BYTES // 6 - 1
"""A payload of no more bytes on the wire is small enough: a byte there is at most 6 bytes of JSON,
for a control character. The 1 is for the outermost braces."""

_STATUS = {
    Status.STORED: embedder_pb2.INGEST_STATUS_STORED,
    Status.UPDATED: embedder_pb2.INGEST_STATUS_UPDATED,
    Status.UNCHANGED: embedder_pb2.INGEST_STATUS_UNCHANGED,
}


def image_source(image: common_pb2.Image, *, max_bytes: int) -> bytes | str:
    """The encoded image in a message, or the URI where it lies.

    Raises:
        ImageEmpty, ImageTooLarge: there are no bytes, or more than ``max_bytes``.
        InvalidArgument: there is no image, or its URI is empty or too long.
    """
    match image.WhichOneof("source"):
        case "data":
            size = len(image.data)
            if size == 0:
                msg = "image: expected an encoded image, got no bytes"
                raise ImageEmpty(msg)
            if size > max_bytes:
                msg = f"image: expected at most {max_bytes} bytes, got {size}"
                raise ImageTooLarge(msg, max_bytes=str(max_bytes), bytes=str(size))
            return image.data
        case "uri":
            length = _length(image.uri, MAX_URI_CHARS)
            if not 1 <= length <= MAX_URI_CHARS:
                msg = f"image.uri: expected 1 to {MAX_URI_CHARS} characters, got {length}"
                raise InvalidArgument(msg, field="image.uri")
            return image.uri
        case _:
            msg = "image: expected the bytes in image.data or image.uri, got no image"
            raise InvalidArgument(msg, field="image")


def _length(text: str, limit: int) -> int:
    """The characters of ``text``; if they are more than ``limit``, those that are encoded once."""
    return len(text) if len(text) <= limit else len(unquote(text))


async def to_ingest(request: embedder_pb2.IngestRequest, *, max_bytes: int) -> Item | Remote:
    """The image that a request brings, or the place where it is to be read.

    Raises:
        InvalidArgument: a field is missing, too long, or not what it must be.
    """
    for name, text, limit in (
        ("key", request.key, MAX_KEY_CHARS),
        ("uri", request.uri, MAX_URI_CHARS),
        ("source", request.source, MAX_SOURCE_CHARS),
    ):
        length = _length(text, limit)
        if length > limit:
            msg = f"{name}: expected at most {limit} characters, got {length}"
            raise InvalidArgument(msg, field=name)
    image = image_source(request.image, max_bytes=max_bytes)
    fields = to_payload(request.payload)
    uri = request.uri or (image if isinstance(image, str) else "")
    if uri:
        fields["uri"] = uri
    if request.source:
        fields["source"] = request.source
    merge = _nulls(request.payload) if request.merge_fields else None
    if isinstance(image, str):
        return Remote(request.key, image, fields, request.sequence, merge)
    return await to_item(request.key, image, fields, sequence=request.sequence, merge=merge)


def _nulls(message: struct_pb2.Struct) -> frozenset[str]:
    """The names of the fields that are null."""
    return frozenset(
        name
        for name, value in message.fields.items()
        if value.WhichOneof("kind") in {None, "null_value"}
    )


def to_payload(message: struct_pb2.Struct) -> Payload:
    """The sender's own fields as the store keeps them; whole numbers become integers.

    Top-level nulls are left out: to every filter a null is as good as no field, and a merge removes
    it.

    Raises:
        InvalidArgument: a name is reserved or could not be addressed in the store, the store does
            not take a value, or the whole is too large.
    """
    on_wire = message.ByteSize()
    if on_wire > MOST_ON_WIRE:  # before anything walks through it
        most = f"at most {MAX_PAYLOAD_BYTES} bytes as JSON"
        msg = f"payload: expected {most}, got {on_wire} on the wire"
        raise InvalidArgument(msg, field="payload")
    taken = RESERVED_FIELDS.intersection(message.fields)
    if taken:
        names = ", ".join(sorted(RESERVED_FIELDS))
        msg = f"payload: the names {names} are reserved, got {', '.join(sorted(taken))}"
        raise InvalidArgument(msg, field="payload")
    for name in message.fields:
        if not is_addressable(name):
            msg = f'payload: expected names that are not empty and without . and ", got {name!r}'
            raise InvalidArgument(msg, field="payload")
    room = _Room(MAX_PAYLOAD_BYTES)
    values = {name: _to_json(value, name, room, 1) for name, value in message.fields.items()}
    payload: Payload = {name: value for name, value in values.items() if value is not None}
    if on_wire > _SURELY_FITS:
        size = len(json.dumps(payload, ensure_ascii=False).encode())
        if size > MAX_PAYLOAD_BYTES:
            raise _too_long(str(size))
    return payload


@dataclass(slots=True)
class _Room:
    """The bytes of JSON that a payload may still have."""

    left: int

    def take(self, least: int) -> None:
        """Counts bytes that the JSON will have at least; refuses it when there are too many."""
        self.left -= least
        if self.left < 0:
            raise _too_long("more")


def _too_long(got: str) -> InvalidArgument:
    msg = f"payload: expected at most {MAX_PAYLOAD_BYTES} bytes as JSON, got {got}"
    return InvalidArgument(msg, field="payload")


def _to_json(value: struct_pb2.Value, name: str, room: _Room, depth: int) -> Json:
    """The JSON value of the field ``name``, ``depth`` levels down, in the store's form.

    Lists and objects leave ``room`` before they are walked through: by ", " alone for each value,
    and by the quotes and ": " for each name.

    The store cleans payloads of any origin, which changes nothing more in this one.
    """
    kind = value.WhichOneof("kind")
    if kind in {"struct_value", "list_value"} and depth >= MAX_DEPTH:
        raise InvalidArgument(f"{name}: expected at most {MAX_DEPTH} levels", field=name)
    match kind:
        case "number_value":
            return clean_number(value.number_value, name)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            fields = value.struct_value.fields
            if "" in fields:
                raise InvalidArgument(f"{name}: expected non-empty names, got ''", field=name)
            room.take(6 * len(fields))
            return {key: _to_json(part, key, room, depth + 1) for key, part in fields.items()}
        case "list_value":
            room.take(2 * len(value.list_value.values))
            return [_to_json(part, name, room, depth + 1) for part in value.list_value.values]
        case _:
            return None


def check_text(text: str) -> None:
    """InvalidArgument unless ``text`` may be embedded: 1 to MAX_TEXT_CHARS characters."""
    if not 1 <= len(text) <= MAX_TEXT_CHARS:
        msg = f"text: expected 1 to {MAX_TEXT_CHARS} characters, got {len(text)}"
        raise InvalidArgument(msg, field="texts")


def encoder_info(artefact: Artefact, *, provider: str, loaded: bool) -> embedder_pb2.EncoderInfo:
    """The message about one encoder of a server."""
    return embedder_pb2.EncoderInfo(
        name=artefact.name,
        dim=artefact.dim,
        fingerprint=artefact.fingerprint,
        provider=provider,
        has_text=has_text(artefact),
        license=artefact.license,
        source=artefact.source,
        loaded=loaded,
        parts=[part.name for part in artefact.parts] if len(artefact.parts) > 1 else [],
    )


def embed_result(answer: Vector | ShoalError, *, fingerprint: str) -> embedder_pb2.EmbedResult:
    """The answer to one image or text: its vector, or why there is none."""
    if isinstance(answer, ShoalError):
        return embedder_pb2.EmbedResult(error=item_error(answer))
    vector = common_pb2.Vector(
        values=vectors.encode(answer), dim=len(answer), fingerprint=fingerprint
    )
    return embedder_pb2.EmbedResult(vector=vector)


def ingest_response(
    sequence: int, key: str, answer: Outcome | ShoalError
) -> embedder_pb2.IngestResponse:
    """The answer to one request; ``key`` is the answer's key where there is no outcome."""
    response = embedder_pb2.IngestResponse(sequence=sequence, key=key)
    if isinstance(answer, ShoalError):
        response.error.CopyFrom(item_error(answer))
    else:
        response.key = answer.key
        response.result.id = answer.id
        response.result.status = _STATUS[answer.status]
    return response


def item_failure(exc: Exception, *, log: str = "the server's log") -> ShoalError:
    """``exc`` as its item's answer. The details of a bug go to the log, which is called ``log``.

    Without causes and traceback: their frames hold the image, its pixels and the answer itself,
    in a circle that only the garbage collector would break.
    """
    if isinstance(exc, ShoalError):
        exc.__cause__ = exc.__context__ = None
        return exc.with_traceback(None)
    _LOG.error("an item failed", exc_info=exc)
    return ShoalError(f"internal error; {log} has it")
