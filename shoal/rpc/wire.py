"""Counts what is in an encoded protobuf message, before protobuf parses it.

An empty message of 2 bytes becomes an object of about 50: 64 MiB of them become 1.6 GB, and the
event loop stands still meanwhile. Here the encoded fields are walked without making an object of
any, and the walk ends at the first bound that is passed. Knows no service: the bounds of each
method are in ``shoal.rpc.bounds``.

The encoding: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from shoal.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

MAX_DEPTH: Final = 100
"""The most messages inside each other, which is protobuf's own limit."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
"""The kinds of an encoded field: the lowest three bits of its tag."""
_WIDTHS: Final = {_FIXED_64: 8, _FIXED_32: 4}
_LAST: Final = 0x7F
"""The largest byte that ends a varint."""
_CONTINUED: Final = bytes(range(_LAST + 1, 0x100))
_FIRST_TAG: Final = 8
_MAX_TAG: Final = 2**32 - 1
_MAX_SIZE: Final = 2**31 - 1
_MAX_VARINT_BYTES: Final = 10
_MOST_UNKNOWN: Final = 1_000
"""The most fields that this version does not know; a later version may have added a few."""


class TooMuch(InvalidArgument):
    """A request has more of something than its bound."""


class Malformed(InvalidArgument):
    """The bytes of a request are no message."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one request may have.

    Attributes:
        fields: the most fields, in the request and in all messages inside it.
        items: by the full name of a repeated field, the most values in one message.
        sizes: by the full name of a field, the most bytes of one value. A message with such a
            bound is not looked into: its bytes bound what it becomes.
        other_items: the most values of a repeated field that is not listed.
        other_size: the most bytes of a string, or of bytes, that are not listed.
    """

    fields: int = 10_000
    items: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    other_items: int = 1_000
    other_size: int = 64 * 2**10


@dataclass(eq=False, slots=True)
class _Field:
    """A field as the walk needs it.

    Attributes:
        name: its name in its message.
        items: the most values in one message, 0 for a field that is not repeated.
        size: the most bytes of a value, 0 for no bound.
        width: the bytes of a packed value, 1 for varints; 0 where values are never packed.
        inside: the fields of its messages, where they are looked into.
    """

    name: str
    items: int
    size: int
    width: int
    inside: _Shape | None


_Shape: TypeAlias = dict[int, _Field]
"""The fields of a message by their tags."""
_Path: TypeAlias = "tuple[_Field, _Path | None]"
"""A field, and the path of the message that it is in."""


class Scanner:
    """Checks encoded messages of one type against their bounds."""

    def __init__(self, message: Descriptor, bounds: Bounds) -> None:
        """Prepares for messages of the type ``message``."""
        self._bounds = bounds
        self._shapes: dict[str, _Shape] = {}
        self._shape = self._shape_of(message)

    def check(self, data: bytes, *, whole: bool = True) -> dict[str, int]:
        """The number of values of each repeated field, by its path, such as ``filter.must``.

        ``whole`` is False for the beginning of a message, which may end anywhere.

        Raises:
            TooMuch: ``data`` has more of something than its bound; names it.
            Malformed: ``data`` is no message, or it has groups, which no message of ours has.
        """
        walk = _Walk(data, self._bounds.fields, [(0, len(data), self._shape, None, 1)])
        while walk.todo:
            walk.over(walk.todo.pop(), whole=whole)
        return walk.found

    def _shape_of(self, message: Descriptor) -> _Shape:
        shape = self._shapes.get(message.full_name)
        if shape is None:
            shape = self._shapes[message.full_name] = {}  # now: a message may contain itself
            for each in message.fields:
                known, kind = self._field_of(each), _kind(each)
                shape[each.number << 3 | kind] = known
                if known.width:
                    shape[each.number << 3 | _BYTES] = known
        return shape

    def _field_of(self, each: FieldDescriptor) -> _Field:
        bounds, kind = self._bounds, _kind(each)
        is_text = kind == _BYTES and each.message_type is None
        size = bounds.sizes.get(each.full_name, bounds.other_size if is_text else 0)
        items = bounds.items.get(each.full_name, bounds.other_items) if each.is_repeated else 0
        width = _WIDTHS.get(kind, 1) if items and kind != _BYTES else 0
        message = each.message_type
        inside = None if message is None or size else self._shape_of(message)
        return _Field(each.name, items, size, width, inside)


_Part: TypeAlias = "tuple[int, int, _Shape, _Path | None, int]"
"""A message that is to be walked over: where it begins and ends, its fields, where it is in the
request, and how deep. A plain tuple, of which a flood makes thousands."""


