from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from faulty_engine import Faulty, make_hasty, refuse
from prometheus_client import REGISTRY
from reclustering import DIM, Bench, blobs, fit_here
from serving import serving

from clusterer.config import ClustererConfig
from clusterer.fits import Fit, FitPlan
from clusterer.service import ClustererService
from shoal.errors import StoreUnavailable
from shoal.rpc.status import from_rpc_error
from shoal.store.model import Filter, IdIn
from shoal.v1 import clusterer_pb2 as pb
from shoal.v1 import clusterer_pb2_grpc
from shoal.values import VectorInfo
from shoal.vectors import Vectors

CONFIG = ClustererConfig(assign_interval_s=0.05, block_size=64)


@pytest.fixture
def stub(bench: Bench) -> Iterator[clusterer_pb2_grpc.ClustererServiceStub]:
    with serving(lambda: [ClustererService(CONFIG, bench.store, fit=fit_here)]) as served:
        yield clusterer_pb2_grpc.ClustererServiceStub(served.channel)


def asked(k: int, **fields: object) -> pb.CreateRunRequest:
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=k, n_init=1))
    return pb.CreateRunRequest(collection="toys", config=config, **fields)  # type: ignore[arg-type]


def finish(stub: clusterer_pb2_grpc.ClustererServiceStub, run: pb.Run) -> pb.Run:
    *_, last = stub.WatchRun(pb.WatchRunRequest(collection="toys", run=run.id))
    return last


def reason(error: grpc.RpcError) -> str:
    return from_rpc_error(error, "test").reason


def test_service_run_goes_from_request_to_clusters(bench: Bench) -> None:
    """CreateRun answers at once; WatchRun follows to the end; the clustering then shows it."""
    bench.put(blobs(200))
    with serving(lambda: [ClustererService(CONFIG, bench.store)]) as served:
        follow_a_run(clusterer_pb2_grpc.ClustererServiceStub(served.channel))


def follow_a_run(stub: clusterer_pb2_grpc.ClustererServiceStub) -> None:
    created = stub.CreateRun(asked(5))
    assert created.state == pb.RUN_STATE_RUNNING

    ended = finish(stub, created)

    assert ended.state == pb.RUN_STATE_SUCCEEDED
    assert (ended.active, ended.plan.clusters, ended.points_written) == (True, 5, 200)
    assert [t.stage for t in ended.stage_times] == [1, 2, 3, 4, 5, 6]
    clustering = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
    assert (clustering.active_run, clustering.assigned, clustering.clusters) == (ended.id, 200, 5)
    assert clustering.running == ""
    assert stub.GetRun(pb.GetRunRequest(collection="toys", run=ended.id[:8])) == ended


