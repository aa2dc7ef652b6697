"""The use case: an image and what its sender says about it become a point, at most once.

Knows the rules of identity and change; knows no messages.

- A key makes a point: the same key is always the same point. Without a key, the content's hash
  stands in, so the same image under two keys is two points.
- The same bytes and fields again change nothing: nothing is decoded, embedded or written.
- The same bytes with other fields change the payload; the vector and the clusters stay.
- Other bytes replace the point; its clusters go, since they belonged to the old vector.
- The fields are those of the last sender. One who merges leaves those that he does not name.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from embedder.encoding.artefact import Artefact
from embedder.flow.admission import Turns
from embedder.flow.batching import Lane, Patience
from embedder.inference.fleet import Fleet
from embedder.ingest.items import MAX_PAYLOAD_BYTES, Item, Outcome, Remote, Status, to_item
from embedder.ingest.points import Patch, Points
from embedder.locations.reading import Locations
from shoal.errors import EncoderMismatch, InvalidArgument, NotFound
from shoal.store import RESERVED_FIELDS, Payload, Point, VectorInfo, arrival, point_id

_SERVERS_FIELDS = frozenset({"key", "content_hash", "ingested_at", "clusters"})
"""The payload fields that Shoal writes; all others are the sender's."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A collection, the encoders that make its vectors, by name, and who sends images to it.

    ``fingerprints`` of its vectors, by encoder: one that has a matte now may have had none.
    """

    collection: str
    encoders: tuple[str, ...]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    caller: str | None = None


class Ingestor:
    """Ingests items, concurrently, in batches, one at a time per point."""

    def __init__(
        self, fleet: Fleet, points: Points, locations: Locations, *, max_bytes: int
    ) -> None:
        """Joins the encoders, the store and the places of images; all stay the caller's.

        ``max_bytes`` is the most that an image which is read may have.
        """
        self._fleet = fleet
        self._points = points
        self._locations = locations
        self._max_bytes = max_bytes
        self._turns = Turns()

    async def open(self, collection: str, encoders: Sequence[str] = ()) -> Destination:
        """The destination ``collection``, which is made if it is missing.

        ``encoders`` make its vectors. Without any, an existing collection keeps its own encoders,
        and a new one gets the server's first encoder.

        Raises:
            NotFound: this server has no such encoder.
            EncoderMismatch: the collection was made with none of ``encoders``, or with an encoder
                that this server lacks.
            Unsupported: the collection lacks the vectors of some of ``encoders``.
        """
        known = await self._points.collection(collection)
        if known is not None and not encoders:
            specs = known.vectors
        else:
            wanted = [self._fleet.artefact(name) for name in encoders or ("",)]
            have = {spec.name: spec for spec in known.vectors} if known is not None else {}
            specs = tuple(_as_known(artefact, have.get(artefact.name)) for artefact in wanted)
        made = await self._points.create_collection(collection, specs)
        for spec in made.vectors:
            _check_encoder(self._fleet, spec, collection)
        names = tuple(spec.name for spec in made.vectors)
        return Destination(collection, names, {s.name: s.fingerprint for s in made.vectors})

    async def ingest(self, to: Destination, item: Item | Remote) -> Outcome:
        """Makes the point of ``item`` what its sender says; when this returns, it is stored.

        Of two items with one id, the one that was given later wins. Of two remote items that
        their content identifies, the one that was read later wins.

        Raises:
            ImageInvalid: the bytes are not an image within the limits; nothing was stored.
            ShoalError: the place cannot be read, or a model or the store failed.
        """
        if isinstance(item, Item):
            async with self._turns.of((to.collection, item.id)):
                return await self._settle(to, item)
        if item.is_content_keyed:
            # No deadlock: whoever holds a hash's turn never waits for memory.
            async with self._read(item) as read:
                return await self.ingest(to, read)
        async with self._turns.of((to.collection, point_id(item.key))), self._read(item) as read:
            return await self._settle(to, read)

    @asynccontextmanager
    async def _read(self, item: Remote) -> AsyncIterator[Item]:
        """The item with its image, for which there is memory inside the block."""
        async with self._locations.read(item.uri, max_bytes=self._max_bytes) as data:
            yield await to_item(
                item.key, data, item.fields, sequence=item.sequence, merge=item.merge
            )

    async def _settle(self, to: Destination, item: Item) -> Outcome:
        """Ingests ``item``, whose turn it is."""
        return Outcome(item.key, item.id, await self._bring_up_to_date(to, item))

    async def _bring_up_to_date(self, to: Destination, item: Item) -> Status:
        record = await self._points.find(to.collection, item.id)
        known = record.payload if record else {}
        if known.get("content_hash") != item.content_hash:
            await self._replace(to, item, known)
            return Status.UPDATED if record else Status.STORED
        patch = _difference(item, known)
        if patch is None:
            return Status.UNCHANGED
        await self._points.write(to.collection, patch)
        record = await self._points.find(to.collection, item.id)
        if record is None or record.payload.get("content_hash") != item.content_hash:
            # Another process has replaced or deleted the point. This item came later, and wins.
            await self._replace(to, item, record.payload if record else {})
        return Status.UPDATED

    async def _replace(self, to: Destination, item: Item, known: Payload) -> None:
        fields = _fields(item, known)
        patience = Patience(Lane.STREAM, caller=to.caller)
        vectors = await self._fleet.embed(
            item.data, to.encoders, patience, fingerprints=to.fingerprints
        )
        payload: Payload = {
            **fields,
            "key": item.key,
            "content_hash": item.content_hash,
            **arrival(time.time()),
        }
        await self._points.write(to.collection, Point(item.id, vectors, payload))


def _as_known(artefact: Artefact, known: VectorInfo | None) -> VectorInfo:
    """The vector that ``artefact`` makes; ``known`` if that is what it made before its matte."""
    if known is not None and known.fingerprint == artefact.before_matte.fingerprint:
        return known
    return VectorInfo(artefact.name, artefact.dim, artefact.fingerprint)


def _check_encoder(fleet: Fleet, spec: VectorInfo, collection: str) -> None:
    try:
        fleet.as_made(spec.name, spec.fingerprint)
    except NotFound as exc:
        known = ", ".join(artefact.name for artefact in fleet.artefacts)
        msg = (
            f"collection {collection!r} was made with encoder {spec.name!r} "
            f"({spec.fingerprint[:12]}), this server has {known}"
        )
        raise EncoderMismatch(msg, encoder=spec.name) from exc
    except EncoderMismatch as exc:
        found = fleet.artefact(spec.name).fingerprint
        msg = (
            f"collection {collection!r} was made with encoder {spec.name!r} "
            f"({spec.fingerprint[:12]}), this server's {spec.name!r} is another ({found[:12]})"
        )
        raise EncoderMismatch(msg, encoder=spec.name) from exc


def _fields(item: Item, known: Payload) -> Payload:
    """The sender's fields of the point that was ``known`` as it will be.

    Raises:
        InvalidArgument: the item's and those that stay are too large together.
    """
    if item.merge is None:
        return item.fields
    stay = {
        name: value
        for name, value in known.items()
        if name not in _SERVERS_FIELDS and name not in item.merge
    }
    fields = {**stay, **item.fields}
    own = {name: value for name, value in fields.items() if name not in RESERVED_FIELDS}
    size = len(json.dumps(own, ensure_ascii=False).encode())
    if size > MAX_PAYLOAD_BYTES:
        most = f"at most {MAX_PAYLOAD_BYTES} bytes as JSON with the fields that stay"
        raise InvalidArgument(f"payload: expected {most}, got {size}", field="payload")
    return fields


def _difference(item: Item, known: Payload) -> Patch | None:
    """The change that makes the fields of a point the item's; None if they are the same.

    ``ingested_at`` stays: it dates the vector, and scans are bounded by it.
    """
    said = {name: value for name, value in known.items() if name not in _SERVERS_FIELDS}
    fields = _fields(item, known)
    changed = {
        name: value
        for name, value in fields.items()
        if name not in said or _canonical(said[name]) != _canonical(value)
    }
    removed = tuple(name for name in said if name not in fields)
    if not changed and not removed:
        return None
    return Patch(item.id, item.content_hash, changed, removed)


def _canonical(value: object) -> str:
    """The value as JSON text, which tells true from 1; Python's ``==`` does not."""
    return json.dumps(value, sort_keys=True)
