"""The use case: an image and what its sender says about it become a point, at most once.

Knows the rules of identity and change; knows no messages.

- A point is its key's: the same key is always the same point. Without a key, the content's hash
  stands in, so the same image under two keys is two points.
- The same bytes and fields again change nothing: nothing is decoded, embedded or written.
- The same bytes with other fields change the payload; the vector and the clusters stay.
- Other bytes replace the point; its clusters go, since they were the old vector's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from embedder.fleet import Fleet
from embedder.flow.admission import Turns
from embedder.flow.batching import Lane, Patience
from embedder.locations.reading import Locations
from embedder.points import Patch, Points, Put
from shoal.errors import EncoderMismatch, NotFound
from shoal.store import Payload, Point, VectorInfo, point_id

_OURS = frozenset({"key", "content_hash", "ingested_at", "clusters"})
"""Payload fields that say nothing about what the sender said."""

_HASH_INLINE_BYTES = 2**20
"""Hashing this much takes the event loop about 1 ms; more goes to a thread."""

_BY_CONTENT = "sha256:"
"""How a key begins that is the hash of the content."""

_PATIENCE = Patience(Lane.STREAM)


class Status(Enum):
    """What was done with an item."""

    STORED = "stored"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Item:
    """An image to ingest.

    Attributes:
        key: what makes it itself; not empty.
        data: the encoded image.
        content_hash: sha256 of ``data``, 64 hex digits.
        fields: the sender's own fields, and ``uri`` and ``source`` where given.
        id: the point's id, made of ``key``.
    """

    key: str
    data: bytes
    content_hash: str
    fields: Payload
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Make the id, once: a UUID costs as much as a few messages."""
        object.__setattr__(self, "id", point_id(self.key))


@dataclass(frozen=True, slots=True)
class Remote:
    """An image to read, and then to ingest.

    Attributes:
        key: what makes it itself; empty for its content.
        uri: where it lies.
        fields: as an Item's.
    """

    key: str
    uri: str
    fields: Payload


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item: its key, its point's id, and what was done."""

    key: str
    id: str
    status: Status


async def to_item(key: str, data: bytes, fields: Payload) -> Item:
    """The item of an encoded image; the content's hash stands in for an empty ``key``."""
    inline = len(data) <= _HASH_INLINE_BYTES
    digest = content_hash(data) if inline else await asyncio.to_thread(content_hash, data)
    return Item(key or f"{_BY_CONTENT}{digest}", data, digest, fields)


