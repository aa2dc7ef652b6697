from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import qdrant_edge as edge
from qdrant_client import models

from shoal.errors import (
    ConfigError,
    Conflict,
    DiskFull,
    NotFound,
    OperatorError,
    ShoalError,
    StoreLocked,
    StoreUnavailable,
)
from shoal.store import (
    EVERYWHERE,
    Equals,
    Filter,
    Point,
    Query,
    Store,
    StoreConfig,
    VectorInfo,
    VectorScan,
    open_store,
    point_id,
    records_name,
)
from shoal.store.edge_shard import Shard
from shoal.store.edge_space import Space

if TYPE_CHECKING:
    from shoal.store import Payload

TINY = VectorInfo("tiny", 8, "ab" * 32)
DEADLINE_S = 30


@pytest.fixture
def root(quick_path: Path) -> Path:
    return quick_path / "deep" / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(StoreConfig(path=root)) as opened:
        opened.create_collection("photos", [TINY])
        yield opened


def reopen(root: Path) -> Store:
    return open_store(StoreConfig(path=root))


def points(*keys: object) -> list[Point]:
    return [
        Point(point_id(str(key)), {"tiny": np.eye(8, dtype=np.float32)[0]}, {"key": str(key)})
        for key in keys
    ]


def everything(store: Store) -> dict[str, Payload]:
    return {
        i: payload
        for block in store.scan("photos")
        for i, payload in zip(block.ids, block.payloads, strict=True)
    }


def test_everything_is_there_after_reopening(root: Path, store: Store) -> None:
    """Points, vectors, records, metadata, booleans and indexes outlive the process."""
    made = store.ensure_clustering("photos", "colour")
    store.upsert("photos", points(*range(300)))
    store.set_payload("photos", {"a": 5}, where=EVERYWHERE, key="clusters.colour")
    store.set_payload("photos", {"ok": True}, where=Filter((Equals("key", "7"),)))
    store.upsert(records_name("photos"), [Point(point_id("run"), {}, {"kind": "run"})])
    before = everything(store)
    store.close()
    with reopen(root) as again:
        assert again.collections() == [made]
        assert everything(again) == before
        assert again.facet("photos", "clusters.colour.a") == {5: 300}
        assert again.facet(records_name("photos"), "kind") == {"run": 1}
        assert again.count("photos", Filter((Equals("ok", value=True),))) == 1
        (hit,) = again.search("photos", Query(np.eye(8, dtype=np.float32)[0], limit=1))
        assert hit.id == min(before)


def test_dropped_collection_stays_dropped(root: Path, store: Store) -> None:
    """Nothing of a dropped collection is on disk."""
    store.drop_collection("photos")
    assert list((root / "collections").iterdir()) == []
    store.close()
    with reopen(root) as again:
        assert again.collections() == []


def test_second_owner_in_this_process_is_refused(root: Path, store: Store) -> None:
    """One owner per directory, and the message names it; letting go is enough to take over."""
    with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}: expected one owner"):
        reopen(root)
    store.close()
    reopen(root).close()


