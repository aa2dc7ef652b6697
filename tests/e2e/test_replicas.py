"""Two clusterer processes over one server: one run at a time, whoever is paused meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from reclustering import DIM, blobs
from stand_in import qdrant_server

from shoal.client import Client, Gates, KMeans, Run, RunOptions, RunState
from shoal.errors import LeaseHeld, ServiceUnavailable, ShoalError
from shoal.store import Point, Store, StoreConfig, VectorInfo, open_store, point_id
from shoal.store.clusterings import Clusterings, cluster_of

N = 3000
POINTS = blobs(N, spread=0.3)


class Replica:
    """A ``shoal serve clusterer`` and a client of it."""

    def __init__(self, place: tuple[str, int], ready: Path, *options: str) -> None:
        url, port = place
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "shoal", "serve", "clusterer"),
                *("--store-url", url, "--store-grpc-port", str(port)),
                *("--address", "127.0.0.1:0", "--metrics-address", "off"),
                *("--ready-file", str(ready), "--log-level", "warning", *options),
            ]
        )
        until = time.monotonic() + 60
        while not (ready.exists() and ready.read_text().strip()):
            assert self.process.poll() is None, "the clusterer ended"
            assert time.monotonic() < until, "the clusterer did not start"
            time.sleep(0.05)
        self.client = Client(ready.read_text().strip())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(timeout=30)
        self.client.close()


@contextmanager
def replicas(tmp_path: Path, *options: str) -> Iterator[tuple[Store, str, list[Replica]]]:
    """A store on a server with a collection of N points, and two clusterers over it.

    ``options`` are of both.
    """
    collection = f"test-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        place = stack.enter_context(qdrant_server())
        config = StoreConfig(url=place[0], grpc_port=place[1], timeout_s=20)
        store = stack.enter_context(open_store(config))
        store.create_collection(collection, [VectorInfo("toy", DIM, "f" * 64)])
        stack.callback(store.drop_collection, collection)
        for at in range(0, N, 500):
            store.upsert(
                collection,
                [
                    Point(point_id(str(at + i)), {"toy": vector}, {"ingested_at": 0.0})
                    for i, vector in enumerate(POINTS[at : at + 500])
                ],
            )
        both = []
        for name in ("one", "two"):
            both.append(Replica(place, tmp_path / name, *options))
            stack.callback(both[-1].stop)
        yield store, collection, both


def whole(store: Store, collection: str, run: str) -> None:
    """Readers see ``run``: every point is in the cluster whose centroid is nearest to it."""
    clusterings = Clusterings(store, collection)
    state = clusterings.state("default")
    assert state.pointer.active_run == run
    records = clusterings.clusters("default", run)
    centroids = np.stack([record.centroid for record in records])
    nearest = (POINTS @ centroids.T).argmax(axis=1)
    expected = {point_id(str(i)): records[row].cluster for i, row in enumerate(nearest)}
    held = {
        one: cluster_of(payload, "default", state.pointer.active_slot)
        for block in store.scan(collection)
        for one, payload in zip(block.ids, block.payloads, strict=True)
    }
    assert held == expected


def test_of_concurrent_starts_exactly_one_runs(tmp_path: Path) -> None:
    """Eight callers of two processes at once: one run, and seven told who holds the lease."""
    with replicas(tmp_path) as (store, collection, both):

        def start(number: int) -> Run | ShoalError:
            try:
                return both[number % 2].client.start_run(KMeans(5), collection=collection)
            except ShoalError as exc:
                return exc

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(start, range(8)))
        (started,) = [answer for answer in answers if isinstance(answer, Run)]
        refused = [answer for answer in answers if isinstance(answer, LeaseHeld)]
        assert len(refused) == 7
        assert all(started.id in error.message for error in refused)
        *_, ended = both[0].client.watch(started.id, collection=collection)
        assert ended.state is RunState.SUCCEEDED
        assert len(list(both[1].client.runs(collection=collection))) == 1
        whole(store, collection, started.id)


def test_gates_of_a_service_hold_for_runs_that_bring_none(tmp_path: Path) -> None:
    """A run past them is refused; one with gates of its own is judged by those."""
    with replicas(tmp_path, "--max-cluster-share", "0.3") as (_, collection, both):
        client = both[0].client
        refused = client.cluster(KMeans(2), collection=collection)
        assert refused.state is RunState.REFUSED
        assert "more than 0.300" in " ".join(refused.plan.objections)
        own = RunOptions(gates=Gates(max_cluster_share=0.9))
        done = client.cluster(KMeans(2), collection=collection, options=own)
        assert done.state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("options", "continues"), [((), True), (("--continued-jaccard", "1"), False)]
)
def test_a_service_is_told_when_a_cluster_is_an_old_one(
    tmp_path: Path, options: tuple[str, ...], *, continues: bool
) -> None:
    """Nearly the same points keep an id by default; where all must be the same, none does."""
    with replicas(tmp_path, *options) as (_, collection, both):
        client = both[0].client
        first = client.cluster(KMeans(5, n_init=1), collection=collection)
        assert first.state is RunState.SUCCEEDED
        other = RunOptions(plan_only=True, cold_start=True, seed=1)
        planned = client.cluster(KMeans(7, n_init=1), collection=collection, options=other)
        assert planned.plan is not None
        kinds = {line.kind for line in planned.plan.lineage}
        assert ("continued" in kinds) == continues


def test_owner_paused_past_its_lease_changes_nothing_when_it_wakes(tmp_path: Path) -> None:
    """The other process takes over and finishes; the sleeper's run ends as failed."""
    with replicas(tmp_path) as (store, collection, both):
        paused, other = both
        sleeper = paused.client.start_run(KMeans(4), collection=collection)
        for run in paused.client.watch(sleeper.id, collection=collection):
            if run.stage == "fit":
                break
        paused.process.send_signal(signal.SIGSTOP)
        with pytest.raises(LeaseHeld):
            other.client.start_run(KMeans(5), collection=collection)
        until = time.monotonic() + 60
        while True:
            try:
                second = other.client.start_run(KMeans(5), collection=collection)
                break
            except LeaseHeld:
                assert time.monotonic() < until, "the lease never expired"
                time.sleep(1)
        *_, ended = other.client.watch(second.id, collection=collection)
        assert ended.state is RunState.SUCCEEDED
        whole(store, collection, second.id)

        paused.process.send_signal(signal.SIGCONT)
        until = time.monotonic() + 60
        while True:
            assert time.monotonic() < until, "the woken run never ended"
            with suppress(ServiceUnavailable):  # the connection that died of the silence
                woken = paused.client.get_run(sleeper.id, collection=collection)
                if woken.state.ended:
                    break
            time.sleep(0.2)
        assert woken.state in {RunState.FAILED, RunState.INTERRUPTED}
        assert paused.client.clustering(collection=collection).active_run == second.id
        paused.stop()  # whatever it might still have written is written
        whole(store, collection, second.id)
