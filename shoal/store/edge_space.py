"""The room on the embedded store's disk: watched before each write, and a reserve of it.

The engine writes to sparse files through memory maps. If the disk has no room for a page, the
kernel ends the process (SIGBUS), whatever the code does. So writes are refused while there is
still room. Where there is little, something else may take it during a write: the holes of a shard
are filled before it is written to. A reserve is set aside meanwhile. It is used when something else
has filled the disk: what is in memory can be written out then, and the next start finds the room
that it needs.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from prometheus_client import Gauge

from shoal.errors import DiskFull
from shoal.store.edge_holes import allocate, every, fill, missing

_LOG = logging.getLogger(__name__)

MIB: Final = 1 << 20

RESERVE_BYTES = 96 * MIB
"""The size of the reserve, or a quarter of a small disk."""

FILE_BYTES = 32 * MIB
"""The size of the files by which the engine grows: its log, its vectors, its payloads."""

OPEN_BYTES = MIB // 4
"""The room for opening a shard that was written out."""

FLUSH_BYTES = 8 * MIB
"""The room for writing everything out: measured, 2 MiB for 16,384 points."""

TIGHT_BYTES = 2048 * MIB
"""Free bytes below which the holes of a shard are filled: they could be gone during a write."""

ROOMY_BYTES = 4096 * MIB
"""Free bytes above which nothing is allocated in memory, where it is paid for at once."""

LOOK_EVERY_S = 0.05
"""Time for which the number of free bytes is trusted: 15 us matter to a write of one field."""

PROBE_EVERY_S: Final = 1.0
"""Time for which an allocation that worked is taken to work again."""

WRITABLE = Gauge(
    "shoal_store_writable", "1 while the embedded store accepts writes, 0 while its disk is full."
)
FREE = Gauge("shoal_store_free_bytes", "Free bytes of the embedded store's disk.")


class Space:
    """The room of the directory ``root``, whose id is ``owner``. Thread-safe."""

    def __init__(self, root: Path, *, owner: str, least_free: int) -> None:
        self._root = root
        self._reserve = root / f".reserve-{owner}"
        self._probe = root / f".probe-{owner}"
        self._least_free = least_free
        self._lock = Lock()
        self._looked_at = -LOOK_EVERY_S
        self._probed_at = -PROBE_EVERY_S
        self._refused = ""
        self._tight = False
        self._in_memory = in_memory(root)
        self.watch()

    @property
    def refusal(self) -> str:
        """Why writes are refused, as far as was seen last; empty if they are accepted."""
        return self._refused

    def watch(self) -> None:
        """Looks at the disk now; sets the reserve aside if there is room for it."""
        with self._lock:
            self._look()
            if not self._refused and self._reserved() < self._reserve_size():
                self._set_aside()

    def check_write(self, directory: Path | None = None) -> None:
        """DiskFull unless there is room for a write to the shard under ``directory``."""
        trusted = time.monotonic() - self._looked_at < LOOK_EVERY_S
        if trusted and not self._refused and not self._tight:
            return
        with self._lock:
            self._look()
            if self._refused:
                raise self._full(self._refused, self._least_free)
            if directory is not None and self._tight:
                self._fill(directory, self._needed())

    def can_flush(self, directory: Path) -> bool:
        """Whether there is room to write out the shard under ``directory``; it may be the reserve.

        What was written lies in the large files, which have their room by then.
        """
        with self._lock:
            if self._free() >= TIGHT_BYTES:
                return True
            need = FLUSH_BYTES + missing(directory, _is_small)
            return self._make_room(need) and fill(directory, _is_small) is None

    def check_open(self, directory: Path, *, clean: bool) -> None:
        """DiskFull unless there is room to open the shard under ``directory``.

        The engine writes a small file as it opens a shard. If not all was written out, it repeats
        the writes in its log. In memory, a page of a sparse file takes room as it is read.
        """
        with self._lock:
            if self._free() >= TIGHT_BYTES:
                return
            chosen = every if not clean else _is_read if self._in_memory else _none
            need = OPEN_BYTES + missing(directory, chosen)
            if not self._make_room(need) or fill(directory, chosen) is not None:
                msg = (
                    f"{directory} cannot be opened: the disk is full: expected {need / MIB:.1f} "
                    f"MiB free, got {self._free() / MIB:.1f} MiB; make room, and ask again"
                )
                raise self._full(msg, need)

    def _fill(self, directory: Path, least_free: int) -> None:
        """Fills the holes of a shard; DiskFull unless ``least_free`` bytes stay free."""
        need = missing(directory)
        if not need:
            return
        failed = None if self._free() >= need + least_free else OSError()
        if failed is not None or fill(directory) is not None:
            msg = (
                f"{directory}: the disk is full: expected at least {least_free // MIB:,} MiB free "
                f"and {-(-need // MIB):,} MiB for files of this collection, got "
                f"{self._free() // MIB:,} MiB; reads go on, and writes do as soon as there is room"
            )
            raise self._full(msg, need + least_free)

    def _full(self, message: str, least_free: int) -> DiskFull:
        return DiskFull(message, path=str(self._root), least_free=str(least_free))

    def _make_room(self, need: int) -> bool:
        """Whether ``need`` bytes are free, if it must be with a part of the reserve."""
        short, reserved = need - self._free(), self._reserved()
        if short > 0 and reserved:
            with suppress(OSError):  # a file system that is read-only
                os.truncate(self._reserve, max(0, reserved - short - MIB))
                _LOG.warning("the reserve of the disk is used", extra=self._facts())
        return self._free() >= need

    def _reserved(self) -> int:
        """The bytes of the reserve; less than its size if it was used, 0 if it is not there."""
        with suppress(FileNotFoundError):
            return self._reserve.stat().st_size
        return 0

    def _look(self) -> None:
        """Notes why writes are to be refused, if they are; a change is logged."""
        self._looked_at = time.monotonic()
        before, self._refused = self._refused, self._why()
        self._tight = self._free() < TIGHT_BYTES
        WRITABLE.set(not self._refused)
        if self._refused and not before:
            _LOG.error("writes are refused: %s", self._refused, extra=self._facts())
        elif before and not self._refused:
            _LOG.info("writes are accepted again", extra=self._facts())

    def _why(self) -> str:
        found = os.statvfs(self._root)
        free = found.f_bavail * found.f_frsize
        FREE.set(free)
        if found.f_flag & os.ST_RDONLY:
            return f"store {self._root}: its file system is read-only; reads go on"
        need = self._needed()
        if free < need:
            return (
                f"store {self._root}: the disk is full: expected at least "
                f"{need // MIB:,} MiB free, got {free // MIB:,} MiB; reads go on, and "
                "writes do as soon as there is room"
            )
        if self._roomy(free):
            return ""
        now = time.monotonic()
        if self._refused or now - self._probed_at >= PROBE_EVERY_S:
            self._probed_at = now
            # Not every quota shows in the number of free bytes.
            failed = allocate(self._probe, FILE_BYTES, make=True)
            self._probe.unlink(missing_ok=True)
            if failed is not None:
                return (
                    f"store {self._root}: expected {FILE_BYTES // MIB} MiB that can be allocated, "
                    f"got {failed.strerror}; reads go on, and writes do as soon as there is room"
                )
        return ""

    def _needed(self) -> int:
        """The free bytes that a write needs: it must not take the room of a reserve in use."""
        used = self._reserve_size() - self._reserved() if self._reserve.exists() else 0
        return self._least_free + max(0, used)

    def _roomy(self, free: int) -> bool:
        """Whether the store is in memory, and much of it is free."""
        return self._in_memory and free > ROOMY_BYTES

    def _set_aside(self) -> None:
        if self._roomy(self._free()):
            return
        size = self._reserve_size()
        room = self._free() + self._reserved() >= self._least_free + size
        if room and allocate(self._reserve, size, make=True) is not None:
            self._reserve.unlink(missing_ok=True)

    def _reserve_size(self) -> int:
        found = os.statvfs(self._root)
        return int(min(RESERVE_BYTES, found.f_blocks * found.f_frsize // 4))

    def _free(self) -> int:
        found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize

    def _facts(self) -> dict[str, object]:
        return {
            "path": str(self._root),
            "free_bytes": self._free(),
            "least_free_bytes": self._least_free,
        }


def in_memory(path: Path) -> bool:
    """Whether ``path`` lies on a file system that is in memory."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            fields = line.split()  # proc(5): the device is third, the type follows a lone dash
            if fields[2] == number:
                return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def _none(path: Path, size: int) -> bool:
    del path, size
    return False


def _is_small(path: Path, size: int) -> bool:
    """Whether a flush may write to places of the file that nothing was written to before."""
    del path
    return size < FILE_BYTES


def _is_read(path: Path, size: int) -> bool:
    """Whether a start reads all of the file: the log and the payloads are read by need."""
    del size
    return not {"wal", "payload_storage"} & set(path.parts)
