"""How hits are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal.app.cli.printing.output import print_table

if TYPE_CHECKING:
    from shoal.client import Hit


def place(hit: Hit) -> str:
    """Where an image is: its uri, else its key, else its id."""
    return str(hit.payload.get("uri") or hit.payload.get("key") or hit.id)


def hit_json(hit: Hit) -> dict[str, object]:
    """A hit for programs."""
    found: dict[str, object] = {
        "id": hit.id,
        "score": hit.score,
        "cluster": hit.cluster,
        "payload": hit.payload,
    }
    if hit.vector is not None:
        found["vector"] = hit.vector
    return found


def print_hits(hits: Sequence[Hit], *, fields: Sequence[str] = ()) -> None:
    """A table of hits, nearest first, with the payload's ``fields`` as columns."""
    print_table(
        ("score", "cluster", *fields, "id", "image"),
        [
            (
                f"{hit.score:.4f}",
                "-" if hit.cluster is None else str(hit.cluster),
                *(str(hit.payload.get(name, "-")) for name in fields),
                hit.id,
                place(hit),
            )
            for hit in hits
        ],
    )
