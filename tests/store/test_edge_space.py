"""A full disk stops writes, and neither reads nor the process."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_disks import MIB, fill, small_disk

from shoal.errors import DiskFull
from shoal.store import (
    EVERYWHERE,
    Point,
    Query,
    Store,
    StoreConfig,
    VectorInfo,
    open_store,
    point_id,
)
from shoal.store import edge_space as space_module
from shoal.store.edge_shard import Shard
from shoal.store.edge_space import FILE_BYTES, FLUSH_BYTES, Space, holes, in_memory

TINY = VectorInfo("tiny", 8, "ab" * 32)
LEAST = 100 * MIB


@dataclass
class Disk:
    """A disk as the system tells of it."""

    free: int = 10_000 * MIB
    total: int = 100_000 * MIB
    read_only: bool = False
    refusal: int = 0
    """The number of the error that an allocation fails with; 0 for none."""
    allocated: list[tuple[str, int]] = field(default_factory=list)

    def statvfs(self, _: object) -> SimpleNamespace:
        flag = os.ST_RDONLY if self.read_only else 0
        blocks = self.total // 4096
        return SimpleNamespace(
            f_bavail=self.free // 4096, f_frsize=4096, f_blocks=blocks, f_flag=flag
        )

    def allocate(self, handle: int, start: int, size: int) -> None:
        assert start == 0
        self.allocated.append((Path(f"/proc/self/fd/{handle}").readlink().name, size))
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        os.truncate(handle, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(os, "statvfs", made.statvfs)
    monkeypatch.setattr(os, "posix_fallocate", made.allocate)
    monkeypatch.setattr(space_module, "LOOK_EVERY_S", 0.0)
    return made


@pytest.fixture
def space(tmp_path: Path, disk: Disk) -> Space:
    assert disk.free
    return Space(tmp_path, owner="ab", least_free=LEAST)


def test_write_needs_the_least_room(space: Space, disk: Disk, tmp_path: Path) -> None:
    """One byte less is refused with the numbers; the next write is accepted once there is room."""
    disk.free = LEAST
    space.check_write()
    disk.free = LEAST - 4096
    with pytest.raises(DiskFull, match="expected at least 100 MiB free, got 99 MiB") as caught:
        space.check_write()
    assert str(tmp_path) in caught.value.message
    assert caught.value.metadata["least_free"] == str(LEAST)
    assert space.refusal == caught.value.message
    disk.free = LEAST
    space.check_write()
    assert space.refusal == ""


def test_room_that_was_seen_is_trusted_for_a_moment(
    space: Space, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look costs as much as a small write. That there is none is never trusted."""
    now = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(space_module, "LOOK_EVERY_S", 0.05)
    space.check_write()
    disk.free = 0
    now += 0.04
    space.check_write()
    now += 0.02
    with pytest.raises(DiskFull):
        space.check_write()
    disk.free = LEAST
    space.check_write()


def test_read_only_file_system_is_refused(space: Space, disk: Disk) -> None:
    """Whatever is free on it."""
    disk.read_only = True
    with pytest.raises(DiskFull, match="read-only"):
        space.check_write()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EROFS])
def test_quota_is_found_by_an_allocation(
    space: Space, disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    """It is tried once a second while it works, and at each write while it does not."""
    now = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: now)
    disk.allocated.clear()
    for _ in range(3):
        space.check_write()
    assert disk.allocated == [(".probe-ab", FILE_BYTES)]
    disk.refusal = number
    space.check_write()
    now += 1.0
    for _ in range(2):
        with pytest.raises(DiskFull, match=f"got {os.strerror(number)}; reads go on"):
            space.check_write()
    disk.refusal = 0
    space.check_write()
    assert [each.name for each in tmp_path.iterdir() if "probe" in each.name] == []


def test_file_system_that_cannot_allocate_is_no_full_one(tmp_path: Path, disk: Disk) -> None:
    """Only a lack of room is one."""
    disk.refusal = errno.EOPNOTSUPP
    space = Space(tmp_path, owner="ab", least_free=LEAST)
    assert disk.allocated[0] == (".probe-ab", FILE_BYTES)
    space.check_write()
    assert space.refusal == ""


