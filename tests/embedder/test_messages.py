"""Messages to values and back: what a request may say, and what an answer tells."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fuzzing import fuzz
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from embedder import messages
from embedder.ingest.items import Item, Outcome, Remote, Status, content_hash
from shoal.errors import (
    ImageCorrupt,
    ImageEmpty,
    ImageTooLarge,
    InvalidArgument,
    ShoalError,
)
from shoal.rpc.bounds import bounds_of
from shoal.store import Json
from shoal.store.payloads import MAX_DEPTH, clean_payload
from shoal.v1 import common_pb2, embedder_pb2

LIMIT = 64 * 2**10


def struct(**fields: Any) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(fields)
    return message


def refusal(request: embedder_pb2.IngestRequest, *, max_bytes: int = 100) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        asyncio.run(messages.to_ingest(request, max_bytes=max_bytes))
    return caught.value


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: name and "." not in name and '"' not in name).filter(
    lambda name: name not in {"uri", "source", "key", "content_hash", "ingested_at", "clusters"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@fuzz(100)
@given(sent=st.dictionaries(NAMES, VALUES, max_size=5))
def test_payload_is_in_the_stores_form(sent: dict[str, Json]) -> None:
    """The store's cleaning changes nothing more; top-level nulls are gone, all else is there."""
    payload = messages.to_payload(struct(**sent))
    stored = {name: value for name, value in clean_payload(sent).items() if value is not None}
    assert json.dumps(payload, sort_keys=True) == json.dumps(stored, sort_keys=True)


@fuzz(100)
@given(sent=st.dictionaries(NAMES, VALUES, max_size=5))
def test_payload_is_bounded_by_its_bytes_on_the_wire(sent: dict[str, Json]) -> None:
    """As JSON it has at most 6 times as many, and braces: what is small enough is not measured."""
    message = struct(**sent)
    as_json = json.dumps(messages.to_payload(message), ensure_ascii=False).encode()
    assert len(as_json) <= 6 * message.ByteSize() + 2


@pytest.mark.parametrize("character", ["x", "\x01", "é"])
@pytest.mark.parametrize("more", [0, 1])
def test_payload_has_at_most_64_kib_as_json(character: str, more: int) -> None:
    """The limit is exact, whatever a character takes on the wire and as JSON."""
    each = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    name = "n" * (5 + (LIMIT - 13) % each)
    count = (LIMIT - len(name) - len('{"": ""}')) // each
    sent = {name + "n" * more: character * count}
    assert len(json.dumps(sent, ensure_ascii=False).encode()) == LIMIT + more
    if not more:
        assert messages.to_payload(struct(**sent)) == sent
        return
    with pytest.raises(InvalidArgument, match=f"at most {LIMIT} bytes as JSON, got {LIMIT + 1}$"):
        messages.to_payload(struct(**sent))


def test_payload_too_large_on_the_wire_is_refused_by_its_size_alone() -> None:
    """Past 5 times the limit nothing is looked at, not even a name that is reserved."""
    most = 5 * LIMIT
    message = struct(key="")
    message.update({"key": "x" * (most - message.ByteSize() - 6)})
    assert message.ByteSize() == most
    with pytest.raises(InvalidArgument, match="are reserved, got key"):
        messages.to_payload(message)
    message.update({"key": message["key"] + "x"})
    with pytest.raises(InvalidArgument, match=f"got {most + 1} on the wire"):
        messages.to_payload(message)


def test_payload_bound_on_the_wire_is_the_servers() -> None:
    """What the server lets through is not refused here for its bytes alone."""
    inside = bounds_of("shoal.v1.EmbedderService.Ingest", max_bytes=2**26).inside
    assert inside.sizes["shoal.v1.IngestRequest.payload"] == messages.MOST_ON_WIRE == 5 * LIMIT


