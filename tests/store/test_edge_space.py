"""A full disk stops writes, and neither reads nor the process."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_disks import MIB, fill_up, small_disk

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
from shoal.store.edge_holes import allocate, fill, missing
from shoal.store.edge_shard import Shard
from shoal.store.edge_space import (
    FILE_BYTES,
    FLUSH_BYTES,
    OPEN_BYTES,
    ROOMY_BYTES,
    TIGHT_BYTES,
    Space,
    in_memory,
)

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
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "writes are refused",
        "writes are accepted again",
    ]
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


def test_reserve_is_used_for_what_must_be(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing out may take a part; writes may not have that part, nor after the next start."""
    monkeypatch.setattr(space_module, "RESERVE_BYTES", 64 * MIB)
    shard = tmp_path / "shard"
    shard.mkdir()
    space = Space(tmp_path, owner="ab", least_free=20 * MIB)
    disk.free = FLUSH_BYTES
    with pytest.raises(DiskFull):
        space.check_write()
    assert space.can_flush(shard)
    assert reserved(tmp_path) == 64 * MIB
    disk.free = FLUSH_BYTES - 4 * MIB
    truncate = os.truncate

    def give_back(path: Path, size: int) -> None:
        disk.free += path.stat().st_size - size
        truncate(path, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "truncate", give_back)
        assert space.can_flush(shard)
    assert (reserved(tmp_path), disk.free) == (59 * MIB, FLUSH_BYTES + MIB)
    for _ in range(2):
        with pytest.raises(DiskFull, match="expected at least 25 MiB free, got 9 MiB"):
            space.check_write()
        space = Space(tmp_path, owner="ab", least_free=20 * MIB)
    disk.free = 25 * MIB
    space.check_write()
    assert reserved(tmp_path) == 59 * MIB
    space.watch()
    assert reserved(tmp_path) == 64 * MIB
    disk.free = 20 * MIB
    space.check_write()


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The files of a shard: 3 MiB that a start reads, 50 MiB of a log."""
    place = tmp_path / "photos"
    sparse(place / "vectors" / "chunk", 3 * MIB)
    sparse(place / "wal" / "open-1", 50 * MIB)
    return place


@pytest.mark.parametrize(
    ("state", "holes"),
    [
        ((False, True), 0),
        ((False, False), 53 * MIB),
        ((True, True), 3 * MIB),
        ((True, False), 53 * MIB),
    ],
)
def test_opening_needs_room(
    shard: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    state: tuple[bool, bool],
    holes: int,
) -> None:
    """More if there is a log to repeat, or if pages that are read take room too."""
    memory, clean = state
    monkeypatch.setattr(space_module, "in_memory", lambda _: memory)
    space = Space(shard.parent, owner="ab", least_free=LEAST)
    disk.allocated.clear()
    need = OPEN_BYTES + holes
    disk.free = need - 4096
    said = f"{need / MIB:.1f}"
    expected = rf"photos cannot be opened: .* expected {said} MiB free, got {said} MiB"
    (shard.parent / ".reserve-ab").unlink(missing_ok=True)
    with pytest.raises(DiskFull, match=expected):
        space.check_open(shard, clean=clean)
    assert disk.allocated == []
    disk.free = need
    space.check_open(shard, clean=clean)
    assert sum(size for _, size in disk.allocated) == holes
    disk.allocated.clear()
    disk.free = TIGHT_BYTES
    space.check_open(shard, clean=clean)
    assert disk.allocated == []


def test_holes_are_filled_before_a_write_where_room_is_tight(
    space: Space, disk: Disk, shard: Path
) -> None:
    """Something else may take the room during the write; where there is much, it cannot."""
    disk.allocated.clear()
    disk.free = TIGHT_BYTES
    space.check_write(shard)
    assert disk.allocated == []
    disk.free = TIGHT_BYTES - 4096
    space.check_write(shard)
    assert sorted(disk.allocated) == [("chunk", 3 * MIB), ("open-1", 50 * MIB)]
    disk.free = LEAST + 53 * MIB
    space.check_write(shard)
    disk.free = LEAST + 52 * MIB
    said = "expected at least 100 MiB free and 53 MiB for files of this collection, got 152 MiB"
    with pytest.raises(DiskFull, match=said):
        space.check_write(shard)
    space.check_write()
    disk.free = LEAST + 53 * MIB
    disk.refusal = errno.ENOSPC  # somebody was faster
    with pytest.raises(DiskFull, match="for files of this collection"):
        space.check_write(shard)


def test_flush_fills_the_small_files_only(space: Space, disk: Disk, shard: Path) -> None:
    """The large ones have room where something was written; a flush that has none is not tried."""
    disk.allocated.clear()
    disk.free = TIGHT_BYTES - 4096
    assert space.can_flush(shard)
    assert disk.allocated == [("chunk", 3 * MIB)]
    disk.refusal = errno.ENOSPC
    assert not space.can_flush(shard)
    disk.free = TIGHT_BYTES
    assert space.can_flush(shard)


def test_holes_are_filled_without_a_change(tmp_path: Path) -> None:
    """Every byte is as before, and takes room; a file that goes meanwhile is left out."""
    sparse(tmp_path / "deep" / "file", 3 * MIB)
    with (tmp_path / "deep" / "file").open("r+b") as file:
        file.seek(MIB)
        file.write(b"x" * 5000)
    (tmp_path / "gone").symlink_to("nowhere")
    before = (tmp_path / "deep" / "file").read_bytes()
    assert 0 < missing(tmp_path) < 3 * MIB
    assert missing(tmp_path, lambda _, size: size < MIB) == 0
    assert fill(tmp_path) is None
    assert missing(tmp_path) == 0
    assert (tmp_path / "deep" / "file").read_bytes() == before
    assert allocate(tmp_path / "never", MIB, make=False) is None
    assert not (tmp_path / "never").exists()


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
    """A disk of 450 MiB, and a way to open the store on it. A shard takes 100 MiB there."""
    monkeypatch.setattr(space_module, "RESERVE_BYTES", 64 * MIB)
    with small_disk(tmp_path / "disk", size_mib=450) as disk:
        config = StoreConfig(path=disk / "store", min_free_mib=30)
        yield disk, lambda: open_store(config)


def read(store: Store) -> int:
    """The number of points, read in every way."""
    (hit,) = store.search("photos", Query(np.eye(8, dtype=np.float32)[0], limit=1))
    assert hit.score > 0.99
    assert sum(len(block) for block in store.scan("photos")) == store.count("photos")
    return store.count("photos")


def test_full_disk_stops_writes_alone(opened: tuple[Path, Callable[[], Store]]) -> None:
    """Reads, flushes, closing and the next starts work; all is there, and writes work again."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        store.upsert("photos", [point(i) for i in range(500)])
        filler = fill_up(disk)
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
    for _ in range(2):
        with open_it() as store:
            assert read(store) == 500
            with pytest.raises(DiskFull):
                store.upsert("photos", [point(501)])
    with open_it() as store:
        filler.unlink()
        store.upsert("photos", [point(501)])
        assert (read(store), store.refusal) == (501, "")


