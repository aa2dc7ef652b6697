"""One collection of the embedded engine: its shard, its lock and its write-ahead log.

A shard is opened when it is first used, and may be closed and opened again at any time between two
calls. The log makes a write survive a killed process. The engine never shortens it by itself:
without a flush it grows with every write, and the next start replays all of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import qdrant_edge as edge

from shoal.errors import NotFound, ShoalError
from shoal.store import edge_files as files
from shoal.store.edge_check import disagreements, rebuild_index
from shoal.store.edge_models import SEARCH_THREADS
from shoal.store.edge_space import Space
from shoal.store.failures import engine_errors

_LOG = logging.getLogger(__name__)

FLUSH_EVERY_POINTS = 16_384
"""Points written between two flushes: 34 MB of log at 512-d, which replays in under a second."""

_OTHER_WRITE = 16
"""The points that one write by filter counts for: a thousand ids weigh about as much as these."""

_VERSIONS = itertools.count(1)


@dataclass(slots=True, eq=False)
class Shard:
    """One collection. ``engine`` is None while it is closed. Callers must hold ``lock``."""

    directory: Path
    metadata: dict[str, Any]
    space: Space
    engine: edge.EdgeShard | None = None
    dropped: bool = False
    unflushed: int = 0
    version: int = field(default_factory=lambda: next(_VERSIONS))
    """Another one after each change of the collection; no two collections have the same."""
    used_at: float = 0.0
    """When it was last used, by the monotonic clock."""
    noted: bool = False
    """Whether the directory notes that there are writes which are not written out."""
    unchecked: bool = False
    """True if the check after an unclean stop failed."""
    lock: RLock = field(default_factory=RLock)

    def live(self) -> edge.EdgeShard:
        """The shard, opened if it is closed; NotFound if it was dropped meanwhile."""
        self.used_at = time.monotonic()
        if self.dropped:
            raise NotFound(f"collection {self.directory.name!r} was dropped")
        if self.engine is None:
            self.engine = self._opened()
        return self.engine

    def write(self, operation: edge.UpdateOperation, points: int | None) -> None:
        """Applies ``operation``: ``points`` whole points, or None for one by filter."""
        with self.lock:
            engine = self.live()
            if not self.noted:
                files.note_unwritten(self.directory)
                self.noted = True
            self.unflushed += _OTHER_WRITE if points is None else points
            self.note_change()
            engine.update(operation)
            if self.unflushed >= FLUSH_EVERY_POINTS:
                self.flush()

    def note_change(self) -> None:
        """Gives the collection, which is about to change, another version."""
        self.version = next(_VERSIONS)

    def flush(self) -> None:
        """Writes everything out, which shortens the log.

        Does nothing if all is written out, or if the disk has no room for it.
        """
        with self.lock:
            if self.engine is None or not self.unflushed:
                return
            if not self.space.can_flush(self.directory):
                return
            self.engine.flush()
            self._note_written()

    def close(self, *, flush: bool = True) -> None:
        """Waits for the call in progress, writes everything out if ``flush``, and lets go.

        If the disk has no room for it, the log keeps what was not written out.
        """
        with self.lock:
            engine, self.engine = self.engine, None
            if engine is None:
                return
            try:
                if flush and self.space.can_flush(self.directory):
                    engine.flush()
                    self._note_written()
            finally:
                engine.close()
                self.unflushed = 0

    def _note_written(self) -> None:
        self.unflushed = 0
        if not self.unchecked:
            files.note_written(self.directory)
            self.noted = False

    def _opened(self) -> edge.EdgeShard:
        """The shard, opened; after an unclean stop its indexes are checked against its payloads."""
        self.noted = files.is_unwritten(self.directory)
        self.space.check_open(self.directory, clean=not self.noted)
        with engine_errors(f"collection {self.directory.name!r}"):
            engine = edge.EdgeShard.load(*_how(self.directory / "shard"))
        if self.noted:
            self.unchecked, self.unflushed = True, _OTHER_WRITE
            try:
                with engine_errors(f"collection {self.directory.name!r}: the check of its indexes"):
                    self.space.check_write(self.directory)
                    _mend(engine, self.directory.name)
                self.unchecked = False
            except ShoalError:
                # The collection is as usable as before, and the next opening checks it again.
                _LOG.exception("not checked", extra={"collection": self.directory.name})
        return engine


def _how(shard: Path) -> tuple[str] | tuple[str, edge.EdgeConfig]:
    """How the shard in the directory ``shard`` is loaded: with few threads.

    By itself the engine starts as many threads for each shard as the machine has cores, at least
    eight. Shards of earlier versions were made so.
    """
    try:
        noted = json.loads((shard / "edge_config.json").read_text(encoding="utf-8"))
        sizes = {name: int(params["size"]) for name, params in noted["vectors"].items()}
        threads = noted.get("max_search_threads")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return (str(shard),)  # the engine says what is wrong with it
    if threads == SEARCH_THREADS:
        return (str(shard),)
    vectors = {
        name: edge.EdgeVectorParams(size=size, distance=edge.Distance.Cosine)
        for name, size in sizes.items()
    }
    return str(shard), edge.EdgeConfig(vectors=vectors, max_search_threads=SEARCH_THREADS)


def _mend(engine: edge.EdgeShard, collection: str) -> None:
    """Makes the indexes that disagree with the payloads anew, and says so."""
    started = time.monotonic()
    found = disagreements(engine)
    for each in found:
        _LOG.warning(
            "the index of a field disagrees with the payloads after an unclean stop: made anew",
            extra={"collection": collection, **each.facts()},
        )
        rebuild_index(engine, each.field)
    for each in disagreements(engine) if found else ():
        _LOG.error(
            "the index of a field still disagrees with the payloads",
            extra={"collection": collection, **each.facts()},
        )
    _LOG.info(
        "indexes checked after an unclean stop",
        extra={
            "collection": collection,
            "disagreed": len(found),
            "seconds": round(time.monotonic() - started, 3),
        },
    )
