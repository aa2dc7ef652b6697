"""Counting what is in a message before it is parsed, compared with protobuf's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fuzzing import fuzz
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.rpc import wire
from shoal.rpc.wire import MAX_DEPTH, Bounds, Malformed, Scanner, TooMuch, short_fields
from shoal.v1 import clusterer_pb2, common_pb2, embedder_pb2, search_pb2

NO_BOUNDS = Bounds(fields=10**6, other_items=10**6, other_size=10**6)


def _numbers() -> type[Message]:
    """A message with a repeated field of each kind of number: float, double, fixed, varint."""
    types = (1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 17, 18)
    label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    fields = [{"name": f"f{n}", "number": 10 * n, "type": n, "label": label} for n in types]
    file = descriptor_pb2.FileDescriptorProto(
        name="numbers.proto", syntax="proto3", message_type=[{"name": "Numbers", "field": fields}]
    )
    found = descriptor_pool.DescriptorPool().Add(file)
    return message_factory.GetMessageClass(found.message_types_by_name["Numbers"])


NUMBERS = _numbers()
TYPES = (
    embedder_pb2.EmbedRequest,
    embedder_pb2.IngestRequest,
    search_pb2.SearchRequest,
    clusterer_pb2.SetScheduleRequest,
    clusterer_pb2.Plan,
    NUMBERS,
)
SCANNERS = {cls: Scanner(cls.DESCRIPTOR, NO_BOUNDS) for cls in TYPES}
GROUPS = (3, 4)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    1: st.floats(width=64),
    2: st.floats(width=32),
    3: st.integers(-(2**63), 2**63 - 1),
    4: st.integers(0, 2**64 - 1),
    5: st.integers(-(2**31), 2**31 - 1),
    8: st.booleans(),
    9: TEXT,
    12: st.binary(max_size=200),
    13: st.integers(0, 2**32 - 1),
    6: st.integers(0, 2**64 - 1),
    7: st.integers(0, 2**32 - 1),
    15: st.integers(-(2**31), 2**31 - 1),
    16: st.integers(-(2**63), 2**63 - 1),
    17: st.integers(-(2**31), 2**31 - 1),
    18: st.integers(-(2**63), 2**63 - 1),
}


@st.composite
def filled(draw: Any, cls: type[Message], depth: int = 0) -> Message:
    """A message with some of its fields set, and those of the messages inside it."""
    message = cls()
    _fill(draw, message, depth)
    return message


def _fill(draw: Any, message: Message, depth: int) -> None:
    fields = [each for each in message.DESCRIPTOR.fields if depth < 4 or not each.message_type]
    for each in draw(st.lists(st.sampled_from(fields), max_size=4)) if fields else ():
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            _fill(draw, getattr(message, each.name)[draw(TEXT)], depth + 1)
        elif each.message_type is not None and each.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                _fill(draw, getattr(message, each.name).add(), depth + 1)
        elif each.message_type is not None:
            getattr(message, each.name).SetInParent()
            _fill(draw, getattr(message, each.name), depth + 1)
        elif each.type in SCALARS and each.is_repeated:
            getattr(message, each.name).extend(draw(st.lists(SCALARS[each.type], max_size=5)))
        elif each.type in SCALARS:
            setattr(message, each.name, draw(SCALARS[each.type]))


def counted(message: Message) -> dict[str, int]:
    """The values of each repeated field of a parsed message, by path."""
    found: dict[str, int] = {}
    for path, count in _counts(message, ""):
        found[path] = found.get(path, 0) + count
    return found


def _counts(message: Message, prefix: str) -> Iterator[tuple[str, int]]:
    for each, value in message.ListFields():
        path = prefix + each.name
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            yield path, len(value)
            for entry in value.values():
                yield from _counts(entry, f"{path}.value.")
            continue
        if each.is_repeated:
            yield path, len(value)
        if each.message_type is not None:
            for inner in value if each.is_repeated else (value,):
                yield from _counts(inner, f"{path}.")


@fuzz(80)
@given(message=st.sampled_from(TYPES).flatmap(filled))
def test_scan_counts_what_protobuf_parses(message: Message) -> None:
    """Each repeated field of a valid message has the same number of values, packed or not."""
    data = message.SerializeToString()
    assert SCANNERS[type(message)].check(data) == counted(type(message).FromString(data))


@fuzz(100)
@given(
    message=st.sampled_from(TYPES).flatmap(filled),
    at=st.integers(0, 10**4),
    junk=st.binary(max_size=8),
)
@example(message=embedder_pb2.EmbedRequest(), at=0, junk=b"\x0b\x0c")
@example(message=embedder_pb2.EmbedRequest(), at=0, junk=b"\x0a\xff\xff\xff\xff\x0f")
@example(message=embedder_pb2.EmbedRequest(), at=0, junk=b"\x08" + b"\x80" * 10 + b"\x01")
def test_scan_of_garbage_raises_only_what_protobuf_would_refuse(
    message: Message, at: int, junk: bytes
) -> None:
    """Whatever the bytes: counts, or Malformed where protobuf fails too; and for groups."""
    data = message.SerializeToString()
    at = min(at, len(data))
    data = data[:at] + junk + data[at + len(junk) // 2 :]
    scanner = SCANNERS[type(message)]
    refused = ""
    try:
        scanner.check(data)
    except Malformed as exc:
        refused = exc.message
    if refused and not any(f"of kind {group} " in refused for group in GROUPS):
        assert refused.startswith("the request cannot be read: ")
        with pytest.raises(DecodeError):
            type(message).FromString(data)
    if not refused:
        scanner.check(data[:at], whole=False)


@fuzz(50)
@given(message=st.sampled_from(TYPES).flatmap(filled), share=st.floats(0, 1))
def test_scan_of_a_beginning_counts_no_more_than_the_whole_has(
    message: Message, share: float
) -> None:
    """The beginning of a message may end anywhere, also inside a field of a field."""
    data = message.SerializeToString()
    scanner = SCANNERS[type(message)]
    whole = scanner.check(data)
    beginning = scanner.check(data[: round(share * len(data))], whole=False)
    assert set(beginning) <= set(whole)
    assert all(count <= whole[path] for path, count in beginning.items())


BOUNDS = Bounds(
    fields=50,
    items={"shoal.v1.EmbedRequest.images": 3, "google.protobuf.ListValue.values": 2},
    sizes={"shoal.v1.Image.data": 100, "shoal.v1.IngestRequest.payload": 42},
    other_items=4,
    other_size=10,
)


@pytest.mark.parametrize(
    ("cls", "good", "bad", "says"),
    [
        (
            embedder_pb2.EmbedRequest,
            {"images": [{}] * 3},
            {"images": [{}] * 4},
            "images: expected at most 3 of them, got more",
        ),
        (
            embedder_pb2.EmbedTextRequest,
            {"texts": [""] * 4},
            {"texts": [""] * 5},
            "texts: expected at most 4 of them, got more",
        ),
        (
            embedder_pb2.EmbedRequest,
            {"images": [{"data": bytes(100)}]},
            {"images": [{"data": bytes(101)}]},
            "images.data: expected at most 100 bytes on the wire, got 101",
        ),
        (
            embedder_pb2.EmbedRequest,
            {"encoder": "x" * 10},
            {"encoder": "x" * 11},
            "encoder: expected at most 10 bytes on the wire, got 11",
        ),
        (
            search_pb2.SearchRequest,
            {"filter": {"must": [{"any_of": [1, 2]}] * 2}},
            {"filter": {"must": [{"any_of": [1, 2, 3]}]}},
            "filter.must.any_of.values: expected at most 2 of them, got more",
        ),
        (
            clusterer_pb2.Plan,
            {"layers": [1, 300, 7, 8]},
            {"layers": [1, 300, 7, 8, 9]},
            "layers: expected at most 4 of them, got more",
        ),
        (
            clusterer_pb2.Lineage,
            {"related": [-1] * 4},
            {"related": [-1] * 5},
            "related: expected at most 4 of them, got more",
        ),
        (
            search_pb2.SearchRequest,
            {"filter": {"must": [{"field": "a"}] * 4, "should": [{"field": "a"}] * 4}},
            {"filter": {"must": [{"field": "a"}] * 4, "should": [{"range": {"gt": 1}}] * 99}},
            "filter.should: expected at most 4 of them, got more",
        ),
        (
            search_pb2.SearchRequest,
            {"image": {"data": b"a"}, "limit": 2**32 - 1, "min_score": 0.5},
            {"filter": {n: [{"any_of": [1, 2]}] * 3 for n in ("must", "should", "must_not")}},
            "expected at most 50 fields in the whole request, got more",
        ),
        (
            embedder_pb2.IngestRequest,
            {"payload": {"a": [1, 2, 3]}},
            {"payload": {"a": [1, 2, 3, 4]}},
            "payload: expected at most 42 bytes on the wire, got ",
        ),
    ],
)
def test_scan_bound_is_exact_and_named(
    cls: type[Message], good: dict[str, Any], bad: dict[str, Any], says: str
) -> None:
    """What is at the bound passes; one more is refused with the field's place and the bound."""
    scanner = Scanner(cls.DESCRIPTOR, BOUNDS)
    scanner.check(cls(**good).SerializeToString())
    with pytest.raises(TooMuch) as caught:
        scanner.check(cls(**bad).SerializeToString())
    assert says in caught.value.message
    assert caught.value.metadata["field"] == caught.value.message.partition(":")[0]