def test_second_process_is_refused(root: Path, store: Store) -> None:
    """Another process is refused too, with an error that names this one."""
    program = (
        "import sys; from pathlib import Path; from shoal.store import *\n"
        "from shoal.errors import StoreLocked\n"
        "try: open_store(StoreConfig(path=Path(sys.argv[1])))\n"
        "except StoreLocked as error: print(error.reason, error.metadata['pid'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == f"STORE_LOCKED {os.getpid()}\n"
    assert store.count("photos") == 0


def _write_until_killed(root: str, acknowledged: Connection) -> None:
    """The child: writes for ever, and says so after each write returned."""
    store = open_store(StoreConfig(path=Path(root)))
    store.create_collection("photos", [TINY])
    store.upsert(records_name("photos"), [Point(point_id("state"), {}, {"step": -1})])
    for step in range(1_000_000):
        store.upsert("photos", points(step))
        store.set_payload(records_name("photos"), {"step": step}, where=EVERYWHERE)
        acknowledged.send(step)


def test_killed_process_loses_no_acknowledged_write(tmp_path: Path) -> None:
    """After SIGKILL amid writes the store opens, and every write that returned is there."""
    root = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write_until_killed, args=(str(root), sender), daemon=True)
    child.start()
    sender.close()
    last = -1
    while last < 150:
        assert receiver.poll(DEADLINE_S)
        last = receiver.recv()
    child.kill()
    child.join(DEADLINE_S)
    while receiver.poll(0):
        try:
            last = receiver.recv()
        except EOFError:
            break
    with reopen(root) as store:
        keys = {payload["key"] for payload in everything(store).values()}
        assert keys >= {str(step) for step in range(last + 1)}
        assert len(keys) <= last + 2  # one write may have been on its way
        (state,) = store.retrieve(records_name("photos"), [point_id("state")])
        assert state is not None
        assert state.payload["step"] in (last, last + 1)
        store.upsert("photos", points("after"))
        assert store.count("photos") == len(keys) + 1


def test_log_is_shortened_as_points_are_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write-ahead log does not grow for ever: enough writes of any kind bring a flush."""
    monkeypatch.setattr("shoal.store.edge_shard.FLUSH_EVERY_POINTS", 100)
    shard = store._session._backend.engine._shards["photos"]
    backlog = []
    for step in range(30):
        store.upsert("photos", points(*range(step, step + 7)))
        store.set_payload("photos", {"step": step}, where=Filter((Equals("key", str(step)),)))
        backlog.append(shard.unflushed)
    assert max(backlog) < 100
    assert backlog != sorted(backlog)
    store.flush()
    assert shard.unflushed == 0


def test_log_is_written_out_at_its_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point counts for one, a write by filter for as many as its ids may weigh."""
    monkeypatch.setattr("shoal.store.edge_shard.FLUSH_EVERY_POINTS", 40)
    shard = store._session._backend.engine._shards["photos"]
    shard.flush()
    store.set_payload("photos", {"x": 1}, where=EVERYWHERE)
    assert shard.unflushed == 16
    store.upsert("photos", points(*range(23)))
    assert shard.unflushed == 39
    store.upsert("photos", points("one more"))
    assert shard.unflushed == 0


@pytest.mark.parametrize(("flush", "calls"), [(True, ["flush", "close"]), (False, ["close"])])
def test_shard_is_written_out_as_it_is_closed(
    tmp_path: Path, calls: list[str], *, flush: bool
) -> None:
    """Else the next start replays its log. A collection that is dropped needs no such thing."""
    made: list[str] = []
    engine = SimpleNamespace(flush=lambda: made.append("flush"), close=lambda: made.append("close"))
    space = Space(tmp_path, owner="ab", least_free=0)
    shard = Shard(tmp_path, {}, space, engine)
    for _ in range(2):
        shard.close(flush=flush)
    assert made == calls
    shard.dropped = True
    with pytest.raises(NotFound, match="was dropped"):
        shard.live()


def test_lock_file_names_its_owner_only(root: Path, store: Store) -> None:
    """Whatever an earlier owner wrote there: the message to a second one must be right."""
    assert (root / "LOCK").read_text() == f"{os.getpid()}\n"
    store.close()
    (root / "LOCK").write_text("4194304999\nan earlier owner")
    with reopen(root):
        assert (root / "LOCK").read_text() == f"{os.getpid()}\n"


def names_in(root: Path) -> list[str]:
    return sorted(each.name for each in (root / "collections").iterdir())


PAIR = ["photos", "photos--records"]


