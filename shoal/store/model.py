"""The values that cross the store's gateway. Pure: knows no engine.

``vectors`` are float32, C-contiguous and of unit length; ids are UUID strings in their
canonical 36-character form.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.errors import InvalidArgument
from shoal.values import Json, VectorInfo
from shoal.vectors import Vectors

Payload: TypeAlias = dict[str, Json]

DEFAULT_CLUSTERING = "default"
SLOTS = ("a", "b")
MAX_BLOCK_SIZE = 4096
"""The most points in one block of a scan: 20 MiB of vectors at 1280-d."""

RESERVED_FIELDS = frozenset({"uri", "source", "key", "content_hash", "ingested_at", "clusters"})
"""Payload names that Shoal owns; a caller's own field may not use them."""

ARRIVED = "clusters.INGESTED_AT"
"""The field that repeats ``ingested_at`` for the conditions of writes: no payload index holds it.

No clustering has a name in upper case.
"""

POINT_NAMESPACE = uuid.UUID("6f1e1a52-6d0c-5c0e-9d7b-5a0a1c0f7e11")
"""The namespace of every UUIDv5 that Shoal makes. Changing it changes every id."""

JOINT = "+"
"""The sign between the names of a joint vector's parts."""

_RECORDS_SUFFIX = "--records"
_CANONICAL_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_CLUSTERING_NAME = re.compile(r"[a-z0-9_]{1,40}")


def point_id(key: str) -> str:
    """The id of the point that ``key`` names: a UUIDv5, so that re-sending is idempotent.

    SHA-1 spreads the ids evenly, which makes any run of consecutive ids a uniform sample.
    """
    return str(uuid.uuid5(POINT_NAMESPACE, key))


def canonical_id(point: str) -> str:
    """``point`` in the 36-character form, or InvalidArgument if it is not a UUID."""
    if isinstance(point, str):
        if _CANONICAL_ID.fullmatch(point):
            return point
        try:
            return str(uuid.UUID(point))
        except ValueError:
            pass
    raise InvalidArgument(f"point id {point!r}: expected a UUID", field="id")


def arrival(at: float) -> Payload:
    """The payload fields of a point whose vectors were written at ``at``, in Unix seconds."""
    holder, _, name = ARRIVED.partition(".")
    return {"ingested_at": at, holder: {name: at}}


def records_name(collection: str) -> str:
    """The companion of ``collection`` that holds run records, cluster records and leases."""
    return collection + _RECORDS_SUFFIX


def is_records_name(name: str) -> bool:
    """Whether ``name`` is the companion of a collection."""
    return name.endswith(_RECORDS_SUFFIX)


def slot_field(clustering: str, slot: str) -> str:
    """The payload field that holds a point's cluster in one slot, ``clusters.default.a``."""
    return f"clusters.{clustering}.{slot}"


def other_slot(slot: str) -> str:
    """The slot that readers do not see while they see ``slot``."""
    return "b" if slot == "a" else "a"


def check_collection_name(name: str) -> str:
    """``name``, or InvalidArgument if it cannot name a collection."""
    if not _COLLECTION_NAME.fullmatch(name) or "--" in name:
        raise InvalidArgument(
            f'collection name {name!r}: expected 1 to 100 letters, digits, "_" and single "-", '
            "beginning with a letter or digit",
            field="collection",
        )
    return name


def check_clustering_name(name: str) -> str:
    """``name`` (``"default"`` for an empty one), or InvalidArgument."""
    name = name or DEFAULT_CLUSTERING
    if not _CLUSTERING_NAME.fullmatch(name):
        raise InvalidArgument(
            f'clustering name {name!r}: expected 1 to 40 lower-case letters, digits and "_"',
            field="clustering",
        )
    return name


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection is made of. ``created_at`` is in Unix seconds."""

    name: str
    vectors: tuple[VectorInfo, ...]
    clusterings: tuple[str, ...]
    created_at: float

    def vector(self, name: str = "") -> VectorInfo:
        """The vector called ``name``; an empty name means the first.

        ``a+b`` is a joint vector: both, one after the other, scaled to length 1. It is not stored,
        but can be read and clustered as if it were. Its fingerprint is a hash of its parts'.

        Raises:
            InvalidArgument: the collection has no such vector.
        """
        parts = self.parts(name)
        if len(parts) == 1:
            return parts[0]
        digest = hashlib.sha256("+".join(part.fingerprint for part in parts).encode())
        joint = JOINT.join(part.name for part in parts)
        return VectorInfo(joint, sum(part.dim for part in parts), digest.hexdigest())

    def searchable(self, name: str = "") -> VectorInfo:
        """As ``vector``, but a joint vector is an InvalidArgument: no index holds one."""
        if len(parts := self.parts(name)) > 1:
            known = " or ".join(part.name for part in parts)
            msg = f"search: expected a stored vector ({known}), got the joint vector {name}"
            raise InvalidArgument(msg, field="vector")
        return parts[0]

    def parts(self, name: str = "") -> tuple[VectorInfo, ...]:
        """The stored vectors that ``name`` consists of: one, or those of a joint vector."""
        whole = [spec for spec in self.vectors if name in ("", spec.name)]
        if whole:
            return (whole[0],)
        names = name.split(JOINT)
        if len(names) > len(set(names)):
            msg = f"vector {name!r}: expected different vectors in a joint one"
            raise InvalidArgument(msg, field="vector")
        by_name = {spec.name: spec for spec in self.vectors}
        if set(names) <= set(by_name):
            return tuple(by_name[part] for part in names)
        known = ", ".join(spec.name for spec in self.vectors)
        raise InvalidArgument(
            f"collection {self.name!r} has no vector {name!r}: expected one of {known}",
            field="vector",
        )


@dataclass(frozen=True, slots=True)
class Point:
    """A point to write: ``vectors`` maps each vector's name to float32 (D,)."""

    id: str
    vectors: Mapping[str, Vectors]
    payload: Payload