def content_hash(data: bytes) -> str:
    """The sha256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Destination:
    """A collection, and the encoders that make its vectors, by name."""

    collection: str
    encoders: tuple[str, ...]


class Ingestor:
    """Ingests items, concurrently, in batches, one at a time per point."""

    def __init__(
        self, fleet: Fleet, points: Points, locations: Locations, *, max_bytes: int
    ) -> None:
        """Join the places of images, their way, and where it ends; all are the caller's.

        ``max_bytes``: of an image that is read, bytes.
        """
        self._fleet = fleet
        self._points = points
        self._locations = locations
        self._max_bytes = max_bytes
        self._turns = Turns()

    async def open(self, collection: str, encoders: Sequence[str] = ()) -> Destination:
        """Make sure that ``collection`` exists and takes the vectors of this server's encoders.

        ``encoders`` are those that fill it; by default the server's first one if the collection
        is new, else those that it has.

        Raises:
            NotFound: this server has no such encoder.
            EncoderMismatch: the collection was made with an encoder that this server has not.
            Unsupported: the collection has not the vectors of all ``encoders``.
        """
        known = None if encoders else await self._points.collection(collection)
        if known is not None:
            specs = known.vectors
        else:
            wanted = [self._fleet.artefact(name) for name in encoders or ("",)]
            specs = tuple(VectorInfo(a.name, a.dim, a.fingerprint) for a in wanted)
        made = await self._points.create_collection(collection, specs)
        for spec in made.vectors:
            _check_encoder(self._fleet, spec, collection)
        return Destination(collection, tuple(spec.name for spec in made.vectors))

    async def ingest(self, to: Destination, item: Item | Remote) -> Outcome:
        """Make the point of ``item`` what its sender says; when this returns, it is stored.

        Of two items with one id, the one that was given later wins; of two remote ones without a
        key, or with a hash as theirs, the one that was read later.

        Raises:
            ImageInvalid: the bytes are not an image within the limits; nothing was stored.
            ShoalError: the place cannot be read, or a model or the store failed.
        """
        if isinstance(item, Item):
            async with self._turns.of((to.collection, item.id)):
                return await self._settle(to, item)
        if item.key and not item.key.startswith(_BY_CONTENT):
            async with (
                self._turns.of((to.collection, point_id(item.key))),
                self._locations.read(item.uri, max_bytes=self._max_bytes) as data,
            ):
                return await self._settle(to, await to_item(item.key, data, item.fields))
        # One that has memory may wait for the turn of a hash: who has that turn waits for none.
        async with self._locations.read(item.uri, max_bytes=self._max_bytes) as data:
            return await self.ingest(to, await to_item(item.key, data, item.fields))

    async def _settle(self, to: Destination, item: Item) -> Outcome:
        """Ingest ``item``, whose turn it is."""
        return Outcome(item.key, item.id, await self._make_so(to, item))

    async def _make_so(self, to: Destination, item: Item) -> Status:
        record = await self._points.find(to.collection, item.id)
        known = record.payload if record else {}
        if known.get("content_hash") != item.content_hash:
            await self._replace(to, item)
            return Status.UPDATED if record else Status.STORED
        patch = _difference(to.collection, item, known)
        if patch is None:
            return Status.UNCHANGED
        await self._points.write(patch)
        record = await self._points.find(to.collection, item.id)
        if record is None or record.payload.get("content_hash") != item.content_hash:
            # Another process replaced or deleted the point meanwhile. We came later.
            await self._replace(to, item)
        return Status.UPDATED

    async def _replace(self, to: Destination, item: Item) -> None:
        vectors = await self._fleet.embed(item.data, to.encoders, _PATIENCE)
        payload: Payload = {
            **item.fields,
            "key": item.key,
            "content_hash": item.content_hash,
            "ingested_at": time.time(),
        }
        await self._points.write(Put(to.collection, Point(item.id, vectors, payload)))


def _check_encoder(fleet: Fleet, spec: VectorInfo, collection: str) -> None:
    try:
        found = fleet.artefact(spec.name).fingerprint
    except NotFound as exc:
        known = ", ".join(artefact.name for artefact in fleet.artefacts)
        msg = (
            f"collection {collection!r} was made with encoder {spec.name!r} "
            f"({spec.fingerprint[:12]}), this server has {known}"
        )
        raise EncoderMismatch(msg, encoder=spec.name) from exc
    if found != spec.fingerprint:
        msg = (
            f"collection {collection!r} was made with encoder {spec.name!r} "
            f"({spec.fingerprint[:12]}), this server's {spec.name!r} is another ({found[:12]})"
        )
        raise EncoderMismatch(msg, encoder=spec.name)


def _difference(collection: str, item: Item, known: Payload) -> Patch | None:
    """What to write so that the fields of a point are the item's; None if they are.

    ``ingested_at`` stays: it dates the vector, and scans are bounded by it.
    """
    said = {name: value for name, value in known.items() if name not in _OURS}
    changed = {
        name: value
        for name, value in item.fields.items()
        if name not in said or _canonical(said[name]) != _canonical(value)
    }
    removed = tuple(name for name in said if name not in item.fields)
    if not changed and not removed:
        return None
    return Patch(collection, item.id, item.content_hash, changed, removed)


def _canonical(value: object) -> str:
    """JSON text: tells true from 1, which Python's ``==`` does not."""
    return json.dumps(value, sort_keys=True)