def test_lock_is_taken_on_a_full_disk(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number in its file may be an old one; that the store is owned is known all the same."""
    store.close()

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with reopen(root) as again:
        assert again.count("photos") == 0
        with pytest.raises(StoreLocked):
            reopen(root)


def test_drop_cut_short_leaves_no_collection(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection is gone in one step; the next start deletes what a killed process left."""
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        store.drop_collection("photos")
    assert [name.partition("-")[0] for name in names_in(root)] == [".dropped", ".dropped"]
    store.close()
    with reopen(root) as again:
        assert again.collections() == []
        assert names_in(root) == []


def test_creation_cut_short_leaves_no_collection(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection is there in one step; the next start deletes what a killed process left."""
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        patched.setattr("shoal.store.edge_files.put_in_place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.create_collection("half", [TINY])
    assert [name for name in names_in(root) if name.startswith(".new-")]
    store.close()
    with reopen(root) as again:
        assert names_in(root) == PAIR
        again.create_collection("half", [TINY])
        again.upsert("half", points(1))
        assert again.count("half") == 1


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_creation_that_fails_leaves_nothing(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the way to a collection leaves no directory behind."""
    with monkeypatch.context() as patched:
        patched.setattr("shoal.store.edge_files.put_in_place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.create_collection("half", [TINY])
    assert names_in(root) == PAIR


def test_strange_entries_are_left_alone_and_reported(
    root: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever this store did not make stays as it is, and a warning has its path."""
    store.upsert("photos", points(1))
    store.close()
    place = root / "collections"
    (place / "photos" / "collection.json").rename(root / "saved")
    other = f".dropped-{'0' * 32}-{'0' * 16}"  # as another store would name it
    for name in ("notes", "photos copy", other):
        (place / name).mkdir()
        (place / name / "collection.json").write_text("theirs")
    (place / "notes" / "collection.json").unlink()
    (place / "stray").write_text("theirs")
    mine = (root / "shoal.json").read_text()
    link = place / f".new-{json.loads(mine)['id']}-{'0' * 16}"
    link.symlink_to(root)
    before = [each for each in place.rglob("*") if "shard" not in each.parts]
    with reopen(root) as again:
        assert again.collections() == []
        strange = ("notes", "photos copy", "photos", "stray", other, link.name)
        reported = {vars(r)["path"] for r in caplog.records if r.message.startswith("left alone")}
        assert reported == {str(place / name) for name in strange}
        with pytest.raises(Conflict, match=f"{place / 'photos'} is there"):
            again.create_collection("photos", [TINY])
        (root / "saved").rename(place / "photos" / "collection.json")
    with reopen(root) as again:
        assert again.count("photos") == 1
    link.unlink()
    assert {each for each in before if each != link} <= set(place.rglob("*"))


def test_dropping_deletes_only_what_the_store_made(
    root: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody's file in a collection's directory outlives the collection, and is reported."""
    (root / "collections" / "photos" / "notes.txt").write_text("theirs")
    store.drop_collection("photos")
    (kept,) = (root / "collections").iterdir()
    assert [each.name for each in kept.iterdir()] == ["notes.txt"]
    assert [vars(r)["path"] for r in caplog.records] == [str(kept)]
    store.create_collection("photos", [TINY])
    store.close()
    with reopen(root):
        assert (kept / "notes.txt").read_text() == "theirs"


def test_metadata_is_replaced_whole(root: Path, store: Store) -> None:
    """A crash before the replacement leaves the old metadata; leftovers do not matter."""
    store.close()
    directory = root / "collections" / "photos"
    (directory / "collection.json.shoal-new").write_text('{"form')
    with reopen(root) as again:
        assert again.collection("photos").vectors == (TINY,)
        assert again.ensure_clustering("photos", "colour").clusterings == ("colour", "default")
    assert sorted(p.name for p in directory.iterdir()) == ["collection.json", "shard"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 2}', "\xff"])
def test_damaged_metadata_is_reported(root: Path, store: Store, damage: str) -> None:
    """Unreadable metadata is an operator's business: named, and nothing is removed."""
    store.upsert("photos", points(1))
    store.close()
    path = root / "collections" / "photos" / "collection.json"
    whole = path.read_bytes()
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(OperatorError, match=r"collection\.json"):
        reopen(root)
    path.write_bytes(whole)
    with reopen(root) as again:  # the failed attempt let go of the lock
        assert again.count("photos") == 1


@pytest.mark.parametrize("damage", ["{", '{"vectors": 3}', '{"vectors": {"tiny": {}}}'])
def test_damaged_shard_is_reported(root: Path, store: Store, damage: str) -> None:
    """A shard that does not load is an error with the collection's name; the others work."""
    store.create_collection("more", [TINY])
    store.close()
    config = root / "collections" / "photos" / "shard" / "edge_config.json"
    whole = config.read_text()
    config.write_text(damage)
    with reopen(root) as again:
        with pytest.raises(StoreUnavailable, match="photos"):
            again.count("photos")
        assert again.count("more") == 0
        config.write_text(whole)
        assert again.count("photos") == 0


def test_path_must_be_a_directory(tmp_path: Path) -> None:
    """A file where the directory should be is a wrong setting."""
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigError, match="cannot use the directory"):
        open_store(StoreConfig(path=path))


def test_metadata_file_is_json_with_a_format(root: Path, store: Store) -> None:
    """The file is plain JSON that says which version wrote it."""
    noted = json.loads((root / "collections" / "photos" / "collection.json").read_text())
    assert noted["format"] == 1
    assert noted["metadata"]["shoal"]["vectors"] == [
        {"name": "tiny", "dim": 8, "fingerprint": "ab" * 32}
    ]
    assert store.kind == "embedded"


def test_close_waits_for_the_calls_under_way(root: Path, store: Store) -> None:
    """Closing amid traffic harms nothing: a call finishes, or says that the store is closed."""
    started, outcomes = threading.Barrier(5, timeout=DEADLINE_S), []

    def work(worker: int) -> int:
        started.wait()
        for step in range(10_000):
            try:
                store.upsert("photos", points(f"{worker} {step}"))
                list(store.scan("photos", VectorScan(vector="tiny", block_size=64)))
            except StoreUnavailable:
                return step
        return -1

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, worker) for worker in range(4)]
        started.wait()
        while store.count("photos") < 40:
            pass
        store.close()
        outcomes = [future.result(timeout=DEADLINE_S) for future in running]
    assert min(outcomes) >= 0
    with reopen(root) as again:
        found = {str(payload["key"]) for payload in everything(again).values()}
    for worker, steps in enumerate(outcomes):
        assert found >= {f"{worker} {step}" for step in range(steps)}


def test_drop_amid_traffic_is_not_found(store: Store) -> None:
    """A collection dropped under its users is NotFound to them, and nothing worse."""
    started = threading.Barrier(4, timeout=DEADLINE_S)

    def work(worker: int) -> str:
        started.wait()
        for step in range(10_000):
            try:
                store.upsert("photos", points(f"{worker} {step}"))
            except NotFound:
                return "not found"
        return "never"

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(work, worker) for worker in range(3)]
        started.wait()
        while store.count("photos") < 20:
            pass
        store.drop_collection("photos")
        assert {f.result(timeout=DEADLINE_S) for f in running} == {"not found"}
    assert store.collections() == []


