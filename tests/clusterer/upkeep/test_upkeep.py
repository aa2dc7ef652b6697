"""The clusterer's own tasks, on hand-made runs, without a service."""

from __future__ import annotations

import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from reclustering import DIM, VECTOR, Bench, blobs

from clusterer.config import ClustererConfig
from clusterer.fits.models import Centroids, pack
from clusterer.runs.runner import Runner
from clusterer.upkeep import ageing, schedule
from clusterer.upkeep.unchanged import Unchanged
from clusterer.upkeep.upkeep import Upkeep
from shoal.errors import Cancelled, NotFound, StoreUnavailable
from shoal.store.clusterings import Clusterings, ClusterRecord, State
from shoal.store.model import Filter, IdIn
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import VectorInfo
from shoal.vectors import NOISE

AXES = np.eye(DIM, dtype=np.float32)


def store_run(bench: Bench, collection: str, sizes: tuple[int, int]) -> None:
    """Makes a run of two clusters, 0 and 1, around the first axes the active one."""
    clusterings = Clusterings(bench.store, collection)
    clusterings.ensure("default")
    records = [ClusterRecord(i, sizes[i], 1.0, AXES[i], {}) for i in range(2)]
    clusterings.put_clusters("default", "run", records, vector=VECTOR, fence=1)
    packed = pack(Centroids(AXES[:2]), np.array([0, 1], np.int32))
    clusterings.put_model("default", "run", packed, fence=1)
    clusterings.compare_and_set("default", {"active_run": "run", "run_confidence": 0.5})


@pytest.fixture
def two(quick: Bench) -> Bench:
    """Two collections, toys and zoo, each with an active run and three new points."""
    quick.store.create_collection("zoo", [VectorInfo(VECTOR, DIM, "f" * 64)])
    for name in ("toys", "zoo"):
        store_run(quick, name, (10, 10))
        Bench(quick.store, name).put(blobs(3))
    return quick


def upkeep(bench: Bench, **config: float) -> Upkeep:
    settings = ClustererConfig(**config)  # type: ignore[arg-type]

    def start(request: pb.CreateRunRequest) -> pb.Run:
        return pb.Run(id=f"started-{request.collection}")

    runner = Runner(bench.store, settings)
    return Upkeep(runner, bench.store, settings, start=start, check=lambda: None)


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"shoal_clusterer_{name}", labels)


def waiting(bench: Bench, collection: str) -> int:
    """The points that have no cluster."""
    return list(Bench(bench.store, collection).labels().values()).count(None)


def test_newcomers_of_every_clustering_are_assigned_and_counted(two: Bench) -> None:
    """One look fills both collections, and the metrics say how many and when."""
    before, now = metric("newcomers_total") or 0.0, time.time()
    keeping = upkeep(two)
    keeping.assign_newcomers()
    assert (waiting(two, "toys"), waiting(two, "zoo")) == (0, 0)
    assert metric("newcomers_total") == before + 6
    assert (metric("last_look_seconds") or 0) >= now
    keeping.assign_newcomers()
    assert metric("newcomers_total") == before + 6