@dataclass(slots=True)
class _Walk:
    """A walk over one request: the fields that it may have and has, and what is ahead."""

    data: bytes
    most: int
    todo: list[_Part]
    seen: int = 0
    unknown: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def over(self, part: _Part, *, whole: bool) -> None:  # noqa: C901, PLR0912 - calls cost half
        """Walks over the fields of one message, and puts those inside them into ``todo``.

        One long loop: with functions for its parts, a refused request takes twice as long.
        """
        data = self.data
        at, end, shape, path, depth = part
        counts: dict[_Field, int] = {}
        while at < end:
            self.seen += 1
            if self.seen > self.most:
                raise _too_much(path, f"at most {self.most} fields in the whole request", "more")
            try:
                tag, size = data[at], data[at + 1]
                if tag & 7 == _BYTES and _FIRST_TAG <= tag <= _LAST and size <= _LAST:
                    start = at + 2  # most fields, and all of a flood: without a call
                    at = start + size
                else:
                    tag, start, at = read_field(data, at)
            except IndexError:
                start = at = end + 1
            if at > end and whole:
                raise Malformed(f"the request cannot be read: {_name(path)} is cut off")
            if start > end:
                return
            known = shape.get(tag)
            if known is None:
                self.unknown += 1
                if self.unknown > _MOST_UNKNOWN:
                    raise _too_much(path, f"at most {_MOST_UNKNOWN} unknown fields", "more")
                continue
            count = 1
            if tag & 7 == _BYTES:
                if known.size and at - start > known.size:
                    most = f"at most {known.size} bytes on the wire"
                    raise _too_much((known, path), most, str(at - start))
                if known.width:
                    count = _packed(data[start:at], known.width)
                elif known.inside is not None and at > start:
                    if depth >= MAX_DEPTH:
                        raise _too_much(path, f"at most {MAX_DEPTH} levels", "more")
                    self.todo.append((start, at, known.inside, (known, path), depth + 1))
            if known.items:
                counts[known] = counts.get(known, 0) + count
                if counts[known] > known.items:
                    raise _too_much((known, path), f"at most {known.items} of them", "more")
        for known, count in counts.items():
            name = _name((known, path))
            self.found[name] = self.found.get(name, 0) + count


def read_field(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the field at ``at``, where its value begins, and where it ends.

    Raises:
        IndexError: the data ends before the value begins. The value itself may end behind it.
        Malformed: there is no field.
    """
    tag = data[at]
    at += 1
    if tag > _LAST:
        tag, at = _varint(data, at - 1)
    if not _FIRST_TAG <= tag <= _MAX_TAG:
        raise Malformed(f"the request cannot be read: it has the tag {tag} at byte {at}")
    kind = tag & 7
    if kind == _BYTES:
        size = data[at]
        at += 1
        if size > _LAST:
            size, at = _varint(data, at - 1)
        if size > _MAX_SIZE:
            raise Malformed(f"the request cannot be read: {size} bytes are to follow byte {at}")
        return tag, at, at + size
    if kind == _VARINT:
        return tag, at, at + 1 if data[at] <= _LAST else _varint(data, at)[1]
    if kind in _WIDTHS:
        return tag, at, at + _WIDTHS[kind]
    raise Malformed(f"the request cannot be read: it has a field of kind {kind} at byte {at}")


def short_fields(data: bytes, *, most: int, most_bytes: int) -> bytes | None:
    """The outermost fields of ``data`` that have at most ``most_bytes``.

    None if there are more than ``most`` fields, or ``data`` is no message.
    """
    kept: list[bytes] = []
    at = seen = 0
    while at < len(data):
        begin, seen = at, seen + 1
        try:
            _, _, at = read_field(data, at)
        except (IndexError, Malformed):
            return None
        if at > len(data) or seen > most:
            return None
        if at - begin <= most_bytes:
            kept.append(data[begin:at])
    return b"".join(kept)


def _kind(each: FieldDescriptor) -> int:
    """How a value of a field is encoded where it is not packed."""
    if each.type in (each.TYPE_STRING, each.TYPE_BYTES, each.TYPE_MESSAGE):
        return _BYTES
    if each.type in (each.TYPE_DOUBLE, each.TYPE_FIXED64, each.TYPE_SFIXED64):
        return _FIXED_64
    if each.type in (each.TYPE_FLOAT, each.TYPE_FIXED32, each.TYPE_SFIXED32):
        return _FIXED_32
    return _VARINT


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at ``at``, and the place behind it."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[at]
        at += 1
        value |= (byte & _LAST) << shift
        if byte <= _LAST:
            return value, at
    raise Malformed(f"the request cannot be read: there is no end to the number before byte {at}")


def _packed(data: bytes, width: int) -> int:
    """How many values are packed in ``data``."""
    return len(data) // width if width > 1 else len(data.translate(None, _CONTINUED))


def _name(path: _Path | None) -> str:
    """The place in the request: ``filter.must``."""
    names = []
    while path is not None:
        known, path = path
        names.append(known.name)
    return ".".join(reversed(names)) or "request"


def _too_much(path: _Path | None, most: str, got: str) -> TooMuch:
    return TooMuch(f"{_name(path)}: expected {most}, got {got}", field=_name(path))