def test_change_is_logged_once(space: Space, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """Not at every write that is refused."""
    caplog.set_level(logging.INFO)
    disk.free = 5 * MIB
    for _ in range(3):
        space.watch()
    disk.free = LEAST + space_module.RESERVE_BYTES
    for _ in range(3):
        space.watch()
    told = [record.message.partition(":")[0] for record in caplog.records]
    told.remove("the reserve of the disk is given up")
    assert told == ["writes are refused", "writes are accepted again"]
    assert vars(caplog.records[0])["free_bytes"] == 5 * MIB


def test_metrics_tell_the_room(space: Space, disk: Disk) -> None:
    """Free bytes, and whether writes are accepted."""
    disk.free = 5 * MIB
    space.watch()
    assert (space_module.FREE._value.get(), space_module.WRITABLE._value.get()) == (5 * MIB, 0)
    disk.free = 500 * MIB
    space.watch()
    assert (space_module.FREE._value.get(), space_module.WRITABLE._value.get()) == (500 * MIB, 1)


def reserved(tmp_path: Path) -> int | None:
    """The bytes of the reserve's file; None if there is none."""
    reserve = tmp_path / ".reserve-ab"
    return reserve.stat().st_size if reserve.exists() else None


def test_reserve_is_set_aside_where_there_is_room(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; of a small disk it takes a quarter; not from the room that writes need."""
    monkeypatch.setattr(space_module, "RESERVE_BYTES", 64 * MIB)
    disk.free = LEAST + 64 * MIB - 4096
    made = Space(tmp_path, owner="ab", least_free=LEAST)
    assert reserved(tmp_path) is None
    disk.free = LEAST + 64 * MIB
    for _ in range(2):
        made.watch()
    assert reserved(tmp_path) == 64 * MIB
    assert [size for name, size in disk.allocated if "reserve" in name] == [64 * MIB]
    (tmp_path / ".reserve-ab").unlink()
    disk.total = 80 * MIB
    made.watch()
    assert reserved(tmp_path) == 20 * MIB
    (tmp_path / ".reserve-ab").unlink()
    disk.refusal = errno.EDQUOT
    Space(tmp_path, owner="cd", least_free=LEAST)
    assert list(tmp_path.iterdir()) == []


def test_reserve_is_given_up_for_what_must_be(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing out and opening may use it; writes may not, nor after the next start."""
    monkeypatch.setattr(space_module, "RESERVE_BYTES", 64 * MIB)
    space = Space(tmp_path, owner="ab", least_free=20 * MIB)
    disk.free = 8 * MIB
    with pytest.raises(DiskFull):
        space.check_write()
    assert space.has_room(8 * MIB)
    assert reserved(tmp_path) == 64 * MIB
    truncate = os.truncate

    def give_back(path: Path, size: int) -> None:
        disk.free += 64 * MIB
        truncate(path, size)

    monkeypatch.setattr(os, "truncate", give_back)
    assert space.has_room(9 * MIB)
    assert (reserved(tmp_path), disk.free) == (0, 72 * MIB)
    assert not space.has_room(73 * MIB)
    assert disk.free == 72 * MIB
    for _ in range(2):
        with pytest.raises(DiskFull, match="expected at least 84 MiB free, got 72 MiB"):
            space.check_write()
        space = Space(tmp_path, owner="ab", least_free=20 * MIB)
    disk.free = 84 * MIB
    space.check_write()
    assert reserved(tmp_path) == 0
    space.watch()
    assert reserved(tmp_path) == 64 * MIB
    disk.free = 20 * MIB
    space.check_write()


def test_reserve_is_given_up_as_the_disk_fills(space: Space, disk: Disk, tmp_path: Path) -> None:
    """Also while nobody writes: the next start may need it."""
    disk.free = 0
    space.watch()
    assert reserved(tmp_path) == 0


@pytest.mark.parametrize(
    ("state", "need"),
    [
        ((False, True), MIB // 4),
        ((False, False), FILE_BYTES),
        ((True, True), 3 * MIB + MIB // 4),
        ((True, False), FILE_BYTES + 3 * MIB),
    ],
)
def test_opening_needs_room(
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    state: tuple[bool, bool],
    need: int,
) -> None:
    """More if there is a log to repeat, or if pages that are read take room too."""
    memory, clean = state
    monkeypatch.setattr(space_module, "in_memory", lambda _: memory)
    space = Space(tmp_path, owner="ab", least_free=LEAST)
    shard = tmp_path / "photos"
    for name, size in (("vectors/chunk", 3 * MIB), ("wal/open-1", 50 * MIB)):
        (shard / name).parent.mkdir(parents=True)
        with (shard / name).open("wb") as file:
            file.truncate(size)
    assert holes(shard) == 3 * MIB
    disk.free = need
    space.check_open(shard, clean=clean)
    disk.free = need - 4096
    expected = (
        rf"photos cannot be opened: .* expected {need / MIB:.1f} MiB free, got {need / MIB:.1f} "
    )
    with pytest.raises(DiskFull, match=expected):
        space.check_open(shard, clean=clean)


def test_file_system_in_memory_is_known(tmp_path: Path) -> None:
    """By its type."""
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        assert in_memory(disk)
    assert not in_memory(Path("/proc"))


def test_shard_is_not_written_out_without_room(space: Space, disk: Disk, tmp_path: Path) -> None:
    """The engine would die of it. The log keeps the writes until there is room."""
    calls: list[str] = []
    engine = SimpleNamespace(
        flush=lambda: calls.append("flush"),
        update=lambda _: calls.append("update"),
        close=lambda: calls.append("close"),
    )
    shard = Shard(tmp_path, {}, space, engine)  # type: ignore[arg-type]
    shard.write(None, 5)  # type: ignore[arg-type]
    disk.free = 0
    shard.flush()
    assert (calls, shard.unflushed) == (["update"], 5)
    disk.free = FLUSH_BYTES
    shard.flush()
    assert (calls, shard.unflushed) == (["update", "flush"], 0)
    shard.write(None, 5)  # type: ignore[arg-type]
    disk.free = 0
    shard.close()
    assert calls == ["update", "flush", "update", "close"]
    assert (tmp_path / "unwritten").exists()


# A real disk


def point(key: int) -> Point:
    return Point(point_id(str(key)), {"tiny": np.eye(8, dtype=np.float32)[0]}, {"n": key})


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Callable[[], Store]]]:
    """A disk of 300 MiB, and a way to open the store on it."""
    monkeypatch.setattr(space_module, "RESERVE_BYTES", 64 * MIB)
    with small_disk(tmp_path / "disk", size_mib=300) as disk:
        config = StoreConfig(path=disk / "store", min_free_mib=30)
        yield disk, lambda: open_store(config)


def read(store: Store) -> int:
    """The number of points, read in every way."""
    (hit,) = store.search("photos", Query(np.eye(8, dtype=np.float32)[0], limit=1))
    assert hit.score > 0.99
    assert sum(len(block) for block in store.scan("photos")) == store.count("photos")
    return store.count("photos")


def test_full_disk_stops_writes_alone(
    opened: tuple[Path, Callable[[], Store]], caplog: pytest.LogCaptureFixture
) -> None:
    """Reads, flushes, closing and the next starts work; all is there, and writes work again."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        store.upsert("photos", [point(i) for i in range(500)])
        filler = fill(disk)
        assert store.refusal == ""
        store.flush()
        assert "the disk is full" in store.refusal
        for write in (
            lambda: store.upsert("photos", [point(501)]),
            lambda: store.set_payload("photos", {"n": 0}, where=EVERYWHERE),
            lambda: store.delete("photos", EVERYWHERE),
            lambda: store.delete_fields("photos", ["n"], where=EVERYWHERE),
            lambda: store.create_collection("more", [TINY]),
            lambda: store.ensure_clustering("photos", "colour"),
        ):
            with pytest.raises(DiskFull):
                write()
        assert read(store) == 500
        store.flush()
        assert "the reserve of the disk is given up" in caplog.text
    for _ in range(2):
        with open_it() as store:
            assert read(store) == 500
            with pytest.raises(DiskFull):
                store.upsert("photos", [point(501)])
    with open_it() as store:
        filler.unlink()
        store.upsert("photos", [point(501)])
        store.create_collection("more", [TINY])
        assert (read(store), store.refusal) == (501, "")
        store.drop_collection("more")


def test_dropping_makes_room_on_a_full_disk(opened: tuple[Path, Callable[[], Store]]) -> None:
    """It is the one change that needs none."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        fill(disk)
        store.drop_collection("photos")
        assert store.collections() == []


def test_disk_without_any_room_is_told(opened: tuple[Path, Callable[[], Store]]) -> None:
    """Not even the reserve is left: the collection is refused by name, and opens later."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        store.upsert("photos", [point(i) for i in range(500)])
        filler = fill(disk)
    for reserve in (disk / "store").glob(".reserve-*"):
        reserve.unlink()
    fill(disk)
    with open_it() as store:
        assert [each.name for each in store.collections()] == ["photos"]
        with pytest.raises(DiskFull, match="photos"):
            store.count("photos")
        filler.unlink()
        assert read(store) == 500