def test_payload_of_digits_is_not_refused_by_its_size_on_the_wire() -> None:
    """A list of digits has most bytes on the wire for one of JSON, and is within the bound."""
    digits = [1] * ((LIMIT - len('{"n": []}') + 2) // 3)
    message = struct(n=digits)
    assert message.ByteSize() > 3 * LIMIT
    assert messages.to_payload(message) == {"n": digits}


@pytest.mark.parametrize(
    "sent",
    [
        {"n": [None] * (LIMIT // 2 + 1)},
        {"n": [[None] * (LIMIT // 4)] * 2 + [None]},
        {"n": {str(number): None for number in range(LIMIT // 6 + 1)}},
    ],
)
def test_payload_of_too_many_values_is_refused_before_they_are_read(
    sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their commas, quotes and colons alone are too much: none of the many is looked at."""
    read: list[int] = []
    to_json = messages._to_json

    def counted(value: Any, name: str, room: Any, depth: int) -> Json:
        read.append(depth)
        return to_json(value, name, room, depth)

    monkeypatch.setattr(messages, "_to_json", counted)
    with pytest.raises(InvalidArgument, match=f"at most {LIMIT} bytes as JSON, got more$"):
        messages.to_payload(struct(**sent))
    assert len(read) <= LIMIT // 4 + 3


@fuzz(100)
@given(sent=st.dictionaries(NAMES, VALUES, max_size=5), data=st.binary(max_size=200))
def test_payload_of_any_bytes_is_read_or_refused(sent: dict[str, Json], data: bytes) -> None:
    """What protobuf takes becomes a payload or an InvalidArgument, and never another error."""
    message = struct(**sent)
    with suppress(DecodeError):
        message.MergeFromString(data)
    try:
        payload = messages.to_payload(message)
    except InvalidArgument:
        return
    assert len(json.dumps(payload, ensure_ascii=False).encode()) <= LIMIT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"": 1}, r"expected names that are not empty and without \. and \", got ''"),
        ({"a.b": 1}, r"got 'a\.b'"),
        ({'a"b': 1}, r"got 'a\"b'"),
        ({"clusters": 1, "key": 2}, r"ingested_at, key, source, uri are reserved, got clusters, k"),
        ({"n": float("nan")}, r"^n: expected a finite number, got nan$"),
        ({"n": [{"m": float("-inf")}]}, r"^m: expected a finite number, got -inf$"),
        ({"a": {"b": {"": 1}}}, r"^b: expected non-empty names, got ''$"),
    ],
)
def test_payload_that_the_store_would_not_take_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    """Before anything is decoded, and with the message that the store has for it."""
    with pytest.raises(InvalidArgument, match=message):
        messages.to_payload(struct(**fields))


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_payload_is_nested_as_deeply_as_the_store_allows(kind: str) -> None:
    """One level more is refused."""

    def nested(levels: int) -> dict[str, Any]:
        value: Any = 1
        for _ in range(levels - 1):
            value = [value] if kind == "list" else {"a": value}
        return {"a": value}

    assert messages.to_payload(struct(**nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    assert clean_payload(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    with pytest.raises(InvalidArgument) as ours:
        messages.to_payload(struct(**nested(MAX_DEPTH + 1)))
    with pytest.raises(InvalidArgument) as stores:
        clean_payload(nested(MAX_DEPTH + 1))
    assert ours.value.message == stores.value.message
    assert ours.value.metadata == stores.value.metadata


def test_request_with_bytes_is_an_item() -> None:
    """Key, fields, number and content; the content's hash is the key if there is none."""
    request = embedder_pb2.IngestRequest(
        sequence=7, key="k", uri="u", source="s", image=common_pb2.Image(data=b"bytes")
    )
    request.payload.update({"n": 2.0})
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    fields = {"n": 2, "uri": "u", "source": "s"}
    assert item == Item("k", b"bytes", content_hash(b"bytes"), fields, 7)
    request.ClearField("key")
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    assert item.key == f"sha256:{content_hash(b'bytes')}"


def test_request_with_a_uri_is_to_be_read() -> None:
    """The place is the point's uri, unless its sender gives another."""
    request = embedder_pb2.IngestRequest(sequence=7, image=common_pb2.Image(uri="file:///a.jpg"))
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    assert item == Remote("", "file:///a.jpg", {"uri": "file:///a.jpg"}, 7)
    request.uri = "other"
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    assert item == Remote("", "file:///a.jpg", {"uri": "other"}, 7)


@pytest.mark.parametrize(("name", "limit"), [("key", 8192), ("uri", 8192), ("source", 200)])
def test_request_bounds_its_texts(name: str, limit: int) -> None:
    """As many characters as the contract says, and no more; the error names the field."""
    request = embedder_pb2.IngestRequest(image=common_pb2.Image(data=b"bytes"))
    setattr(request, name, "é" * limit)
    asyncio.run(messages.to_ingest(request, max_bytes=5))
    setattr(request, name, "é" * (limit + 1))
    error = refusal(request)
    assert error.message == f"{name}: expected at most {limit} characters, got {limit + 1}"
    assert error.metadata["field"] == name


@pytest.mark.parametrize("image", [common_pb2.Image(data=b"x"), common_pb2.Image(uri="s3://b/x")])
def test_a_request_may_merge_its_fields(image: common_pb2.Image) -> None:
    """Then its nulls are the fields that go; of another request they mean nothing."""
    payload = struct(a=1, b=None, c={"d": None}, e=[])
    request = embedder_pb2.IngestRequest(image=image, payload=payload)
    assert asyncio.run(messages.to_ingest(request, max_bytes=5)).merge is None
    request.merge_fields = True
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    assert item.merge == {"b"}
    assert {name: item.fields[name] for name in "ace"} == {"a": 1, "c": {"d": None}, "e": []}
    assert "b" not in item.fields


def test_percent_encoded_characters_count_once() -> None:
    """A path in Japanese has nine letters of its URI for each of its own."""
    written = "file:///" + quote("写" * 2000)
    assert len(written) > 8192
    request = embedder_pb2.IngestRequest(image=common_pb2.Image(uri=written), key=written)
    item = asyncio.run(messages.to_ingest(request, max_bytes=5))
    assert (item.key, item.fields["uri"]) == (written, written)
    request.key = quote("写" * 8193)
    assert refusal(request).message == "key: expected at most 8192 characters, got 8193"
    with pytest.raises(InvalidArgument, match="1 to 8192 characters, got 8193"):
        messages.image_source(common_pb2.Image(uri=quote("写" * 8193)), max_bytes=1)


def test_image_has_bytes_within_the_limit_or_a_place() -> None:
    """Both bounds of both; each refusal says what was expected."""
    assert messages.image_source(common_pb2.Image(data=b"x"), max_bytes=1) == b"x"
    assert messages.image_source(common_pb2.Image(uri="u" * 8192), max_bytes=1) == "u" * 8192
    with pytest.raises(ImageEmpty):
        messages.image_source(common_pb2.Image(data=b""), max_bytes=1)
    with pytest.raises(ImageTooLarge, match="at most 1 bytes, got 2") as caught:
        messages.image_source(common_pb2.Image(data=b"xx"), max_bytes=1)
    assert caught.value.metadata == {"max_bytes": "1", "bytes": "2"}
    for uri in ("", "u" * 8193):
        with pytest.raises(InvalidArgument, match=f"1 to 8192 characters, got {len(uri)}"):
            messages.image_source(common_pb2.Image(uri=uri), max_bytes=1)
    with pytest.raises(InvalidArgument, match="got no image"):
        messages.image_source(common_pb2.Image(), max_bytes=1)


def test_text_has_1_to_10000_characters() -> None:
    """Both bounds."""
    messages.check_text("é")
    messages.check_text("é" * 10_000)
    for text in ("", "é" * 10_001):
        with pytest.raises(InvalidArgument, match=f"1 to 10000 characters, got {len(text)}"):
            messages.check_text(text)


def test_answers_tell_a_vector_a_status_or_an_error() -> None:
    """Each kind of answer, as its message."""
    vector = np.array([0.6, 0.8], np.float32)
    result = messages.embed_result(vector, fingerprint="f")
    assert (result.vector.dim, result.vector.fingerprint) == (2, "f")
    assert np.frombuffer(result.vector.values, "<f4").tolist() == vector.tolist()
    error = ImageCorrupt("broken")
    assert messages.embed_result(error, fingerprint="f").error.reason == "IMAGE_CORRUPT"
    for status in Status:
        answer = messages.ingest_response(7, "sent", Outcome("key", "id", status))
        assert (answer.sequence, answer.key, answer.result.id) == (7, "key", "id")
        name = embedder_pb2.IngestStatus.Name(answer.result.status)
        assert name == f"INGEST_STATUS_{status.name}"
    answer = messages.ingest_response(7, "sent", error)
    assert (answer.sequence, answer.key, answer.error.reason) == (7, "sent", "IMAGE_CORRUPT")


def test_an_items_error_keeps_no_frames() -> None:
    """A traceback holds the image, its pixels and the error itself; causes and contexts do too."""

    def fail() -> None:
        try:
            int("broken")
        except ValueError as exc:
            raise ImageCorrupt("broken") from exc

    with pytest.raises(ImageCorrupt) as caught:
        fail()
    error = messages.item_failure(caught.value)
    assert error is caught.value
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_an_unexpected_error_is_told_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    """Its sender learns where to look; the log has the traceback; nothing else keeps it."""
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    with caplog.at_level(logging.ERROR):
        error = messages.item_failure(caught.value)
        other = messages.item_failure(caught.value, log="the task's log")
    assert type(error) is ShoalError
    assert error.message == "internal error; the server's log has it"
    assert other.message == "internal error; the task's log has it"
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert [record.getMessage() for record in caplog.records] == ["an item failed"] * 2
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is caught.value