def test_server_and_memory_need_no_embedded_engine(tmp_path: Path) -> None:
    """Neither importing the package nor opening another engine loads the embedded one."""
    program = (
        "import sys; from shoal.store import StoreConfig, open_store\n"
        "open_store(StoreConfig(in_memory=True)).close()\n"
        "open_store(StoreConfig(url='http://localhost:1')).close()\n"
        "print('qdrant_edge' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "False\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exact", [True, False])
def test_search_is_exact_if_it_was_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, exact: bool
) -> None:
    """The engine is told: on a small collection its index would find the same."""
    told: list[bool] = []
    params = edge.SearchParams

    def record(*, exact: bool) -> edge.SearchParams:
        told.append(exact)
        return params(exact=exact)

    monkeypatch.setattr(edge, "SearchParams", record)
    store.search("photos", Query(np.eye(8, dtype=np.float32)[0], exact=exact))
    assert told == [exact]


def test_creation_that_failed_can_be_repeated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine left behind does not stop the next try, in the same process."""
    create = edge.EdgeShard.create

    def fail(path: str, config: edge.EdgeConfig) -> None:
        create(path, config).close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(edge, "EdgeShard", SimpleNamespace(create=fail))
        with pytest.raises(DiskFull, match="No space left"):
            store.create_collection("more", [TINY])
    store.create_collection("more", [TINY])
    store.upsert("more", points(1))
    assert store.count("more") == 1


def test_version_is_another_after_each_change(store: Store) -> None:
    """Of the collection that was written to, dropped and made anew, and of no other one."""
    seen = [store.version("photos")]
    other = store.version(records_name("photos"))
    assert None not in (seen[0], other)
    changes: list[Callable[[], object]] = [
        lambda: store.upsert("photos", points(1)),
        lambda: store.set_payload("photos", {"a": 1}, where=EVERYWHERE),
        lambda: store.delete_fields("photos", ["a"], where=EVERYWHERE),
        lambda: store.delete("photos", EVERYWHERE),
        lambda: store.ensure_clustering("photos", "colour"),
    ]
    for change in changes:
        change()
        seen.append(store.version("photos"))
    store.count("photos")
    list(store.scan("photos"))
    store.flush()
    assert store.version("photos") == seen[-1]
    assert store.version(records_name("photos")) == other
    store.drop_collection("photos")
    assert store.version("photos") is None
    store.create_collection("photos", [TINY])
    assert len({*seen, store.version("photos")}) == len(changes) + 2


def test_flush_passes_over_a_collection_that_was_dropped_meanwhile(store: Store) -> None:
    """The others are written out all the same."""

    class Dropped(dict[str, Shard]):
        """Names a collection that is not there any more."""

        def __iter__(self) -> Iterator[str]:
            yield "dropped"
            yield from super().__iter__()

    engine = store._session._backend.engine
    store.upsert("photos", points(1))
    engine._shards = Dropped(engine._shards)
    assert engine._shards["photos"].unflushed > 0
    store.flush()
    assert engine._shards["photos"].unflushed == 0


class LastMoment:
    """A collection's lock that does something else first, as another thread may, once."""

    def __init__(self, before: Callable[[], object]) -> None:
        self._before: list[Callable[[], object]] = [before]

    def __enter__(self) -> None:
        if self._before:
            self._before.pop()()

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("meanwhile", "error", "says"),
    [
        ("close", StoreUnavailable, "is closed"),
        ("drop", NotFound, "collection 'photos' was dropped"),
    ],
)
def test_call_that_waited_finds_its_collection_gone(
    store: Store, meanwhile: str, error: type[ShoalError], says: str
) -> None:
    """It is told why: the store was closed, or the collection was dropped."""
    engine = store._session._backend.engine
    changes = {"close": engine.close, "drop": lambda: engine.delete_collection("photos")}
    engine._shards["photos"].lock = LastMoment(changes[meanwhile])
    with pytest.raises(error, match=says):
        engine.count("photos", count_filter=models.Filter())


def test_collection_is_on_disk_before_it_exists(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves a whole collection or none: its directory gets its name last."""
    directory = root / "collections" / "more"
    fsync, synced = os.fsync, list[tuple[str, bool]]()

    def record(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if not path.is_relative_to(directory.with_name("more--records")):
            synced.append((path.name, directory.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    store.create_collection("more", [TINY])
    before = {name for name, there in synced if not there}
    assert {"collection.json", "edge_config.json", "shard", "segments", "wal"} <= before
    assert ("collections", True) in synced
    synced.clear()
    store.drop_collection("more")
    assert ("collections", False) in synced


def test_indexes_that_are_there_are_not_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one reads every point: a collection is opened with each start of a service."""
    made: list[str] = []
    engine = store._session._backend.engine
    index = engine.create_payload_index

    def record(name: str, field: str, **options: Any) -> None:
        made.append(field)
        index(name, field, **options)

    monkeypatch.setattr(engine, "create_payload_index", record)
    store.create_collection("photos", [TINY])
    assert made == []
    store.ensure_clustering("photos", "colour")
    assert made == ["clusters.colour.a", "clusters.colour.b"]
