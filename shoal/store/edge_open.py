"""Which shards of the embedded engine are open: a bounded number, those used last.

An open shard takes a thread or two and some 50 memory maps, of which a process has 65,530.
"""

from __future__ import annotations

import logging
import time
from threading import Lock

import qdrant_edge as edge

from shoal.errors import NotFound, ShoalError
from shoal.store.edge_shard import Shard
from shoal.store.failures import engine_errors

_LOG = logging.getLogger(__name__)

MOST_OPEN = 256
"""The most open shards: 128 collections with their companions. A map is made for each 32 MiB of a
shard too, so 256 of 1 GB each stay under half of the maps that a process has."""

IDLE_S = 600.0
"""Time without a call after which a shard is closed. Opening it again takes some 30 ms."""


class OpenShards:
    """The open shards of a store. Thread-safe.

    A shard is closed under its lock, which a thread that holds another's lock only tries to take:
    so nobody waits for each other. If all are in use, more than ``most`` are open for a moment.
    """

    def __init__(self, *, most: int = MOST_OPEN) -> None:
        self._most = most
        self._lock = Lock()
        self._open: set[Shard] = set()

    def live(self, shard: Shard) -> edge.EdgeShard:
        """The engine of ``shard``, whose lock the caller holds; others are closed to make room.

        Raises:
            NotFound: it was dropped.
            ShoalError: it cannot be opened.
        """
        if shard.engine is None and not shard.dropped:
            self._close_oldest(self._most - 1)
            try:
                shard.live()
            except NotFound:
                raise
            except ShoalError:
                # The system may have refused a thread, a map or a file: with fewer it may not.
                if not self._close_oldest(0):
                    raise
                shard.live()
            with self._lock:
                self._open.add(shard)
        return shard.live()

    def close_idle(self, idle_s: float = IDLE_S) -> None:
        """Closes the shards that were not used for ``idle_s`` seconds."""
        since = time.monotonic() - idle_s
        for shard in self._oldest():
            if shard.used_at < since:
                self._try_to_close(shard)

    def _oldest(self) -> list[Shard]:
        """The open shards, the one used longest ago first."""
        with self._lock:
            self._open = {shard for shard in self._open if shard.engine is not None}
            return sorted(self._open, key=lambda shard: shard.used_at)

    def _close_oldest(self, most: int) -> int:
        """Closes shards that nobody uses until ``most`` are open; the number that it closed."""
        closed = 0
        shards = self._oldest()
        for shard in shards:
            if len(shards) - closed <= most:
                break
            closed += self._try_to_close(shard)
        return closed

    def _try_to_close(self, shard: Shard) -> bool:
        """Closes ``shard`` unless it is in use; True if it did."""
        if not shard.lock.acquire(blocking=False):
            return False
        try:
            if shard.engine is None:
                return False
            with engine_errors(f"collection {shard.directory.name!r}: closing"):
                shard.close()
        except ShoalError:
            # Nothing is lost: the log has what could not be written out.
            _LOG.exception("not written out", extra={"collection": shard.directory.name})
        finally:
            shard.lock.release()
        return True
