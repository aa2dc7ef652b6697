"""kill -9 of a real ``shoal up``, at the worst moments, and what is there afterwards."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Up
from sklearn.datasets import load_digits

from shoal.client import Client, IngestItem, IngestStatus, KMeans, RunOptions, RunState
from shoal.errors import ShoalError
from shoal.store import Store, StoreConfig, open_store
from shoal.store.clusterings import Clusterings, State, cluster_of
from shoal.store.model import Point, Scan, point_id
from shoal.values import VectorInfo

POINTS, DIM = 10_000, 32


def digits(count: int) -> Iterator[IngestItem]:
    """The first digits of scikit-learn as PNG files, keyed by their number."""
    for number, pixels in enumerate(load_digits().images[:count]):
        out = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(out, "PNG")
        yield IngestItem(out.getvalue(), key=f"digit/{number}")


def test_kill_during_ingestion_keeps_every_acknowledged_point(tmp_path: Path) -> None:
    """What was acknowledged survives a kill; sending all again completes it, doubling none."""
    acknowledged: dict[str, str] = {}
    with Up(tmp_path / "data") as up, contextlib.suppress(ShoalError):
        for outcome in up.client.ingest(digits(600)):
            acknowledged[outcome.key] = outcome.id
            if len(acknowledged) == 200:
                up.kill()
    assert 200 <= len(acknowledged) < 600

    with Up(tmp_path / "data") as up:
        for key, one in acknowledged.items():
            assert up.client.point(key).id == one
        again = {o.key: o for o in up.client.ingest(digits(600))}
        assert up.client.collection().points == 600
    assert all(again[key].status is IngestStatus.UNCHANGED for key in acknowledged)
    assert {o.status for o in again.values()} <= {IngestStatus.UNCHANGED, IngestStatus.STORED}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory of a store with POINTS vectors around 12 directions, not clustered."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(12, DIM))
    vectors = directions[rng.integers(0, 12, POINTS)] + rng.normal(size=(POINTS, DIM)) * 0.7
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    (tmp_path / "data").mkdir()
    with open_store(StoreConfig(path=tmp_path / "data" / "store")) as store:
        store.create_collection("images", [VectorInfo("toy", DIM, "f" * 64)])
        for at in range(0, POINTS, 2000):
            store.upsert(
                "images",
                [
                    Point(point_id(str(i)), {"toy": vectors[i]}, {"n": i, "ingested_at": 1.0})
                    for i in range(at, at + 2000)
                ],
            )
    return tmp_path / "data"


def snapshot(data: Path) -> tuple[State, dict[str, int | None], dict[str, int | None]]:
    """The state, what readers see, and what the other slot holds; of a store nobody has open."""
    with open_store(StoreConfig(path=data / "store")) as store:
        return read(store)


def read(store: Store) -> tuple[State, dict[str, int | None], dict[str, int | None]]:
    state = Clusterings(store, "images").state()
    active: dict[str, int | None] = {}
    other: dict[str, int | None] = {}
    for block in store.scan("images", Scan(fields=("clusters",))):
        for one, payload in zip(block.ids, block.payloads, strict=True):
            active[one] = cluster_of(payload, "default", state.pointer.active_slot)
            other[one] = cluster_of(payload, "default", state.pointer.inactive_slot)
    return state, active, other


def first_run(data: Path) -> None:
    with Up(data) as up:
        assert up.client.cluster(KMeans(12, n_init=1)).state is RunState.SUCCEEDED


def kill_in_stage(data: Path, stage: str, method: KMeans) -> str:
    """Starts a run and kills the server once the run is in ``stage``; the run's id.

    A stage of writing must have written something.
    """
    with Up(data) as up:
        run = up.client.start_run(method, options=RunOptions(cold_start=True, seed=3))
        for now in up.client.watch(run.id):
            if now.stage == stage and (stage != "write" or now.stage_done):
                break
            assert not now.state.ended, now
        up.kill()
    return run.id


def test_kill_during_a_fit_leaves_the_active_run_whole(data: Path) -> None:
    """The dead run is told as interrupted, nothing moved, its child is gone."""
    first_run(data)
    before = snapshot(data)

    run = kill_in_stage(data, "fit", KMeans(12, n_init=5_000))

    state, active, other = snapshot(data)
    assert (active, other) == before[1:]
    assert (state.pointer.active_run, state.pointer.previous_run) == (
        before[0].pointer.active_run,
        "",
    )
    assert state.lease.run == run
    wait_until_gone("clusterer.fits.child_main", data)
    with Up(data) as up:
        assert up.client.get_run(run).state is RunState.INTERRUPTED
        assert up.client.cluster(KMeans(5, n_init=1)).state is RunState.SUCCEEDED
        assert len(up.client.clusters().clusters) == 5


def wait_until_gone(module: str, data: Path) -> None:
    """Waits until no process runs ``module`` in the directory ``data``; other tests may."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        commands = {file: read_or_empty(file) for file in Path("/proc").glob("[0-9]*/cmdline")}
        alive = [
            file
            for file, command in commands.items()
            if module.encode() in command and bytes(data) in command
        ]
        if not alive:
            return
        time.sleep(0.05)
    raise AssertionError(f"still running: {alive}")


def read_or_empty(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process ended meanwhile
        return b""


def test_kill_during_write_back_shows_readers_the_old_run_and_never_a_mixture(data: Path) -> None:
    """Killed between two writes, readers see the old run to the last point; the next completes."""
    first_run(data)
    before = snapshot(data)

    run = kill_in_stage(data, "write", KMeans(40, n_init=1))

    state, active, other = snapshot(data)
    assert active == before[1]
    assert state.pointer.active_run == before[0].pointer.active_run
    assert state.next_cluster > before[0].next_cluster, "the run was killed before it wrote"
    changed = sum(other[one] != before[2][one] for one in other)
    assert changed < POINTS, "the run was killed too late to show anything"
    with Up(data) as up:
        assert up.client.get_run(run).state is RunState.INTERRUPTED
        ended = up.client.cluster(KMeans(40, n_init=1), options=RunOptions(cold_start=True))
        assert ended.state is RunState.SUCCEEDED
    state, active, _ = snapshot(data)
    assert state.pointer.active_run == ended.id
    assert len(set(active.values())) == 40
    assert None not in active.values()


def test_readers_during_a_run_see_one_run_or_the_other(data: Path) -> None:
    """Every answer given while runs cut over agrees, point by point, with the run it names."""
    answers: list[tuple[str, dict[str, int | None]]] = []
    stop = threading.Event()

    def look(address: str) -> None:
        with Client(address) as reader:
            query = np.eye(DIM, dtype=np.float32)[0]
            while not stop.is_set():
                found = reader.search(query, limit=2000)
                answers.append((found.run, {hit.id: hit.cluster for hit in found.hits}))

    with Up(data) as up:
        thread = threading.Thread(target=look, args=(up.address,))
        thread.start()
        try:
            runs = [
                up.client.cluster(KMeans(k, n_init=1), options=RunOptions(cold_start=True)).id
                for k in (12, 30)
            ]
            deadline = time.monotonic() + 60
            while answers[-1][0] != runs[1] and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            stop.set()
            thread.join()
    state, active, other = snapshot(data)
    assert [state.pointer.previous_run, state.pointer.active_run] == runs
    truth = {runs[1]: active, runs[0]: other}

    assert {run for run, _ in answers} >= set(runs)
    for run, labels in answers:
        expected = truth[run] if run else dict.fromkeys(labels)
        assert labels == {one: expected[one] for one in labels}
