"""What is ingested, and what became of it. Knows no messages and no store."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from enum import Enum

from shoal.store import Payload, point_id

_HASH_INLINE_BYTES = 2**20
"""Hashing this many bytes takes the event loop about 1 ms; larger images are hashed in a thread."""

MAX_PAYLOAD_BYTES = 64 * 2**10
"""The most bytes of a payload as JSON."""

_CONTENT_PREFIX = "sha256:"
"""A key that starts with this is the hash of an image's content."""


class Status(Enum):
    """What was done with an item."""

    STORED = "stored"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Item:
    """An image to ingest, and what its sender says about it.

    Attributes:
        key: makes the item itself; not empty.
        data: the encoded image.
        content_hash: sha256 of ``data``, 64 hex digits.
        fields: the sender's own fields, and ``uri`` and ``source`` where given.
        merge: None if ``fields`` are all that the point has from then on. Else those that an
            earlier sender gave stay, unless they are named in ``fields`` or here.
        sequence: the sender's number for the item; the answer repeats it.
        id: the point's id, made of ``key``.
    """

    key: str
    data: bytes
    content_hash: str
    fields: Payload
    sequence: int = 0
    merge: frozenset[str] | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Makes the id, once: a UUID costs as much as a few messages."""
        object.__setattr__(self, "id", point_id(self.key))


@dataclass(frozen=True, slots=True)
class Remote:
    """An item whose image is yet to be read.

    Attributes:
        key: makes the item itself; empty if the content does.
        uri: where the image lies.
        fields: as an Item's.
        merge: as an Item's.
        sequence: as an Item's.
    """

    key: str
    uri: str
    fields: Payload
    sequence: int = 0
    merge: frozenset[str] | None = None

    @property
    def is_content_keyed(self) -> bool:
        """Whether the point may be that of another item of the same content, under its hash."""
        return not self.key or self.key.startswith(_CONTENT_PREFIX)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item: its key, its point's id, and what was done."""

    key: str
    id: str
    status: Status


async def to_item(
    key: str,
    data: bytes,
    fields: Payload,
    *,
    sequence: int = 0,
    merge: frozenset[str] | None = None,
) -> Item:
    """The item of an encoded image; the content's hash stands in for an empty ``key``."""
    inline = len(data) <= _HASH_INLINE_BYTES
    digest = content_hash(data) if inline else await asyncio.to_thread(content_hash, data)
    return Item(key or f"{_CONTENT_PREFIX}{digest}", data, digest, fields, sequence, merge)


def content_hash(data: bytes) -> str:
    """The sha256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
