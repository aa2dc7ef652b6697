"""The vector store: the one place that knows Qdrant, as a server, embedded or in memory.

``open_store(StoreConfig(...))`` gives a ``Store``; the other names here are the values that it
takes and gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.store.config import StoreConfig
from shoal.store.model import (
    DEFAULT_CLUSTERING,
    EVERYWHERE,
    RESERVED_FIELDS,
    SLOTS,
    AnyOf,
    Block,
    Collection,
    Condition,
    Empty,
    Equals,
    Filter,
    Hit,
    IdIn,
    Payload,
    Point,
    Query,
    Range,
    Record,
    Scan,
    VectorBlock,
    VectorScan,
    arrival,
    canonical_id,
    other_slot,
    point_id,
    records_name,
    slot_field,
)
from shoal.values import Json, VectorInfo
from shoal.vectors import NOISE, Labels, Vectors

if TYPE_CHECKING:
    from shoal.store.gateway import Store
    from shoal.store.open import open_store
else:

    def __getattr__(name: str) -> object:
        """``Store`` and ``open_store``: imported when asked for, since Qdrant's client is heavy."""
        if name == "Store":
            from shoal.store.gateway import Store as found  # noqa: PLC0415, N813 - heavy
        elif name == "open_store":
            from shoal.store.open import open_store as found  # noqa: PLC0415 - heavy
        else:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        globals()[name] = found
        return found


__all__ = [
    "DEFAULT_CLUSTERING",
    "EVERYWHERE",
    "NOISE",
    "RESERVED_FIELDS",
    "SLOTS",
    "AnyOf",
    "Block",
    "Collection",
    "Condition",
    "Empty",
    "Equals",
    "Filter",
    "Hit",
    "IdIn",
    "Json",
    "Labels",
    "Payload",
    "Point",
    "Query",
    "Range",
    "Record",
    "Scan",
    "Store",
    "StoreConfig",
    "VectorBlock",
    "VectorInfo",
    "VectorScan",
    "Vectors",
    "arrival",
    "canonical_id",
    "open_store",
    "other_slot",
    "point_id",
    "records_name",
    "slot_field",
]
