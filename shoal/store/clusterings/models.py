"""The models of runs: each gives new points the clusters that its run would have given them."""

from __future__ import annotations

import base64

from shoal.store.clusterings.records import Records, of_run
from shoal.store.model import Point, Scan, point_id

_PIECE = 384 * 1024
"""The bytes of a model in one record: 512 KiB as base64, small for any engine's messages."""


class Models(Records):
    """The models of a collection's runs."""

    def put_model(self, clustering: str, run: str, model: bytes, *, fence: int) -> None:
        """Stores the packed ``model`` of ``run`` in pieces; ``fence`` is that of its lease."""
        pieces = range(0, len(model), _PIECE)
        self._store.upsert(
            self._records,
            [
                Point(
                    point_id(f"model/{clustering}/{run}/{at}"),
                    {},
                    {
                        "kind": "model",
                        "clustering": clustering,
                        "run": run,
                        "fence": fence,
                        "offset": at,
                        "data": base64.b64encode(model[at : at + _PIECE]).decode(),
                    },
                )
                for at in pieces
            ],
        )

    def model(self, clustering: str, run: str) -> bytes:
        """The packed model of ``run``; empty if none is stored."""
        where = of_run("model", clustering, run)
        found = [p for b in self._store.scan(self._records, Scan(where=where)) for p in b.payloads]
        found.sort(key=lambda payload: int(payload["offset"]))  # type: ignore[arg-type]
        return b"".join(base64.b64decode(str(payload["data"])) for payload in found)
