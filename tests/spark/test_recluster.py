"""Reclustering on a Spark cluster of two workers: the same protocol, and the same clusters."""

from __future__ import annotations

import functools
import os
import signal
import time
import uuid
from dataclasses import replace

import numpy as np
import pytest
from pond import CONFIG, Pond
from reclustering import DIM, VECTOR, blobs
from sklearn.metrics import adjusted_rand_score
from standalone import Standalone

from clusterer.fits import Fit, plan_fit, run_fit
from clusterer.fits.models import Centroids, unpack
from clusterer.messages import method_options
from clusterer.runs.assign import Rule
from clusterer.runs.lease import Holder, acquire
from clusterer.runs.points import pack_ids
from clusterer.runs.sampling import Sample
from clusterer.runs.writeback import Written
from clusterer.spark.passes import Orders, write_slice
from shoal.client import Gates, GaussianMixture, KMeans, Run, RunOptions, RunState
from shoal.client.messages_runs import to_request
from shoal.errors import LeaseHeld, LeaseLost, OperatorError
from shoal.spark.cluster import SparkCluster
from shoal.spark.slices import slices_of
from shoal.store import Store, StoreConfig
from shoal.store.model import EVERYWHERE, Payload, Point
from shoal.values import VectorInfo

N = 1500
POINTS = blobs(N, spread=0.2)
SAME = 0.95
"""Least adjusted Rand index against the local engine, on data that has clusters."""


def nearest(pond: Pond, run: Run) -> list[int]:
    """The id of the cluster of ``run`` whose centroid is nearest to each of POINTS."""
    records = pond.clusterings.clusters("default", run.id)
    centroids = np.stack([record.centroid for record in records])
    return [records[row].cluster for row in (POINTS @ centroids.T).argmax(axis=1)]


def local_labels(method: KMeans | GaussianMixture) -> list[int]:
    """What the fit of the engine in one process makes of POINTS, as rows of its model."""
    request = to_request(method, "toys", "default", RunOptions())
    plan = plan_fit(method_options(request.config))
    return run_fit(plan, POINTS, None).model.assign(POINTS).labels.tolist()


@pytest.mark.parametrize(
    ("method", "bisecting"),
    [(KMeans(5), False), (KMeans(5), True), (GaussianMixture(5, reduced_dim=8), False)],
    ids=["kmeans", "bisecting", "gmm"],
)
def test_clusters_are_those_of_the_local_engine(
    pond: Pond, spark: SparkCluster, method: KMeans | GaussianMixture, *, bisecting: bool
) -> None:
    """On data with clusters, both engines agree with an adjusted Rand index of 0.95 or more."""
    ids = pond.put(POINTS)
    run = pond.recluster(spark, method, bisecting=bisecting)
    assert run.state is RunState.SUCCEEDED, run.error_message
    assert run.plan is not None
    assert (run.plan.points, run.plan.clusters, run.points_written) == (N, 5, N)
    labels = pond.of(ids)
    assert None not in labels
    assert adjusted_rand_score(local_labels(method), labels) >= SAME
    if isinstance(method, KMeans):
        assert labels == nearest(pond, run)
    model, clusters = unpack(pond.clusterings.model("default", run.id))
    assert clusters[model.assign(POINTS).labels].tolist() == labels


def test_second_run_keeps_the_ids_and_writes_next_to_nothing(
    pond: Pond, spark: SparkCluster
) -> None:
    """The same clusters found again, under another seed, keep their ids; both slots hold them."""
    ids = pond.put(POINTS)
    first = pond.recluster(spark, KMeans(5))
    before = pond.of(ids)
    second = pond.recluster(spark, KMeans(5), seed=1)
    assert second.plan is not None
    assert {line.kind for line in second.plan.lineage} == {"continued"}
    assert second.plan.moved == sum(a != b for a, b in zip(before, pond.of(ids), strict=True))
    assert second.plan.moved_share <= 0.01
    assert second.points_written == second.plan.to_write == second.plan.moved
    assert second.plan.agreement == pytest.approx(adjusted_rand_score(before, pond.of(ids)))
    assert (pond.state.pointer.active_run, pond.state.pointer.previous_run) == (second.id, first.id)


