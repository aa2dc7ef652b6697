"""Runs from their start to their recorded end, over a store that is away now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from faulty_engine import EachOnce, Faulty, away_until, make_hasty
from reclustering import CONFIG, DIM, VECTOR, Bench, blobs, fit_here

from clusterer.config import ClustererConfig
from clusterer.runs import records
from clusterer.runs.lease import Holder, acquire
from clusterer.runs.runner import Runner
from shoal.errors import DiskFull
from shoal.store.clusterings import Clusterings, State
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import VectorInfo

Fault = Callable[[str], object]


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def bench(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> Bench:
    make_hasty(monkeypatch)
    found = Bench(faulty.store())
    found.put(blobs(60))
    return found


class Watched(Runner):
    """A runner whose run's thread meets ``fault``; other threads' store is well."""

    def __init__(self, bench: Bench, faulty: Faulty, fault: Fault, config: ClustererConfig) -> None:
        super().__init__(bench.store, config, fit=fit_here)
        self._bench = bench
        self.finishing = False
        self.ended = threading.Event()

        def in_its_thread(moment: str) -> None:
            if threading.current_thread().name.startswith("run-"):
                fault(moment)

        faulty.fault = in_its_thread

    def begin(self) -> str:
        task = self._bench.task(4)
        self.start(task, records.new_run(task, pb.ClusteringConfig()), once=False)
        return task.run

    def _execute(self, *arguments: object) -> None:
        super()._execute(*arguments)  # type: ignore[arg-type]
        self.ended.set()

    def _finish(self, *arguments: object) -> None:
        self.finishing = True
        super()._finish(*arguments)  # type: ignore[arg-type]


Watch = Callable[..., Watched]


@pytest.fixture
def watch(bench: Bench, faulty: Faulty) -> Iterator[Watch]:
    made: list[Watched] = []

    def make(fault: Fault, **settings: float) -> Watched:
        made.append(Watched(bench, faulty, fault, replace(CONFIG, **settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_end_of_a_run_is_recorded_though_each_call_fails_once(
    watch: Watch, bench: Bench, when: str
) -> None:
    """The lease is given back, and the record says how the run ended."""
    runner = watch(EachOnce(when))
    run = runner.begin()
    assert runner.ended.wait(20)
    assert runner.book.get("toys", run).state == pb.RUN_STATE_SUCCEEDED
    assert bench.state.lease.run == ""


def test_failure_for_want_of_a_store_is_recorded_once_it_is_back(
    watch: Watch, bench: Bench
) -> None:
    """However long that takes: until then nobody can read the run either."""
    tries: list[bool] = []

    def back() -> bool:
        tries.append(runner.finishing)
        return tries.count(True) > 20

    runner = watch(away_until(back), store_patience_s=0.05)
    run = runner.begin()
    assert runner.ended.wait(20)
    found = runner.book.get("toys", run)
    assert (found.state, found.error_reason) == (pb.RUN_STATE_FAILED, "STORE_UNAVAILABLE")
    assert "the store was away for 0.05 s" in found.error_message
    assert bench.state.lease.run == ""


def test_runner_does_not_wait_for_a_store_when_it_is_closed(watch: Watch, bench: Bench) -> None:
    """The run's record stays as it is, and its lease expires by itself."""
    waiting = threading.Event()

    def back() -> bool:
        waiting.set()
        return False

    runner = watch(away_until(back))
    run = runner.begin()
    assert waiting.wait(20)
    runner.close()
    assert runner.ended.is_set()
    assert bench.state.lease.run == run


def test_lease_that_cannot_be_freed_stops_nobody(
    quick: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the process starts; the lease is told, and the others are freed."""
    quick.store.create_collection("aaa", [VectorInfo(VECTOR, DIM, "f" * 64)])
    for name in ("aaa", "toys"):
        holder = Holder("default", "dead", "run", ttl_s=1000.0)
        lease, _ = acquire(Clusterings(quick.store, name), holder)
        lease._stop.set()
    read = Clusterings.state

    def state(self: Clusterings, clustering: str) -> State:
        if self.collection == "aaa":
            raise DiskFull("the disk is full")
        return read(self, clustering)

    with monkeypatch.context() as patched:
        patched.setattr(Clusterings, "state", state)
        Runner(quick.store, CONFIG).recover()
    assert "collection aaa, clustering default: the disk is full" in caplog.text
    assert Clusterings(quick.store, "aaa").state("default").lease.run == "run"
    assert Clusterings(quick.store, "toys").state("default").lease.run == ""
