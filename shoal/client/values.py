"""The values that the SDK takes and gives back: frozen, and free of protobuf and gRPC.

``vector`` is float32 (D,) of unit length. Times are timezone-aware, durations are in seconds.
A name, run or id that does not exist is an empty string, as on the wire; a number that does not
exist is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from shoal.settings import INTERNAL, Setting
from shoal.values import Json, VectorInfo

Vector: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why one item of a batch or stream has no result; the others are not affected."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer for one image or text: ``vector`` or ``failure``, never both."""

    vector: Vector | None = None
    fingerprint: str = ""
    failure: ItemFailure | None = None


@dataclass(frozen=True, slots=True)
class IngestItem:
    """One image to store.

    ``data`` is the encoded file; None means that the server reads ``uri`` itself. ``key`` is what
    the item is stored under; an empty one means the hash of the bytes. Reports call the item by
    its ``name``, which is not sent. An image that is sent again has the fields of ``payload`` from
    then on, and no others; with ``merge_fields`` those that ``payload`` does not name stay, and
    those that are None in it go.
    """

    data: bytes | None
    key: str = ""
    uri: str = ""
    source: str = ""
    payload: Mapping[str, Json] = field(default_factory=dict)
    name: str = ""
    merge_fields: bool = False


class IngestStatus(StrEnum):
    """The status of an item that was sent."""

    STORED = "stored"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """The outcome of the item called ``name``; ``failure`` is set exactly when it FAILED."""

    name: str
    status: IngestStatus
    key: str = ""
    id: str = ""
    failure: ItemFailure | None = None


@dataclass(frozen=True, slots=True)
class StoredId:
    """A query by a stored point: its id (UUID) or its key. The point is not among the hits."""

    id: str


@dataclass(frozen=True, slots=True)
class Text:
    """A query by a text, for an encoder with a text tower."""

    text: str


Query: TypeAlias = bytes | Vector | StoredId | Text
"""An encoded image, a vector made by the collection's encoder, a stored point, or a text."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A filter's condition: the field equals one of 1 to 1000 values."""

    values: Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Range:
    """A filter's condition: the field is a number in this interval. At least one bound."""

    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None


@dataclass(frozen=True, slots=True)
class Empty:
    """A filter's condition: the field is absent, null or an empty list; or has a value."""

    empty: bool = True


Test: TypeAlias = str | int | float | bool | AnyOf | Range | Empty
"""A test of a payload field; a plain value means that the field equals it."""

Conditions: TypeAlias = Sequence[tuple[str, Test]]
"""Pairs of a field and its test; dots in a field's name reach into objects."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Points that meet all of ``must``, one of ``should`` if any, and none of ``must_not``."""

    must: Conditions = ()
    should: Conditions = ()
    must_not: Conditions = ()


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The rarer parts of a search."""

    clustering: str = "default"
    """The clustering whose clusters count."""
    where: Annotated[Filter, INTERNAL] = field(default_factory=Filter)
    """The conditions on fields that every hit meets."""
    vector: Annotated[str, Setting(metavar="NAME")] = ""
    """Which of the collection's named vectors to compare. Default: its first."""
    offset: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Hits to skip."""
    min_score: Annotated[float, Interval(ge=-1, le=1)] | None = None
    """Least cosine of a hit."""
    with_vectors: bool = False
    """Whether hits bring their vectors."""
    approximate: bool = False
    """Whether the index may answer inside a cluster, where the answer is otherwise exact."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored image near to the query. ``cluster`` is -1 for noise, None if not yet assigned."""

    id: str
    score: float
    cluster: int | None
    payload: dict[str, Json]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, nearest first; the run that their clusters belong to; the cluster that was searched.

    ``cluster`` is None if every point was searched.
    """

    run: str
    cluster: int | None
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A stored image. ``vectors`` holds the vectors that were asked for, by name."""

    id: str
    cluster: int | None
    payload: dict[str, Json]
    vectors: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection and the number of its points."""

    name: str
    points: int
    vectors: tuple[VectorInfo, ...]
    clusterings: tuple[str, ...]
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """An encoder of the server, and its execution provider.

    ``parts`` names the encoders that a mix consists of; it is empty for any other.
    """

    name: str
    dim: int
    fingerprint: str
    provider: str
    has_text: bool
    license: str
    source: str
    loaded: bool = True
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Info:
    """The encoders of a server, and its limits per image and per call."""

    encoders: tuple[EncoderInfo, ...]
    version: str
    max_image_bytes: int
    max_image_pixels: int
    max_batch_images: int
    uri_schemes: tuple[str, ...] = ()