@pytest.mark.parametrize(
    ("flood", "most"),
    [
        (b"\x0a\x00" * 2**20, 4),  # empty images
        (b"\x12\x00" * 2**20, 51),  # the same text over and over
        (b"\xfa\x7f\x00" * 2**20, 51),  # a field that does not exist
        (b"\x0a\x80\x80\x80\x01" + b"\x12\x00" * 2**20, 52),  # an image with a million locations
        (b"\xf8\x7f\x01" * 2**20, 51),
    ],
)
def test_scan_ends_at_its_bound(flood: bytes, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is bounded by what is allowed, whatever is sent."""
    seen: list[int] = []
    read = wire.read_field

    def counting(data: bytes, at: int) -> tuple[int, int, int]:
        seen.append(at)
        return read(data, at)

    monkeypatch.setattr(wire, "read_field", counting)
    with pytest.raises(TooMuch):
        Scanner(embedder_pb2.EmbedRequest.DESCRIPTOR, BOUNDS).check(flood)
    assert len(seen) <= most


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a", "request is cut off"),
        (b"\x0a\x05abc", "request is cut off"),
        (b"\x0a\x02\x0a\x05\x12\x03abc", "images is cut off"),  # an image longer than its frame
        (b"\x0d\x00\x00\x00", "request is cut off"),
        (b"\x09" + bytes(7), "request is cut off"),
        (b"\x10\x80", "request is cut off"),
        (b"\x02\x00", "it has the tag 2"),
        (b"\x0e\x00", "a field of kind 6"),
        (b"\x12\xff\xff\xff\xff\x0f", "4294967295 bytes are to follow"),
        (b"\xff\xff\xff\xff\x1f\x00", "it has the tag"),
        (b"\x10" + b"\x80" * 10 + b"\x00", "no end to the number"),
    ],
)
def test_scan_of_no_message_says_what_is_wrong(data: bytes, says: str) -> None:
    """Protobuf refuses all of them too; a beginning that is cut off is no mistake."""
    scanner = SCANNERS[embedder_pb2.EmbedRequest]
    with pytest.raises(Malformed, match=says):
        scanner.check(data)
    with pytest.raises(DecodeError):
        embedder_pb2.EmbedRequest.FromString(data)
    if "cut off" in says:
        scanner.check(data, whole=False)


def test_scan_lets_a_later_version_add_fields_but_not_a_flood() -> None:
    """A thousand fields that this version does not know pass, in all messages together."""
    scanner = Scanner(embedder_pb2.EmbedRequest.DESCRIPTOR, NO_BOUNDS)
    unknown = b"\xfa\x7f\x00" * 500
    inside = b"\x0a\xdc\x0b" + unknown
    assert scanner.check(unknown + inside) == {"images": 1}
    with pytest.raises(TooMuch, match="images: expected at most 1000 unknown fields, got more"):
        scanner.check(unknown + b"\xf8\x7f\x01" + inside)


def test_scan_packed_numbers_are_counted_in_pieces_and_one_by_one() -> None:
    """A repeated number may come packed, unpacked, or both; all of them count."""
    scanner = Scanner(clusterer_pb2.Plan.DESCRIPTOR, BOUNDS)
    one, packed = b"\x90\x01\x07", b"\x92\x01\x03\x01\xac\x02"
    data = one + packed + one
    assert list(clusterer_pb2.Plan.FromString(data).layers) == [7, 1, 300, 7]
    assert scanner.check(data) == {"layers": 4}
    with pytest.raises(TooMuch, match="layers: expected at most 4"):
        scanner.check(data + one)


def nested(levels: int) -> bytes:
    """A ListValue with so many messages inside each other, itself included."""
    data = b""
    for level in range(levels - 1):
        tag = b"\x0a" if level % 2 == levels % 2 else b"\x32"
        size = len(data)
        head = bytes([size & 0x7F | 0x80, size >> 7]) if size > 0x7F else bytes([size])
        data = tag + head + data
    return data


def test_scan_levels_are_protobufs() -> None:
    """A message that protobuf takes passes; one level more is refused by both."""
    scanner = Scanner(struct_pb2.ListValue.DESCRIPTOR, NO_BOUNDS)
    deepest = nested(MAX_DEPTH)
    struct_pb2.ListValue.FromString(deepest)
    scanner.check(deepest)
    deeper = nested(MAX_DEPTH + 2)
    with pytest.raises(DecodeError):
        struct_pb2.ListValue.FromString(deeper)
    with pytest.raises(TooMuch, match=f"expected at most {MAX_DEPTH} levels, got more"):
        scanner.check(deeper)


def test_short_fields_leave_the_large_ones_out() -> None:
    """What is left is the message without them; it is None for too many fields, and garbage."""
    request = embedder_pb2.IngestRequest(
        sequence=7, key="k", image=common_pb2.Image(data=bytes(1000)), encoders=["a", "b"]
    )
    data = request.SerializeToString()
    kept = short_fields(data, most=5, most_bytes=20)
    assert kept is not None
    request.ClearField("image")
    assert embedder_pb2.IngestRequest.FromString(kept) == request
    assert short_fields(data, most=4, most_bytes=20) is None
    assert short_fields(data[:-1], most=5, most_bytes=20) is None
    assert short_fields(b"\x00", most=5, most_bytes=20) is None
    assert short_fields(b"\x08", most=5, most_bytes=20) is None
    assert short_fields(b"\x0a\x02ab", most=5, most_bytes=4) == b"\x0a\x02ab"
    assert short_fields(b"\x0a\x02ab", most=5, most_bytes=3) == b""