def test_service_same_request_id_is_the_same_run(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Sending a mutation again, during or after the run, starts nothing new."""
    bench.put(blobs(100))
    request = asked(3, request_id=str(uuid.uuid4()))
    first = stub.CreateRun(request)
    assert stub.CreateRun(request).id == first.id
    finish(stub, first)
    assert stub.CreateRun(request).id == first.id
    assert len(stub.ListRuns(pb.ListRunsRequest(collection="toys")).runs) == 1


def test_service_rollback_restores_and_repeats_as_one(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Rollback restores the earlier assignment exactly; the same request id does it once."""
    bench.put(blobs(200))
    first = finish(stub, stub.CreateRun(asked(3)))
    before = bench.labels()
    second = finish(stub, stub.CreateRun(asked(6)))
    assert bench.labels() != before

    request = pb.RollbackRequest(collection="toys", request_id=str(uuid.uuid4()))
    for _ in range(2):
        clustering = stub.Rollback(request)
        assert (clustering.active_run, clustering.previous_run) == (first.id, second.id)
        assert bench.labels() == before

    assert stub.Rollback(pb.RollbackRequest(collection="toys")).active_run == second.id


def test_service_run_and_its_watch_outlive_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever follows the run sees its end; whoever asks meanwhile is told when to come back."""
    make_hasty(monkeypatch)
    faulty = Faulty()
    bench = Bench(faulty.store())
    bench.put(blobs(60))
    gone, back, noticed = threading.Event(), threading.Event(), threading.Event()

    def fault(moment: str) -> None:
        in_run = threading.current_thread().name.startswith("run-")
        if in_run and moment == "before set_payload":
            gone.set()
        if gone.is_set() and not back.is_set():
            raise OSError("connection refused")

    faulty.fault = fault
    service = ClustererService(CONFIG, bench.store, fit=fit_here)
    read = service._runner.book.get

    def noting(collection: str, run: str) -> pb.Run:
        try:
            return read(collection, run)
        except StoreUnavailable:
            noticed.set()
            raise

    monkeypatch.setattr(service._runner.book, "get", noting)
    with serving(lambda: [service]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        run = stub.CreateRun(asked(3))
        watch = stub.WatchRun(pb.WatchRunRequest(collection="toys", run=run.id))
        assert next(watch).state == pb.RUN_STATE_RUNNING
        assert noticed.wait(20)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(pb.GetRunRequest(collection="toys", run=run.id))
        error = from_rpc_error(caught.value, "test")
        assert isinstance(error, StoreUnavailable)
        assert error.retry_after_s == 1.0
        back.set()
        *_, last = watch
    assert last.state == pb.RUN_STATE_SUCCEEDED


def test_service_watch_ends_when_the_store_is_away_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run waits no longer either."""
    make_hasty(monkeypatch)
    faulty = Faulty()
    bench = Bench(faulty.store())
    bench.put(blobs(60))
    config, go_on = replace(CONFIG, store_patience_s=0.2), threading.Event()

    def fit(plan: FitPlan, sample: Vectors, **others: Any) -> Fit:
        assert go_on.wait(20)
        return fit_here(plan, sample, **others)

    with serving(lambda: [ClustererService(config, bench.store, fit=fit)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        run = stub.CreateRun(asked(3))
        watch = stub.WatchRun(pb.WatchRunRequest(collection="toys", run=run.id))
        next(watch)
        faulty.fault = refuse
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
        assert reason(caught.value) == "STORE_UNAVAILABLE"
        faulty.fault = lambda _: None
        go_on.set()


def test_service_rollback_without_an_earlier_run_is_refused(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """The first run has nothing before it."""
    bench.put(blobs(50))
    finish(stub, stub.CreateRun(asked(2)))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rollback(pb.RollbackRequest(collection="toys"))
    assert reason(caught.value) == "NOTHING_TO_ROLL_BACK"


def test_service_second_run_is_refused_while_one_is_under_way(bench: Bench) -> None:
    """One run at a time; cancelling it frees the clustering and leaves it whole."""
    bench.put(blobs(3000, spread=2.0))
    with serving(lambda: [ClustererService(CONFIG, bench.store)]) as served:
        refuse_a_second_run(bench, clusterer_pb2_grpc.ClustererServiceStub(served.channel))


def refuse_a_second_run(bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub) -> None:
    slow = pb.ClusteringConfig(kmeans=pb.KMeans(k=100, n_init=10_000))
    running = stub.CreateRun(pb.CreateRunRequest(collection="toys", config=slow))
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateRun(asked(2))
    assert reason(caught.value) == "LEASE_HELD"
    assert running.id in str(caught.value.details())

    stub.CancelRun(pb.CancelRunRequest(collection="toys", run=running.id))

    assert finish(stub, running).state == pb.RUN_STATE_CANCELLED
    assert set(bench.labels().values()) == {None}
    assert finish(stub, stub.CreateRun(asked(2))).state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asked(9), "NOT_ENOUGH_POINTS"),
        (asked(0), "INVALID_ARGUMENT"),
        (asked(2, clustering="Bad Name"), "INVALID_ARGUMENT"),
        (asked(2, request_id="not a uuid"), "INVALID_ARGUMENT"),
        (asked(2, gates=pb.Gates(max_moved_share=2)), "INVALID_ARGUMENT"),
        (
            pb.CreateRunRequest(
                collection="toys",
                config=pb.ClusteringConfig(kmeans=pb.KMeans(k=2), sample_size=4_000_000_000),
            ),
            "INVALID_ARGUMENT",
        ),
        (pb.CreateRunRequest(collection="toys"), "INVALID_ARGUMENT"),
        (pb.CreateRunRequest(collection="none", config=asked(2).config), "NOT_FOUND"),
        (
            pb.CreateRunRequest(
                collection="toys", config=pb.ClusteringConfig(scp=pb.ScpHead(head="x"))
            ),
            "UNSUPPORTED",
        ),
    ],
    ids=["k", "zero", "clustering", "request_id", "gate", "sample", "method", "collection", "scp"],
)
def test_service_bad_request_is_refused_before_a_run_begins(
    bench: Bench,
    stub: clusterer_pb2_grpc.ClustererServiceStub,
    request_: pb.CreateRunRequest,
    expected: str,
) -> None:
    """Each kind of bad request has its own reason, and leaves no run and no lease."""
    bench.put(blobs(4))
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateRun(request_)
    assert reason(caught.value) == expected
    assert list(stub.ListRuns(pb.ListRunsRequest(collection="toys")).runs) == []
    assert finish(stub, stub.CreateRun(asked(2))).state == pb.RUN_STATE_SUCCEEDED


def test_service_same_request_at_once_is_one_run(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Eight callers with one request id get one run: nobody is refused, nothing runs twice."""
    bench.put(blobs(100))
    request = asked(3, request_id=str(uuid.uuid4()))
    calls = [stub.CreateRun.future(request) for _ in range(8)]
    runs = {call.result().id for call in calls}
    assert len(runs) == 1
    finish(stub, stub.CreateRun(request))
    assert bench.state.lease.fence == 1


def test_service_run_may_be_followed_by_a_rollback_at_once(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Who sees a run ended finds its lease free."""
    bench.put(blobs(60))
    for k in (2, 3, 4, 5):
        finish(stub, stub.CreateRun(asked(k)))
        if k > 2:
            assert stub.Rollback(pb.RollbackRequest(collection="toys")).running == ""


def test_service_run_that_fails_after_its_flip_has_succeeded(
    bench: Bench,
    stub: clusterer_pb2_grpc.ClustererServiceStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What readers see decides how a run ended, not an error on the way out."""
    bench.put(blobs(60))
    flush, seen = bench.store.flush, bench.clusterings.state

    def fail_once_live() -> None:
        flush()
        if seen("default").pointer.active_run:
            raise StoreUnavailable("gone")

    monkeypatch.setattr(bench.store, "flush", fail_once_live)
    ended = finish(stub, stub.CreateRun(asked(2)))
    assert (ended.state, ended.active, ended.error_message) == (pb.RUN_STATE_SUCCEEDED, True, "")


def test_service_rollback_of_an_unknown_clustering_makes_none(
    stub: clusterer_pb2_grpc.ClustererServiceStub,
) -> None:
    """A misspelt name is refused and leaves nothing behind."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rollback(pb.RollbackRequest(collection="toys", clustering="fien"))
    assert reason(caught.value) == "NOTHING_TO_ROLL_BACK"
    names = stub.ListClusterings(pb.ListClusteringsRequest(collection="toys")).clusterings
    assert [clustering.name for clustering in names] == ["default"]


def test_service_broken_clustering_does_not_starve_the_others(bench: Bench) -> None:
    """One clustering that cannot be assigned to costs only itself."""
    bench.put(blobs(60))
    bench.recluster(2)
    bench.store.create_collection("a-broken", [VectorInfo("toy", DIM, "f" * 64)])
    broken = Bench(bench.store, "a-broken")
    broken.put(blobs(60))
    broken.recluster(2)
    broken.clusterings.drop_clusters_except("default", (), fence=99)
    for one in (bench, broken):
        one.put(blobs(5, seed=9), first=100)
    with serving(lambda: [ClustererService(CONFIG, bench.store, fit=fit_here)]):
        deadline = time.monotonic() + 30
        while None in bench.labels().values() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert None not in bench.labels().values()
    assert None in broken.labels().values()


def test_service_stop_ends_runs_and_their_watches(bench: Bench) -> None:
    """A server that stops cancels the run under way, and who watches it is told so."""
    bench.put(blobs(3000, spread=2.0))
    seen: list[int] = []
    with serving(lambda: [ClustererService(CONFIG, bench.store)]) as served:
        channel = grpc.insecure_channel(served.address)  # outlives the server
        stub = clusterer_pb2_grpc.ClustererServiceStub(channel)
        slow = pb.ClusteringConfig(kmeans=pb.KMeans(k=100, n_init=10_000))
        run = stub.CreateRun(pb.CreateRunRequest(collection="toys", config=slow))
        watch = stub.WatchRun(pb.WatchRunRequest(collection="toys", run=run.id))
        seen.append(next(watch).state)
        thread = threading.Thread(target=lambda: seen.extend(now.state for now in watch))
        thread.start()
    thread.join(30)
    channel.close()
    assert (seen[0], seen[-1]) == (pb.RUN_STATE_RUNNING, pb.RUN_STATE_CANCELLED)


def test_service_lists_runs_newest_first_in_pages(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Pages join to the whole list, newest first."""
    bench.put(blobs(40))
    made = [finish(stub, stub.CreateRun(asked(k))).id for k in (2, 3, 4)]
    seen, token = [], ""
    while True:
        page = stub.ListRuns(pb.ListRunsRequest(collection="toys", page_size=2, page_token=token))
        seen += [run.id for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]


def test_service_forgets_old_runs_but_those_in_use(bench: Bench) -> None:
    """The newest two records stay, and of the older ones the active run's and the one before."""
    bench.put(blobs(40))
    config = ClustererConfig(assign_interval_s=0.05, block_size=64, kept_runs=2)
    with serving(lambda: [ClustererService(config, bench.store, fit=fit_here)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)

        def made(k: int, *, plan_only: bool) -> str:
            request = asked(k)
            request.plan_only = plan_only
            return finish(stub, stub.CreateRun(request)).id

        used = [made(k, plan_only=False) for k in (2, 3)]
        plans = [made(4, plan_only=True) for _ in range(4)]
        expected = [*plans[:1:-1], *used[::-1]]
        until = time.monotonic() + 30
        while time.monotonic() < until:
            listed = stub.ListRuns(pb.ListRunsRequest(collection="toys")).runs
            if len(listed) == len(expected):  # a run's end is told before old ones are dropped
                break
            time.sleep(0.02)
        assert [run.id for run in listed] == expected
        stub.Rollback(pb.RollbackRequest(collection="toys"))
        state = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
        assert state.active_run == used[0]
        with pytest.raises(grpc.RpcError) as gone:
            stub.GetRun(pb.GetRunRequest(collection="toys", run=plans[0]))
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND


def test_service_assigns_new_points_by_itself(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Points that come in after a run get a cluster without anyone asking."""
    bench.put(blobs(100))
    finish(stub, stub.CreateRun(asked(4)))
    bench.put(blobs(20, seed=2), first=500)
    deadline = time.monotonic() + 30
    while None in bench.labels().values() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert None not in bench.labels().values()


def test_service_restart_frees_the_lease_of_a_dead_process(bench: Bench) -> None:
    """The embedded store has one owner: a lease found at start-up belongs to nobody."""
    bench.put(blobs(60))
    bench.clusterings.ensure("default")
    run = str(uuid.uuid4())
    dead = pb.Run(id=run, collection="toys", clustering="default", state=pb.RUN_STATE_RUNNING)
    record = {
        "id": run,
        "collection": "toys",
        "clustering": "default",
        "state": "RUN_STATE_RUNNING",
    }
    bench.clusterings.put_run(
        dead.id, {"clustering": "default", "created_at": 1.0, "record": record}
    )
    bench.clusterings.compare_and_set(
        "default",
        {"lease_owner": "dead", "lease_run": run, "lease_expires": time.time() + 3600},
    )
    with serving(lambda: [ClustererService(CONFIG, bench.store, fit=fit_here)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        found = stub.GetRun(pb.GetRunRequest(collection="toys", run=run))
        assert found.state == pb.RUN_STATE_INTERRUPTED
        assert finish(stub, stub.CreateRun(asked(2))).state == pb.RUN_STATE_SUCCEEDED


def test_service_runs_a_schedule_by_itself(bench: Bench) -> None:
    """Each second, two clusterings of one collection, each with its method; removed, it stops."""
    bench.put(blobs(100))
    with serving(lambda: [ClustererService(CONFIG, bench.store, fit=fit_here)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        for name, k in (("coarse", 2), ("fine", 5)):
            schedule = pb.Schedule(request=asked(k))
            schedule.interval.FromSeconds(1)
            set_ = pb.SetScheduleRequest(collection="toys", clustering=name, schedule=schedule)
            answer = stub.SetSchedule(set_)
            assert answer.schedule.next_at.ToNanoseconds() > 0
        for name, k in (("coarse", 2), ("fine", 5)):
            until = time.monotonic() + 30
            while time.monotonic() < until:
                state = stub.GetClustering(
                    pb.GetClusteringRequest(collection="toys", clustering=name)
                )
                if state.active_run and state.schedule.last_run:
                    break
                time.sleep(0.1)
            assert state.clusters == k
            gone = stub.SetSchedule(pb.SetScheduleRequest(collection="toys", clustering=name))
            assert not gone.HasField("schedule")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asked(0), "k: expected 1"),
        (asked(2, gates=pb.Gates(max_moved_share=2)), "gates.max_moved_share"),
    ],
)
def test_service_schedule_of_what_could_never_run_is_refused(
    bench: Bench,
    stub: clusterer_pb2_grpc.ClustererServiceStub,
    request_: pb.CreateRunRequest,
    words: str,
) -> None:
    """A mistake is told when the schedule is set, not at night."""
    schedule = pb.Schedule(request=request_, cron="0 3 * * *")
    with pytest.raises(grpc.RpcError) as caught:
        stub.SetSchedule(pb.SetScheduleRequest(collection="toys", schedule=schedule))
    assert words in caught.value.details()
    state = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
    assert not state.HasField("schedule")
    assert bench.clusterings.schedule("default") is None


def test_service_tells_the_drift_and_exports_it(bench: Bench) -> None:
    """Newcomers that are many and elsewhere make reclustering due: answer and metric say so."""
    bench.put(blobs(100, spread=0.05))
    config = ClustererConfig(assign_interval_s=0.05, drift_interval_s=0.05, block_size=64)
    with serving(lambda: [ClustererService(config, bench.store, fit=fit_here)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        finish(stub, stub.CreateRun(asked(5)))
        before = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
        assert (before.drift.newcomers, before.drift.due) == (0, False)
        assert before.drift.run_confidence > 0.5
        bench.put(blobs(100, seed=4, centres=1, spread=0.6), first=500)
        until = time.monotonic() + 30
        metric = None
        while time.monotonic() < until and metric != 1.0:
            metric = REGISTRY.get_sample_value(
                "shoal_clusterer_recluster_due", {"collection": "toys", "clustering": "default"}
            )
            time.sleep(0.05)
        after = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
    assert metric == 1.0
    assert after.drift.due
    assert after.drift.newcomers == 100
    assert after.drift.confidence < after.drift.run_confidence
    assert len(after.drift.signs) >= 2


def test_service_lists_duplicates(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Groups by brute force, largest first; each member is near the first, which comes first."""
    vectors = blobs(60, spread=0.5)
    copies = np.repeat(vectors[:3], [3, 1, 5], axis=0)
    copies += np.random.default_rng(0).normal(size=copies.shape) * 0.005
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    ids = bench.put(np.concatenate([vectors, copies.astype(np.float32)]))
    request = pb.ListDuplicatesRequest(collection="toys", min_cosine=0.99)

    groups = list(stub.ListDuplicates(request))

    expected = [{2, *range(64, 69)}, {0, 60, 61, 62}, {1, 63}]
    assert [{ids.index(m.id) for m in group.members} for group in groups] == expected
    every = np.concatenate([vectors, copies])
    for group in groups:
        first = every[ids.index(group.members[0].id)]
        assert group.members[0].cosine == 1
        cosines = [m.cosine for m in group.members]
        assert cosines == sorted(cosines, reverse=True)
        for member in group.members:
            assert member.cosine == pytest.approx(first @ every[ids.index(member.id)], abs=1e-5)
            assert member.cosine >= 0.99
    strict = pb.ListDuplicatesRequest(collection="toys", min_cosine=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ListDuplicates(strict))
    assert "0.9 to 1, got 0.5" in caught.value.details()


def test_service_samples_vectors_and_nothing_that_could_be_a_label(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """The same bytes whatever the callers' fields and the clusters are: heads see no labels."""
    vectors = blobs(600)
    ids = bench.put(vectors)
    request = pb.SampleVectorsRequest(collection="toys", size=300, seed=4)
    before = list(stub.SampleVectors(request))
    assert (before[0].vector.name, before[0].vector.dim, before[0].total) == ("toy", DIM, 300)
    got = [point for message in before for point in message.ids]
    assert len(set(got)) == 300
    rows = np.concatenate([np.frombuffer(m.vectors, "<f4").reshape(-1, DIM) for m in before[1:]])
    np.testing.assert_allclose(rows, vectors[[ids.index(point) for point in got]], atol=1e-6)
    shuffled = np.random.default_rng(0).permutation(len(ids))
    for point, label in zip(ids, shuffled.tolist(), strict=True):
        bench.store.set_payload("toys", {"label": label}, where=Filter(must=(IdIn((point,)),)))
    finish(stub, stub.CreateRun(asked(5)))
    assert list(stub.SampleVectors(request)) == before
    other = pb.SampleVectorsRequest(collection="toys", size=300, seed=5)
    assert {point for m in stub.SampleVectors(other) for point in m.ids} != set(got)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.SampleVectors(pb.SampleVectorsRequest(collection="toys", size=2_000_000)))
    assert "size: expected at most 1000000, got 2000000" in caught.value.details()


def test_service_noise_only_needs_a_method_that_leaves_noise(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """k-means would put every point of noise somewhere."""
    bench.put(blobs(20))
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateRun(asked(2, noise_only=True))
    assert "expected method hdbscan or evoc, got kmeans" in caught.value.details()


def test_service_rollback_brings_back_what_the_drift_is_measured_by(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """After a rollback, and one back again, the run's own noise and confidence count."""
    bench.put(np.concatenate([blobs(200, spread=0.05), -blobs(30, spread=1.5, seed=3)]))
    density = pb.ClusteringConfig(hdbscan=pb.Hdbscan(min_cluster_size=10), duplicate_cosine=2)
    finish(stub, stub.CreateRun(asked(5)))
    finish(stub, stub.CreateRun(pb.CreateRunRequest(collection="toys", config=density)))

    def measured() -> tuple[float, float]:
        drift = stub.GetClustering(pb.GetClusteringRequest(collection="toys")).drift
        assert drift.newcomers == 0
        return drift.run_noise_share, drift.run_confidence

    noisy = measured()
    assert noisy[0] > 0.05
    stub.Rollback(pb.RollbackRequest(collection="toys"))
    whole = measured()
    assert whole[0] == 0
    assert whole[1] != noisy[1]
    stub.Rollback(pb.RollbackRequest(collection="toys"))
    assert measured() == noisy


def test_service_answers_for_a_clustering_whose_records_are_lost(
    bench: Bench, stub: clusterer_pb2_grpc.ClustererServiceStub
) -> None:
    """Without them there is no drift, and the clustering is told all the same."""
    bench.put(blobs(50))
    finish(stub, stub.CreateRun(asked(3)))
    bench.clusterings.drop_clusters_except("default", (), fence=2**31)
    state = stub.GetClustering(pb.GetClusteringRequest(collection="toys"))
    assert (state.clusters, state.assigned) == (0, 50)
    assert not state.HasField("drift")
    assert len(stub.ListClusterings(pb.ListClusteringsRequest(collection="toys")).clusterings) == 1
