"""The layout of a collection in an engine: its metadata, its vectors, its payload indexes.

Metadata has one key per clustering rather than a list in one key: engines merge metadata by
top-level key, so two processes that add clusterings at once both succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from shoal.errors import Conflict, EncoderMismatch, InvalidArgument, Unsupported
from shoal.store.engines import IndexSchema
from shoal.store.model import SLOTS, Collection, is_records_name, slot_field
from shoal.values import VectorInfo

FORMAT = 1
"""The layout that this version writes and reads."""

MAX_DIM = 65_536
"""Qdrant's limit on the components of a vector."""

_KEY = "shoal"
_CLUSTERING_PREFIX = "shoal:clustering:"

_KEYWORD = models.PayloadSchemaType.KEYWORD
_FLOAT = models.PayloadSchemaType.FLOAT
# For matches only: a range of cluster ids means nothing, and matching is faster (qdrant#9926).
_CLUSTER = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True, range=False)
_MAIN_INDEXES: dict[str, IndexSchema] = {"source": _KEYWORD, "ingested_at": _FLOAT}
_RECORDS_INDEXES: dict[str, IndexSchema] = {
    "kind": _KEYWORD,
    "clustering": _KEYWORD,
    "run": _KEYWORD,
    "cluster": _CLUSTER,
}

RETIRED_INDEXES = frozenset({"fence", "lease_owner", "lease_expires"})
"""Fields of records that earlier versions indexed: the conditions of writes look at them."""


def check_vectors(vectors: Sequence[VectorInfo]) -> None:
    """InvalidArgument unless ``vectors`` can make a collection."""
    names = [spec.name for spec in vectors]
    if not names or not all(names) or len(set(names)) != len(names):
        raise InvalidArgument(
            f"vectors: expected one or more distinct names, got {names}", field="vectors"
        )
    for spec in vectors:
        if not 0 < spec.dim <= MAX_DIM:
            raise InvalidArgument(
                f"vector {spec.name!r}: expected a dim of 1 to {MAX_DIM}, got {spec.dim}",
                field="vectors",
            )


def vectors_config(vectors: Sequence[VectorInfo]) -> dict[str, models.VectorParams]:
    """The engine's description of ``vectors``."""
    return {
        spec.name: models.VectorParams(size=spec.dim, distance=models.Distance.COSINE)
        for spec in vectors
    }


def metadata(vectors: Sequence[VectorInfo], created_at: float) -> dict[str, Any]:
    """The metadata of a new collection."""
    return {
        _KEY: {
            "format": FORMAT,
            "vectors": [
                {"name": spec.name, "dim": spec.dim, "fingerprint": spec.fingerprint}
                for spec in vectors
            ],
            "created_at": created_at,
        }
    }


def clustering_metadata(clustering: str) -> dict[str, Any]:
    """The metadata that one more clustering adds."""
    return {_CLUSTERING_PREFIX + clustering: {"slots": list(SLOTS)}}


def is_ours(noted: dict[str, Any] | None) -> bool:
    """Whether Shoal made the collection with this metadata."""
    return bool(noted) and _KEY in (noted or {})


def parse_metadata(name: str, noted: dict[str, Any] | None) -> Collection:
    """The collection ``name``, read from its metadata.

    Raises:
        Conflict: Shoal did not make it, or another version of Shoal did.
    """
    body = (noted or {}).get(_KEY)
    if not isinstance(body, dict):
        raise Conflict(
            f"collection {name!r} exists but was not made by Shoal: its metadata lacks "
            f"{_KEY!r}. Choose another name",
            collection=name,
        )
    if body.get("format") != FORMAT:
        raise Conflict(
            f"collection {name!r}: expected format {FORMAT}, got {body.get('format')}: "
            "it was made by another version of Shoal",
            collection=name,
        )
    clusterings = sorted(
        key.removeprefix(_CLUSTERING_PREFIX)
        for key in noted or {}
        if key.startswith(_CLUSTERING_PREFIX)
    )
    return Collection(
        name=name,
        vectors=tuple(
            VectorInfo(str(row["name"]), int(row["dim"]), str(row["fingerprint"]))
            for row in body["vectors"]
        ),
        clusterings=tuple(clusterings),
        created_at=float(body["created_at"]),
    )


def check_same_vectors(existing: Collection, wanted: Sequence[VectorInfo]) -> None:
    """Accepts ``wanted`` only if ``existing`` has each of these vectors, from the same encoder.

    Raises:
        EncoderMismatch: another encoder made the collection's vectors.
        Unsupported: the collection has some of ``wanted``, and the others would have to be added.
    """
    have = {spec.name: spec for spec in existing.vectors}
    missing = [spec for spec in wanted if spec.name not in have]
    for spec in wanted:
        other = have.get(spec.name, spec)
        if (other.dim, other.fingerprint) != (spec.dim, spec.fingerprint):
            raise _mismatch(existing.name, other, spec)
    if not missing:
        return
    if len(missing) == len(wanted):
        raise _mismatch(existing.name, existing.vectors[0], missing[0])
    raise Unsupported(
        f"collection {existing.name!r} has the vectors {', '.join(have)}: adding "
        f"{', '.join(spec.name for spec in missing)} is not supported; make a new collection",
        collection=existing.name,
    )


def indexes(name: str, clusterings: Sequence[str]) -> dict[str, IndexSchema]:
    """The payload indexes of the collection or companion ``name``, by field."""
    if is_records_name(name):
        return dict(_RECORDS_INDEXES)
    slots: dict[str, IndexSchema] = {
        slot_field(clustering, slot): _CLUSTER for clustering in clusterings for slot in SLOTS
    }
    return {**_MAIN_INDEXES, **slots}


def facet_fields(name: str, clusterings: Sequence[str]) -> dict[str, type[str | int]]:
    """The fields whose values can be counted, and the type of value that their index holds."""
    return {
        field: str if kind is _KEYWORD else int
        for field, kind in indexes(name, clusterings).items()
        if kind is not _FLOAT
    }


def _mismatch(name: str, have: VectorInfo, wanted: VectorInfo) -> EncoderMismatch:
    return EncoderMismatch(
        f"collection {name!r} was made with the encoder {have.name!r} (fingerprint "
        f"{have.fingerprint[:12]}, {have.dim}-d), got {wanted.name!r} (fingerprint "
        f"{wanted.fingerprint[:12]}, {wanted.dim}-d): use the same encoder or another collection",
        collection=name,
        expected_fingerprint=have.fingerprint,
        got_fingerprint=wanted.fingerprint,
    )