def test_failure_in_one_clustering_does_not_keep_the_others_waiting(
    two: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is looked at, then the first failure is raised; the look does not count as done."""
    last = metric("last_look_seconds")
    state = Clusterings.state

    def failing(self: Clusterings, clustering: str = "") -> object:
        if self.collection == "toys":
            raise StoreUnavailable("away")
        return state(self, clustering)

    with monkeypatch.context() as patch:
        patch.setattr(Clusterings, "state", failing)
        with pytest.raises(StoreUnavailable, match="away"):
            upkeep(two).assign_newcomers()
    assert (waiting(two, "toys"), waiting(two, "zoo")) == (3, 0)
    assert metric("last_look_seconds") == last


def test_collection_that_has_not_changed_is_not_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the embedded store, which nobody else writes to: it may close what nobody uses."""
    store_run(bench, "toys", (10, 10))
    bench.put(blobs(3))
    keeping = upkeep(bench, drift_interval_s=1e-9)
    read, looked = Clusterings.state, list[str]()

    def state(self: Clusterings, clustering: str = "default") -> State:
        looked.append(clustering)
        return read(self, clustering)

    monkeypatch.setattr(Clusterings, "state", state)

    def look() -> int:
        looked.clear()
        keeping.assign_newcomers()
        keeping.keep_schedules()
        return len(looked)

    assert look() > 0  # three points get clusters
    assert look() > 0  # there is nothing to do: from now on that is known
    embedded = bench.store.kind == "embedded"
    assert (look() == 0) is embedded
    bench.put(blobs(1), first=50)
    assert look() > 0
    assert waiting(bench, "toys") == 0
    look()
    assert (look() == 0) is embedded
    bench.clusterings.compare_and_set("default", {"run_noise": 1})
    assert look() > 0


def test_clustering_in_a_cutover_is_left_to_it(two: Bench) -> None:
    """The look does not wait for the lock, and gives back every lock that it takes."""
    settings = ClustererConfig()
    runner = Runner(two.store, settings)
    keeping = Upkeep(runner, two.store, settings, start=lambda _: pb.Run(), check=lambda: None)
    lock = runner.cutover_lock("toys", "default")
    with lock:
        keeping.assign_newcomers()
        assert (waiting(two, "toys"), waiting(two, "zoo")) == (3, 0)
    keeping.assign_newcomers()
    assert waiting(two, "toys") == 0
    assert not lock.locked()


def test_cutover_is_not_taken_for_nothing_to_do(bench: Bench) -> None:
    """A collection that was left to a cutover is looked at again, though nobody wrote to it."""
    store_run(bench, "toys", (10, 10))
    bench.put(blobs(3))
    settings = ClustererConfig()
    runner = Runner(bench.store, settings)
    keeping = Upkeep(runner, bench.store, settings, start=lambda _: pb.Run(), check=lambda: None)
    with runner.cutover_lock("toys", "default"):
        keeping.assign_newcomers()
    keeping.assign_newcomers()
    assert waiting(bench, "toys") == 0


def test_lock_is_given_back_after_a_failure(two: Bench) -> None:
    """A look that was told to stop does not hold up the next cutover."""

    def stop() -> None:
        raise Cancelled("enough")

    settings = ClustererConfig()
    runner = Runner(two.store, settings)
    keeping = Upkeep(runner, two.store, settings, start=lambda _: pb.Run(), check=stop)
    with pytest.raises(Cancelled):
        keeping.assign_newcomers()
    assert not runner.cutover_lock("toys", "default").locked()


def test_drift_is_exported_at_once_and_then_now_and_then(
    two: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call exports; the next ones wait for their interval."""
    exported: list[object] = []
    monkeypatch.setattr(ageing, "export", lambda store, _: exported.append(store))
    patient = upkeep(two, drift_interval_s=3600.0)
    for _ in range(3):
        patient.keep_schedules()
    assert exported == [two.store]
    eager = upkeep(two, drift_interval_s=1e-9)
    for _ in range(3):
        eager.keep_schedules()
    assert len(exported) == 4


def save_schedule(bench: Bench, collection: str) -> None:
    """Saves a schedule that is due, and waits for the drift."""
    message = pb.Schedule(only_if_due=True)
    message.interval.FromSeconds(60)
    made = schedule.from_message(message, time.time() - 100)
    clusterings = Clusterings(bench.store, collection)
    clusterings.ensure("default")
    schedule.save(clusterings, "default", made)


def last_run(bench: Bench, collection: str) -> str:
    found = schedule.load(Clusterings(bench.store, collection), "default")
    assert found is not None
    return found.last_run


def test_schedule_that_waits_for_the_drift_goes_by_the_store(two: Bench) -> None:
    """A clustering that has not aged is left; one that was never run, or lost its run, begins."""
    two.store.create_collection("new", [VectorInfo(VECTOR, DIM, "f" * 64)])
    two.store.create_collection("lost", [VectorInfo(VECTOR, DIM, "f" * 64)])
    for name in ("toys", "new", "lost"):
        save_schedule(two, name)
    Clusterings(two.store, "lost").compare_and_set("default", {"active_run": "gone"})
    upkeep(two).keep_schedules()
    assert [last_run(two, name) for name in ("toys", "new", "lost")] == [
        "",
        "started-new",
        "started-lost",
    ]


def test_drift_is_measured_against_the_clusters_and_the_noise(quick: Bench) -> None:
    """Sizes of the run's records, its noise beside them, and means from the sums of newcomers."""
    store_run(quick, "toys", (2, 1))
    ids = quick.put(blobs(8))
    for label, some in ((0, ids[:4]), (1, ids[4:5]), (NOISE, ids[5:8])):
        for one in some:
            quick.store.set_payload(
                "toys", {"a": label}, where=Filter((IdIn([one]),)), key="clusters.default"
            )
    quick.clusterings.compare_and_set(
        "default", {"run_noise": 1, "newcomers_clustered": 2, "newcomers_confidence": 0.5}
    )
    drift = ageing.measure(quick.store, "toys", quick.state)
    assert drift.newcomers == 2 + 2
    assert (drift.noise_share, drift.run_noise_share) == (0.5, 0.25)
    assert (drift.confidence, drift.run_confidence) == (0.25, 0.5)
    quick.clusterings.compare_and_set(
        "default", {"run_noise": 0, "newcomers_clustered": 0, "newcomers_confidence": 0.0}
    )
    without = ageing.measure(quick.store, "toys", quick.state)
    assert (without.confidence, without.run_noise_share) == (0.5, 0)
    quick.clusterings.compare_and_set("default", {"active_run": "lost"})
    with pytest.raises(NotFound):
        ageing.measure(quick.store, "toys", quick.state)


def test_metrics_are_of_the_clusterings_that_have_a_run(two: Bench) -> None:
    """Each has its numbers; one without a run, or whose run is lost, has none any more."""
    ageing.export(two.store, Unchanged(two.store))
    labels = {"collection": "toys", "clustering": "default"}
    zoo = {"collection": "zoo", "clustering": "default"}
    upkeep(two).assign_newcomers()
    ageing.export(two.store, Unchanged(two.store))
    drift = ageing.measure(two.store, "toys", two.state)
    assert metric("drift_newcomers", **labels) == drift.newcomers
    assert metric("drift_noise_share", **labels) == drift.noise_share
    assert metric("drift_confidence", **labels) == drift.confidence > 0
    assert metric("drift_psi", **labels) == drift.psi
    assert metric("recluster_due", **labels) == drift.due
    two.clusterings.compare_and_set("default", {"active_run": ""})
    Clusterings(two.store, "zoo").compare_and_set("default", {"active_run": "lost"})
    ageing.export(two.store, Unchanged(two.store))
    for name in ("recluster_due", "drift_newcomers", "drift_psi"):
        assert metric(name, **labels) is None
        assert metric(name, **zoo) is None