@dataclass(frozen=True, slots=True)
class Record:
    """A point as read. ``vectors`` has the named vectors that were asked for, float32 (D,)."""

    id: str
    payload: Payload
    vectors: Mapping[str, Vectors] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result: ``score`` is the cosine, ``vector`` is float32 (D,) if it was asked for."""

    id: str
    score: float
    payload: Payload
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive points of a scan: ``ids`` (B,) and ``payloads`` (B,)."""

    ids: list[str]
    payloads: list[Payload]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Block:
        """The first ``count`` points."""
        return Block(self.ids[:count], self.payloads[:count])


@dataclass(frozen=True, slots=True)
class VectorBlock(Block):
    """Consecutive points of a ``VectorScan``, with their ``vectors`` float32 (B, D)."""

    vectors: Vectors

    def first(self, count: int) -> VectorBlock:
        """The first ``count`` points."""
        return VectorBlock(self.ids[:count], self.payloads[:count], self.vectors[:count])


@dataclass(frozen=True, slots=True)
class Equals:
    """The field equals this value."""

    field: str
    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The field equals one of these values."""

    field: str
    values: tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field is a number in this interval."""

    field: str
    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None


@dataclass(frozen=True, slots=True)
class Empty:
    """The field is absent, null or an empty list."""

    field: str


@dataclass(frozen=True, slots=True)
class IdIn:
    """The point's id is one of these."""

    ids: Sequence[str]


Condition: TypeAlias = Equals | AnyOf | Range | Empty | IdIn


@dataclass(frozen=True, slots=True)
class Filter:
    """The points that meet all of ``must``, one of ``should`` (if any), none of ``must_not``."""

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()

    def also(self, *conditions: Condition) -> Filter:
        """The filter for points that meet this one and ``conditions`` too."""
        return Filter((*self.must, *conditions), self.should, self.must_not)

    @property
    def fields(self) -> frozenset[str]:
        """The payload fields that the conditions look at."""
        conditions = (*self.must, *self.should, *self.must_not)
        return frozenset(c.field for c in conditions if not isinstance(c, IdIn))


EVERYWHERE = Filter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Which points a scan reads, without their vectors.

    Attributes:
        where: Only points that meet this filter are read.
        fields: The payload fields to read: None for all, ``()`` for none.
        start: The first id, inclusive; no point need have it.
        block_size: The most points in a block, 1 to MAX_BLOCK_SIZE.
    """

    where: Filter = EVERYWHERE
    fields: Sequence[str] | None = None
    start: str | None = None
    block_size: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorScan(Scan):
    """A scan that reads one vector of each point; points without it are skipped.

    Attributes:
        vector: The vector's name; empty for the collection's first.
    """

    vector: str


@dataclass(frozen=True, slots=True)
class Query:
    """What a search looks for.

    Attributes:
        vector: float32 (D,), unit length.
        vector_name: The named vector that ``vector`` is compared with; empty for the first.
        limit: The most hits, 1 or more.
        offset: The number of nearest points to leave out, 0 or more.
        where: Only points that meet this filter are hits.
        min_score: The lowest cosine of a hit.
        exact: Whether to compare with every candidate; otherwise an index may miss a few.
        with_vector: Whether hits carry their vectors.
        max_bytes: The most bytes of the hits' payloads as JSON, and their vectors; 0 is no bound.
    """

    vector: Vectors
    vector_name: str = ""
    limit: int = 10
    offset: int = 0
    where: Filter = EVERYWHERE
    min_score: float | None = None
    exact: bool = True
    with_vector: bool = False
    max_bytes: int = 0
