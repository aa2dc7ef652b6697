"""The room on the embedded store's disk: watched before each write, and a reserve of it.

The engine writes to sparse files through memory maps. If the disk has no room for a page, the
kernel ends the process (SIGBUS), whatever the code does. So writes are refused while there is
still room. A reserve is set aside meanwhile, and is given up when something else fills the disk:
what is in memory can be written out then, and the next start finds the room that it needs.
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
from shoal.store.failures import NO_ROOM

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

_UNREAD = frozenset({"wal", "payload_storage"})
"""Directories of the engine whose sparse files are read only as far as something is in them."""

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
        self._in_memory = in_memory(root)
        self.watch()

    @property
    def refusal(self) -> str:
        """Why writes are refused, as far as was seen last; empty if they are accepted."""
        return self._refused

    def watch(self) -> None:
        """Looks at the disk now. Sets the reserve aside if there is room, or gives it up."""
        with self._lock:
            self._look()
            if self._refused:
                self._make_room(FLUSH_BYTES)
            elif not self._reserved():
                self._set_aside()

    def check_write(self) -> None:
        """DiskFull unless there is room for a write."""
        if not self._refused and time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        with self._lock:
            self._look()
            if self._refused:
                raise DiskFull(
                    self._refused, path=str(self._root), least_free=str(self._least_free)
                )

    def has_room(self, need: int) -> bool:
        """Whether ``need`` bytes are free, if it must be without the reserve."""
        with self._lock:
            return self._make_room(need)

    def check_open(self, directory: Path, *, clean: bool) -> None:
        """DiskFull unless there is room to open the shard under ``directory``.

        The engine writes a small file as it opens a shard. If not all was written out, it repeats
        the writes in its log. In memory, a page of a sparse file takes room as it is read.
        """
        need = OPEN_BYTES if clean else FILE_BYTES
        need += holes(directory) if self._in_memory else 0
        if not self.has_room(need):
            msg = (
                f"{directory} cannot be opened: the disk is full: expected {need / MIB:.1f} MiB "
                f"free, got {self._free() / MIB:.1f} MiB; make room, and ask again"
            )
            raise DiskFull(msg, path=str(directory), least_free=str(need))

    def _make_room(self, need: int) -> bool:
        if self._free() < need and self._reserved():
            with suppress(OSError):  # a file system that is read-only
                # The empty file says that there was a reserve: writes must not use its room.
                os.truncate(self._reserve, 0)
                _LOG.warning("the reserve of the disk is given up", extra=self._facts())
        return self._free() >= need

    def _reserved(self) -> int:
        """The bytes of the reserve; 0 if it was given up, or never set aside."""
        with suppress(FileNotFoundError):
            return self._reserve.stat().st_size
        return 0

    def _look(self) -> None:
        """Notes why writes are to be refused, if they are; a change is logged."""
        self._looked_at = time.monotonic()
        before, self._refused = self._refused, self._why()
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
        need = self._least_free
        if self._reserve.exists() and not self._reserved():
            need += self._reserve_size()
        if free < need:
            return (
                f"store {self._root}: the disk is full: expected at least "
                f"{need // MIB:,} MiB free, got {free // MIB:,} MiB; reads go on, and "
                "writes do as soon as there is room"
            )
        now = time.monotonic()
        if self._refused or now - self._probed_at >= PROBE_EVERY_S:
            self._probed_at = now
            # Not every quota shows in the number of free bytes.
            failed = _allocate(self._probe, FILE_BYTES)
            self._probe.unlink(missing_ok=True)
            if failed is not None:
                return (
                    f"store {self._root}: expected {FILE_BYTES // MIB} MiB that can be allocated, "
                    f"got {failed.strerror}; reads go on, and writes do as soon as there is room"
                )
        return ""

    def _set_aside(self) -> None:
        size = self._reserve_size()
        if self._free() < self._least_free + size:
            return
        if _allocate(self._reserve, size) is not None:
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


def holes(directory: Path) -> int:
    """The bytes of the files under ``directory`` that take no room yet, and that a start reads."""
    found = 0
    for parent, inside, names in os.walk(directory):
        inside[:] = [each for each in inside if each not in _UNREAD]
        for name in names:
            with suppress(FileNotFoundError):  # the engine may rename it meanwhile
                status = Path(parent, name).stat()
                found += max(0, status.st_size - status.st_blocks * 512)
    return found


def _allocate(path: Path, size: int) -> OSError | None:
    """Makes a file of ``size`` bytes that take room; gives the error if there is no room.

    A file system that cannot do this is no error.
    """
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as exc:
        return exc if exc.errno in NO_ROOM else None
    return None
