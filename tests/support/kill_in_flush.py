"""Kills a process that writes and flushes an embedded store, and counts what is lost.

``python kill_in_flush.py DIRECTORY BOARD SEED`` is the process. Its writes are those of runs,
leases, newcomers and ingestion: conditional, on the records and on the points of a collection. The
board, a file that both map, says how far each of its subjects has come.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from clusterer.runs.writeback import Seal, SlotWriter, replaced_since
from shoal.store import Equals, Filter, IdIn, Payload, Point, Range, Store, StoreConfig, open_store
from shoal.store.clusterings import Clusterings, cluster_of
from shoal.store.model import arrival, point_id, slot_field
from shoal.values import VectorInfo

STATES: Final = 4
"""Clusterings, whose states change as leases and cutovers change them, and whose schedules move."""
POINTS: Final = 8
"""Points, whose labels and fields are changed as runs and ingestion change them."""
SUBJECTS: Final = 2 * STATES + 2 * POINTS
FLUSH_EVERY_S: Final = 0.02
_READY: Final = 16 * SUBJECTS
_FLUSHING: Final = _READY + 8
_BOARD_BYTES: Final = 4096


@dataclass(slots=True)
class Tally:
    """What became of the writes. ``diverged`` counts values whose index says something else."""

    kills: int = 0
    in_flush: int = 0
    writes: int = 0
    lost: int = 0
    diverged: int = 0


class Subject:
    """One number in the store that grows by one with each write."""

    def __init__(
        self, read: Callable[[], int], write: Callable[[int], None], matches: Callable[[int], bool]
    ) -> None:
        self.read = read
        self.write = write
        self.matches = matches


def subjects(store: Store) -> list[Subject]:
    """The subjects in ``store``, which is filled first if it is new."""
    store.create_collection("images", [VectorInfo("toy", 8, "f" * 64)])
    vector = np.eye(1, 8, dtype=np.float32)[0]
    start = {"content_hash": "0", "source": "s0", **arrival(1.0)}
    ids = [point_id(f"p{i}") for i in range(POINTS)]
    store.upsert("images", [Point(i, {"toy": vector}, dict(start)) for i in ids], insert_only=True)
    clusterings = Clusterings(store, "images")
    states = [f"c{i}" for i in range(STATES)]
    for name in states:
        clusterings.ensure(name)
        if clusterings.schedule(name) is None:
            clusterings.put_schedule(name, {"next_at": 0.0, "last_run": "run 0"})
    return [
        *(_state(clusterings, name) for name in states),
        *(_schedule(clusterings, name) for name in states),
        *(_label(store, one) for one in ids),
        *(_fields(store, one) for one in ids),
    ]


def _state(clusterings: Clusterings, name: str) -> Subject:
    """A clustering's fence, which moves with a lease, a pointer and a counter."""

    def write(value: int) -> None:
        changes = {
            "fence": value,
            "lease_owner": f"owner {value}",
            "lease_expires": float(value),
            "active_slot": "ab"[value % 2],
            "active_run": f"run {value}",
            "next_cluster": value,
        }
        clusterings.compare_and_set(
            name,
            dict(changes),
            Equals("fence", value - 1),
            where=Filter((Range("lease_expires", lt=value),)),
        )

    def whole(value: int) -> bool:
        state = clusterings.state(name)
        return value == 0 or (
            (state.next_cluster, state.lease.owner, state.pointer.active_run)
            == (value, f"owner {value}", f"run {value}")
        )

    return Subject(lambda: clusterings.state(name).lease.fence, write, whole)


def _schedule(clusterings: Clusterings, name: str) -> Subject:
    """A schedule's next time, which moves for one of those who see it due."""

    def payload() -> Payload:
        found = clusterings.schedule(name)
        assert found is not None
        return found

    def write(value: int) -> None:
        clusterings.move_schedule(
            name, float(value - 1), {"next_at": float(value), "last_run": f"run {value}"}
        )

    def matches(value: int) -> bool:
        return payload()["last_run"] == f"run {value}"

    return Subject(lambda: int(float(str(payload()["next_at"]))), write, matches)