def test_dropping_makes_room_on_a_full_disk(opened: tuple[Path, Callable[[], Store]]) -> None:
    """It is the one change that needs none."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        fill_up(disk)
        store.drop_collection("photos")
        assert store.collections() == []


def test_disk_that_fills_up_during_writes_kills_nobody(
    opened: tuple[Path, Callable[[], Store]],
) -> None:
    """Whenever it happens: the writes so far are there, also for the next start."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        store.upsert("photos", [point(0)])
        filling = threading.Thread(target=fill_up, args=(disk,))
        filling.start()
        written, full = 1, False
        while not full:
            try:
                store.upsert("photos", [point(written)])
                written += 1
            except DiskFull:
                full = True
        filling.join()
        assert written <= read(store) <= written + 1
    with open_it() as store:
        assert written <= read(store) <= written + 1


def test_disk_without_any_room_is_told(opened: tuple[Path, Callable[[], Store]]) -> None:
    """Not even the reserve is left: the collection is refused by name, and opens later."""
    disk, open_it = opened
    with open_it() as store:
        store.create_collection("photos", [TINY])
        store.upsert("photos", [point(i) for i in range(500)])
    filler = fill_up(disk)
    for reserve in (disk / "store").glob(".reserve-*"):
        reserve.unlink()
    fill_up(disk)
    with open_it() as store:
        assert [each.name for each in store.collections()] == ["photos"]
        with pytest.raises(DiskFull, match="photos"):
            store.count("photos")
        filler.unlink()
        assert read(store) == 500


@pytest.mark.parametrize(
    ("place", "allocated"),
    [
        (("memory", ROOMY_BYTES + MIB), set()),
        (("memory", ROOMY_BYTES), {".probe-me", ".reserve-me"}),
        (("disk", ROOMY_BYTES + MIB), {".probe-me", ".reserve-me"}),
    ],
)
def test_nothing_is_allocated_in_memory_where_much_is_free(
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[str, int],
    allocated: set[str],
) -> None:
    """There an allocation takes its pages at once, and every store would take 96 MiB."""
    kind, disk.free = place
    monkeypatch.setattr(space_module, "in_memory", lambda _: kind == "memory")
    Space(tmp_path, owner="me", least_free=LEAST).check_write()
    assert {name for name, _ in disk.allocated} == allocated
