"""One collection of the embedded engine: an open shard, its lock and its write-ahead log.

The log makes a write survive a killed process. The engine never shortens it by itself: without a
flush it grows with every write, and the next start replays all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import qdrant_edge as edge

from shoal.errors import NotFound

FLUSH_EVERY_POINTS = 16_384
"""Points written between two flushes: 34 MB of log at 512-d, which replays in under a second."""

_OTHER_WRITE = 16
"""The points that one write by filter counts for: a thousand ids weigh about as much as these."""


@dataclass(slots=True)
class Shard:
    """One collection. ``engine`` is None once closed. Callers of ``live`` must hold ``lock``."""

    directory: Path
    metadata: dict[str, Any]
    engine: edge.EdgeShard | None
    unflushed: int = 0
    lock: RLock = field(default_factory=RLock)

    def live(self) -> edge.EdgeShard:
        """The open shard; NotFound if it was dropped meanwhile."""
        if self.engine is None:
            raise NotFound(f"collection {self.directory.name!r} was dropped")
        return self.engine

    def write(self, operation: edge.UpdateOperation, points: int | None) -> None:
        """Applies ``operation``: ``points`` whole points, or None for one by filter."""
        with self.lock:
            self.live().update(operation)
            self.unflushed += _OTHER_WRITE if points is None else points
            if self.unflushed >= FLUSH_EVERY_POINTS:
                self.flush()

    def flush(self) -> None:
        """Writes everything out, which shortens the log; does nothing if all is written out."""
        with self.lock:
            if not self.unflushed:
                return
            self.live().flush()
            self.unflushed = 0

    def close(self, *, flush: bool = True) -> None:
        """Waits for the call in progress, writes everything out if ``flush``, and lets go."""
        with self.lock:
            engine, self.engine = self.engine, None
            if engine is not None:
                if flush:
                    engine.flush()
                engine.close()
