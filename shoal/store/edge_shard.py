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
"""Points written between flushes: 34 MB of log at 512-d, under a second to replay."""

_OTHER_WRITE = 16
"""What a write by filter counts as: a thousand ids in it weigh about as much as so many points."""


@dataclass(slots=True)
class Shard:
    """One collection. ``engine`` is None once it is closed. Hold ``lock`` around ``live``."""

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
        """Apply ``operation``, which carries ``points`` whole points (None: it is by filter)."""
        with self.lock:
            self.live().update(operation)
            self.unflushed += _OTHER_WRITE if points is None else points
            if self.unflushed >= FLUSH_EVERY_POINTS:
                self.flush()

    def flush(self) -> None:
        """Write everything out, which also shortens the log; nothing to do costs nothing."""
        with self.lock:
            if not self.unflushed:
                return
            self.live().flush()
            self.unflushed = 0

    def close(self, *, flush: bool = True) -> None:
        """Let go, having written everything out if ``flush``; wait for the call in progress."""
        with self.lock:
            engine, self.engine = self.engine, None
            if engine is not None:
                if flush:
                    engine.flush()
                engine.close()