def test_points_without_the_vector_lose_an_earlier_label(
    store: Store, place: StoreConfig, spark: SparkCluster
) -> None:
    """What a run of another vector gave them is not taken for this one's."""
    specs = [VectorInfo(VECTOR, DIM, "f" * 64), VectorInfo("other", 2, "e" * 64)]
    pond = Pond(store, place, f"test-{uuid.uuid4().hex[:12]}")
    store.create_collection(pond.name, specs)
    try:
        ids = pond.put(POINTS)
        (only,) = pond.put(POINTS[:1], first=N)
        pond.recluster(spark, KMeans(5, n_init=1), vector=VECTOR)
        (label,) = pond.of([only])
        assert label is not None
        payload = {"clusters": {"default": {"a": label, "b": label}}, "ingested_at": 1.0}
        store.upsert(pond.name, [Point(only, {"other": np.array([1, 0], np.float32)}, payload)])
        run = pond.recluster(spark, KMeans(5, n_init=1), vector=VECTOR)
        assert run.state is RunState.SUCCEEDED, run.error_message
        assert pond.of([only]) == [None]
        assert None not in pond.of(ids)
    finally:
        store.drop_collection(pond.name)


def test_plan_is_that_of_the_points_and_writes_nothing(pond: Pond, spark: SparkCluster) -> None:
    """``plan_only`` counts what would be, and leaves slots, pointer and ids as they were."""
    ids = pond.put(POINTS)
    pond.recluster(spark, KMeans(5, n_init=1))
    slots, state = (pond.labels("a"), pond.labels("b")), pond.state
    run = pond.recluster(spark, KMeans(3, n_init=1), plan_only=True, cold_start=True)
    assert run.state is RunState.PLANNED
    assert run.plan is not None
    assert (run.plan.points, run.plan.clusters, run.points_written) == (N, 3, 0)
    assert sum(line.size for line in run.plan.lineage if line.kind != "retired") == N
    assert 0 < run.plan.moved < N
    assert run.plan.to_write == run.plan.moved
    assert run.plan.silhouette is not None
    assert (pond.labels("a"), pond.labels("b")) == slots
    now = pond.state
    assert (now.pointer.active_run, now.next_cluster) == (
        state.pointer.active_run,
        state.next_cluster,
    )
    assert len(ids) == N


def test_gate_refuses_a_plan(pond: Pond, spark: SparkCluster) -> None:
    """A plan past a gate is refused, and readers see what they saw."""
    pond.put(POINTS)
    first = pond.recluster(spark, KMeans(5, n_init=1))
    run = pond.recluster(
        spark, KMeans(3, n_init=1), cold_start=True, gates=Gates(max_moved_share=0.01)
    )
    assert run.state is RunState.REFUSED
    assert run.plan is not None
    assert run.plan.objections
    assert pond.state.pointer.active_run == first.id


def test_run_under_way_excludes_others(pond: Pond, spark: SparkCluster) -> None:
    """While anybody holds the lease, a Spark run does not begin; and it holds it itself."""
    pond.put(POINTS)
    lease, _ = acquire(pond.clusterings, Holder("default", "somebody", "a-run", 30))
    with lease, pytest.raises(LeaseHeld):
        pond.recluster(spark, KMeans(5, n_init=1))
    refused = []

    def try_another(run: Run) -> None:
        if not refused and run.stage == "fit":
            with pytest.raises(LeaseHeld) as caught:
                acquire(pond.clusterings, Holder("default", "another", "b-run", 30))
            refused.append(caught.value.metadata["run"])
            assert run.id in refused

    assert (
        pond.recluster(spark, KMeans(5, n_init=1), on_change=try_another).state
        is RunState.SUCCEEDED
    )


def test_points_that_come_in_meanwhile_are_caught_up_with(pond: Pond, spark: SparkCluster) -> None:
    """A point stored while a run writes is in the slot that the run flips to."""
    pond.put(POINTS)
    late: list[str] = []

    def store_more(run: Run) -> None:
        if not late and run.stage in {"write", "cutover"}:
            late.extend(pond.put(POINTS[:50], first=N, age_s=0.0))

    run = pond.recluster(spark, KMeans(5, n_init=1), on_change=store_more)
    assert run.state is RunState.SUCCEEDED, run.error_message
    assert pond.of(late) == nearest(pond, run)[:50]


