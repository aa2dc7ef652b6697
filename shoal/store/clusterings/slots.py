"""A point's slots: its cluster in the active run and in the other one."""

from __future__ import annotations

from shoal.store.model import Payload
from shoal.values import Json

FENCE = "fence"
"""The key, beside a point's slots, of the lowest fence whose runs may still write them."""


def cluster_of(payload: Payload, clustering: str, slot: str) -> int | None:
    """The cluster id in ``payload``'s slot; None when the point is not assigned there."""
    value: Json = payload.get("clusters")
    for key in (clustering, slot):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value if isinstance(value, int) else None