def _label(store: Store, one: str) -> Subject:
    """A point's label in both slots, sealed with the fence of its run."""

    def payload() -> Payload:
        (record,) = store.retrieve("images", [one])
        assert record is not None
        return record.payload

    def read() -> int:
        return cluster_of(payload(), "default", "a") or 0

    def write(value: int) -> None:
        writer = SlotWriter(
            store, "images", "default", 100, lambda: None, Seal(value, sealing=False)
        )
        writer.write([one], {"a": value, "b": value}, unless=replaced_since([payload()]))

    def matches(value: int) -> bool:
        if not value:
            return True
        found = [
            store.count("images", Filter((IdIn([one]), Equals(slot_field("default", slot), value))))
            for slot in ("a", "b")
        ]
        return found == [1, 1] and cluster_of(payload(), "default", "b") == value

    return Subject(read, write, matches)


def _fields(store: Store, one: str) -> Subject:
    """A point's fields, changed only if the content is still the one that was seen."""

    def read() -> int:
        (record,) = store.retrieve("images", [one])
        assert record is not None
        return int(str(record.payload["content_hash"]))

    def write(value: int) -> None:
        where = Filter((IdIn([one]), Equals("content_hash", str(value - 1))))
        changes = {"content_hash": str(value), "source": f"s{value}"}
        store.set_payload("images", dict(changes), where=where)

    def matches(value: int) -> bool:
        where = Filter((IdIn([one]), Equals("source", f"s{value}")))
        return store.count("images", where) == 1

    return Subject(read, write, matches)


def kill_again_and_again(directory: Path, *, kills: int, seed: int) -> Tally:
    """Starts the process over ``directory`` and kills it, ``kills`` times; what was lost."""
    tally, rng = Tally(), random.Random(seed)
    board_file = directory / "board"
    for _ in range(kills):
        board_file.write_bytes(bytes(_BOARD_BYTES))
        with board_file.open("r+b") as file, mmap.mmap(file.fileno(), _BOARD_BYTES) as board:
            command = [sys.executable, __file__, str(directory), str(board_file)]
            with subprocess.Popen([*command, str(rng.randrange(1 << 30))]) as process:
                while not _get(board, _READY) and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.random() * 0.3)
                assert process.poll() is None, "the process ended by itself"
                process.kill()
            tally.kills += 1
            tally.in_flush += _get(board, _FLUSHING)
            with open_store(StoreConfig(path=directory / "store")) as store:
                for number, subject in enumerate(subjects(store)):
                    tried, told = _get(board, 16 * number), _get(board, 16 * number + 8)
                    value = subject.read()
                    tally.writes += bool(told)
                    tally.lost += bool(told) and not told <= value <= tried
                    tally.diverged += not subject.matches(value)
    return tally


def _get(board: mmap.mmap, at: int) -> int:
    found: int = struct.unpack_from("<Q", board, at)[0]
    return found


def _write_for_ever(directory: Path, board_file: Path, seed: int) -> None:
    rng = random.Random(seed)
    with (
        open_store(StoreConfig(path=directory / "store")) as store,
        board_file.open("r+b") as file,
        mmap.mmap(file.fileno(), _BOARD_BYTES) as board,
    ):
        known = subjects(store)
        values = [subject.read() for subject in known]

        def flush_for_ever() -> None:
            while True:
                time.sleep(FLUSH_EVERY_S)
                struct.pack_into("<Q", board, _FLUSHING, 1)
                store.flush()
                struct.pack_into("<Q", board, _FLUSHING, 0)

        threading.Thread(target=flush_for_ever, daemon=True).start()
        struct.pack_into("<Q", board, _READY, 1)
        while True:
            number = rng.randrange(SUBJECTS)
            value = values[number] + 1
            struct.pack_into("<Q", board, 16 * number, value)
            known[number].write(value)
            if known[number].read() != value:
                os._exit(1)
            values[number] = value
            struct.pack_into("<Q", board, 16 * number + 8, value)


if __name__ == "__main__":
    _write_for_ever(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