def test_killed_executor_costs_only_time(
    pond: Pond, spark: SparkCluster, machines: Standalone
) -> None:
    """``kill -9`` of an executor while it writes: Spark repeats its slices, and all is written."""
    ids = pond.put(POINTS)
    pond.config = replace(CONFIG, write_chunk=5)  # so that writing takes more than a moment
    killed: list[int] = []

    def kill(run: Run) -> None:
        if not killed and run.stage == "write":
            killed.append(machines.executors()[0])
            os.kill(killed[0], signal.SIGKILL)

    run = pond.recluster(spark, KMeans(5, n_init=1), on_change=kill)
    assert killed
    assert killed[0] not in machines.executors()
    assert run.state is RunState.SUCCEEDED, run.error_message
    assert pond.of(ids) == nearest(pond, run)
    assert set(pond.labels("a").values()) == set(pond.labels("b").values()) == set(range(5))


def test_run_that_lost_its_lease_fails_and_changes_nothing(pond: Pond, spark: SparkCluster) -> None:
    """A run that was overtaken while it fitted ends as failed; the other's slot is as it was."""
    pond.put(POINTS)
    pond.config = replace(CONFIG, lease_ttl_s=6)  # it looks at its lease every two seconds
    first = pond.recluster(spark, KMeans(5, n_init=1))
    overtaken: list[dict[str, int | None]] = []

    def overtake(run: Run) -> None:
        if not overtaken and run.stage == "fit":
            take_over(pond)
            overtaken.append(pond.labels(pond.state.pointer.inactive_slot))

    run = pond.recluster(spark, KMeans(3, n_init=1), cold_start=True, on_change=overtake)
    assert (run.state, run.error_reason) == (RunState.FAILED, "LEASE_LOST")
    assert pond.labels(pond.state.pointer.inactive_slot) == overtaken[0]
    assert pond.state.pointer.active_run == first.id


def take_over(pond: Pond) -> None:
    """Another run has the lease, under a higher fence."""
    changes: Payload = {
        "fence": pond.state.lease.fence + 1,
        "lease_owner": "another",
        "lease_run": "b-run",
        "lease_expires": time.time() + 60,
    }
    pond.clusterings.compare_and_set("default", changes)


def test_executor_of_an_overtaken_run_writes_nothing(pond: Pond, spark: SparkCluster) -> None:
    """A task looks at the fence in the store, whatever its driver believes; and so does a rerun."""
    pond.put(POINTS)
    lease, state = acquire(pond.clusterings, Holder("default", "us", "a-run", 30))
    rule = Rule(Fit(Centroids(POINTS[:5])), Sample(pack_ids([]), POINTS[:0]))
    orders = Orders(
        store=pond.place,
        collection=pond.name,
        vector=VECTOR,
        state=state,
        run="a-run",
        fence=lease.fence,
        rule=rule,
        fields=(),
        block_size=256,
        write_chunk=50,
    )
    work = functools.partial(write_slice, orders, np.arange(5, dtype=np.int32), EVERYWHERE)
    first, second = slices_of(2)
    with lease:
        done = spark.reduce(work, Written.join, [first], check=lambda: None)
        assert 0 < done.points < N
        again = spark.reduce(work, Written.join, [first], check=lambda: None)
        assert (again.points, again.labels) == (0, done.labels)
        take_over(pond)
        with pytest.raises(LeaseLost, match="a-run is over"):
            spark.reduce(work, Written.join, [second], check=lambda: None)
    assert sum(label is not None for label in pond.labels("a").values()) == done.points


def test_error_of_spark_is_one_line(spark: SparkCluster) -> None:
    """A task that raises something that is not ours: what it was, without Java's trace."""
    with pytest.raises(OperatorError, match=r"^the Spark job failed: ZeroDivisionError: .*zero$"):
        spark.map(lambda n: 1 // n, [0], check=lambda: None)
