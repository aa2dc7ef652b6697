from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reclustering import DIM, Bench, after, blobs, fit_here
from sklearn.metrics import adjusted_rand_score

from clusterer.fits import Fit, plan_fit, run_fit
from clusterer.fits.hdbscan import HdbscanOptions
from clusterer.runs import writeback
from clusterer.runs.naming import NameSources
from clusterer.runs.newcomers import Newcomers
from clusterer.runs.points import unpack_ids
from clusterer.runs.run import Reclustering
from clusterer.runs.sampling import sample_vectors
from clusterer.runs.task import Outcome
from clusterer.runs.writeback import Seal, SlotWriter
from shoal.errors import (
    Cancelled,
    Conflict,
    LeaseHeld,
    LeaseLost,
    NotEnoughPoints,
    StoreUnavailable,
)
from shoal.store import Store, StoreConfig, open_store
from shoal.store.clusterings import FENCE
from shoal.store.model import (
    Block,
    Filter,
    IdIn,
    Payload,
    Point,
    Scan,
    VectorBlock,
    VectorScan,
    point_id,
)
from shoal.values import Gates, VectorInfo
from shoal.vectors import NOISE, Vectors, unit


def test_run_first_assigns_every_point_in_both_slots(bench: Bench) -> None:
    """The first run gives every point the cluster of its nearest centroid, in both slots."""
    vectors = blobs(300)
    ids = bench.put(vectors)

    run = bench.recluster(5)

    clusters = bench.clusterings.clusters("default", bench.state.pointer.active_run)
    centroids = np.stack([c.centroid for c in clusters])
    nearest = [clusters[row].cluster for row in (vectors @ centroids.T).argmax(axis=1)]
    assert bench.labels("a") == bench.labels("b") == dict(zip(ids, nearest, strict=True))
    assert run.progress.points_written == 300
    assert sorted(c.size for c in clusters) == [60] * 5


def test_run_again_keeps_ids_and_writes_only_what_moved(bench: Bench) -> None:
    """With another seed, clusters that continue keep their ids; only moved points are written."""
    bench.put(blobs(400, spread=0.45))
    bench.recluster(5)
    before = bench.labels()

    run = bench.recluster(5, seed=9, warm_start=False)

    after = bench.labels()
    moved = sum(before[one] != after[one] for one in before)
    assert run.progress.plan is not None
    assert run.progress.plan.moved == run.progress.points_written == moved < 100
    kinds = [line.kind for line in run.progress.plan.lineage]
    assert kinds.count("continued") >= 4
    assert bench.labels(bench.state.pointer.inactive_slot) == before


def test_run_with_more_clusters_never_reuses_an_id(bench: Bench) -> None:
    """Ids of clusters that are gone never come back, whatever the number of clusters."""
    bench.put(blobs(300))
    seen: set[int] = set()
    gone: set[int] = set()
    for k in (5, 2, 5, 3, 6):
        bench.recluster(k, warm_start=False)
        now = {c for c in bench.labels().values() if c is not None}
        assert not now & gone
        gone |= seen - now
        seen |= now


def test_rollback_state_survives_until_next_run_writes(bench: Bench) -> None:
    """After a run that changed nothing for readers of the other slot, both runs are whole."""
    bench.put(blobs(200))
    first = bench.recluster(4)
    before = bench.labels()
    second = bench.recluster(6, warm_start=False)

    state = bench.state

    assert (state.pointer.active_run, state.pointer.previous_run) == (
        second.task.run,
        first.task.run,
    )
    assert bench.labels(state.pointer.inactive_slot) == before


def test_run_plan_only_writes_nothing(bench: Bench) -> None:
    """A plan reports what would change, and leaves points and pointer as they were."""
    bench.put(blobs(200))
    bench.recluster(4)
    before, state = (bench.labels("a"), bench.labels("b")), bench.state

    run, execute = bench.start(bench.task(7, plan_only=True, warm_start=False))

    assert execute() == Outcome.PLANNED
    assert run.progress.plan is not None
    assert run.progress.plan.clusters == 7
    assert run.progress.plan.to_write > 0
    assert (bench.labels("a"), bench.labels("b")) == before
    assert bench.state.pointer.active_run == state.pointer.active_run
    assert bench.state.pointer.previous_run == state.pointer.previous_run


def test_run_past_a_gate_is_refused_unless_forced(bench: Bench) -> None:
    """A plan past its thresholds does not go live; with force it does."""
    bench.put(blobs(200))
    bench.recluster(2)
    before = bench.labels()
    gates = Gates(max_moved_share=0.1)

    run, execute = bench.start(bench.task(5, gates=gates, warm_start=False))
    assert execute() == Outcome.REFUSED
    assert run.progress.objections
    assert "moved share" in run.progress.objections[0]
    assert bench.labels() == before

    _, execute = bench.start(bench.task(5, gates=gates, warm_start=False, force=True))
    assert execute() == Outcome.SUCCEEDED
    assert bench.labels() != before


def test_run_catches_up_with_points_that_come_during_it(bench: Bench) -> None:
    """Points stored, replaced or deleted at any time of a run are right in the new slot."""
    vectors = blobs(200)
    ids = bench.put(vectors)
    bench.recluster(5)
    late, later = blobs(40, seed=3), blobs(7, seed=5)

    def fit(*arguments: object, **options: object) -> Fit:
        bench.put(late, first=1000, age_s=0)
        return fit_here(*arguments, **options)  # type: ignore[arg-type]

    def meddle() -> None:
        bench.put(-vectors[20:25], first=20, age_s=0)
        bench.put(later, first=2000, age_s=0)
        bench.store.delete(bench.collection, Filter((IdIn(ids[198:]),)))

    engine = after(changes=lambda: bench.put(-vectors[:20], age_s=0), write=meddle)
    _, execute = bench.start(bench.task(5, seed=1, warm_start=False), fit=fit, make_engine=engine)
    assert execute() == Outcome.SUCCEEDED

    truth = {
        **dict(
            zip(
                ids[:198],
                bench.nearest(np.concatenate([-vectors[:25], vectors[25:198]])),
                strict=True,
            )
        ),
        **{point_id(str(1000 + i)): c for i, c in enumerate(bench.nearest(late))},
        **{point_id(str(2000 + i)): c for i, c in enumerate(bench.nearest(later))},
    }
    assert bench.labels() == truth


def test_run_verification_mends_a_foreign_write(bench: Bench) -> None:
    """A slot that someone else wrote in between is found by the counts, and mended."""
    ids = bench.put(blobs(200))
    bench.recluster(4)
    slot = bench.state.pointer.inactive_slot

    def spoil() -> None:
        where = Filter((IdIn(ids[:30]),))
        bench.store.set_payload(bench.collection, {slot: 77}, where=where, key="clusters.default")

    _, execute = bench.start(bench.task(4, seed=2), make_engine=after(write=spoil))
    assert execute() == Outcome.SUCCEEDED
    assert 77 not in bench.labels().values()


def test_run_with_newcomers_verifies_by_counts_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that came in during a run do not make its verification read every point."""
    bench.put(blobs(200))
    bench.recluster(4)
    engine = after(write=lambda: bench.put(blobs(9, seed=4), first=900, age_s=0))
    _, execute = bench.start(bench.task(4, seed=2), make_engine=engine)
    monkeypatch.setattr(writeback, "_wrong", lambda *_: pytest.fail("read every point"))
    assert execute() == Outcome.SUCCEEDED


def test_run_killed_in_writing_leaves_nothing_to_roll_back(bench: Bench) -> None:
    """Once a run has begun to overwrite the previous assignment, that is no longer offered."""
    bench.put(blobs(300))
    bench.recluster(3)
    bench.recluster(4, warm_start=False)
    assert bench.state.pointer.previous_run
    cancelled = threading.Event()
    _, execute = bench.start(
        bench.task(6, warm_start=False),
        make_engine=after(write=cancelled.set),
        cancelled=cancelled,
    )
    with pytest.raises(Cancelled):
        execute()
    assert bench.state.pointer.previous_run == ""


def test_run_flips_only_under_the_cutover_lock(bench: Bench) -> None:
    """While new points are being assigned, which takes the same lock, the pointer stays."""
    bench.put(blobs(100))
    bench.recluster(3)
    active = bench.state.pointer.active_run
    run, execute = bench.start(bench.task(5, warm_start=False))
    thread = threading.Thread(target=execute)
    with bench.cutover_lock:
        thread.start()
        deadline = time.monotonic() + 60
        while run.progress.stage != "cutover" and time.monotonic() < deadline:
            time.sleep(0.01)
        thread.join(0.2)
        assert thread.is_alive()
        assert bench.state.pointer.active_run == active
    thread.join(60)
    assert bench.state.pointer.active_run != active


def test_run_needs_as_many_points_as_clusters(bench: Bench) -> None:
    """More clusters than points is an error that names both."""
    bench.put(blobs(3))
    _, execute = bench.start(bench.task(4))
    with pytest.raises(NotEnoughPoints, match=r"k = 4 .* 'toys', which is 3"):
        execute()


def test_run_mends_a_clustering_whose_records_are_lost(bench: Bench) -> None:
    """Without the active run's cluster records, a run starts afresh, with ids never used before."""
    bench.put(blobs(100))
    bench.recluster(3)
    lost = set(bench.labels().values())
    bench.clusterings.drop_clusters_except("default", (), fence=99)
    bench.recluster(3)
    assert len(set(bench.labels().values())) == 3
    assert not lost & set(bench.labels().values())


def test_run_of_equal_vectors_gives_one_cluster(bench: Bench) -> None:
    """Fewer different vectors than clusters gives fewer clusters, none of them empty."""
    bench.put(np.repeat(blobs(1), 20, axis=0))
    bench.recluster(3)
    assert len(bench.clusterings.clusters("default", bench.state.pointer.active_run)) == 1
    assert len(set(bench.labels().values())) == 1


@pytest.mark.parametrize("stage", ["sample", "fit", "assign", "plan", "write", "cutover"])
def test_run_cancelled_in_any_stage_leaves_the_active_run_whole(bench: Bench, stage: str) -> None:
    """Cancelling in any stage changes nothing for readers, and the next run completes."""
    bench.put(blobs(300))
    bench.recluster(3)
    before, active = bench.labels(), bench.state.pointer.active_run

    def cancel_inside() -> None:
        if run.progress.stage == stage:
            bench.cancelled.set()

    run, execute = bench.start(bench.task(6, warm_start=False), changed=cancel_inside)
    with pytest.raises(Cancelled):
        execute()

    assert bench.labels() == before
    assert bench.state.pointer.active_run == active
    bench.recluster(6, warm_start=False)
    assert len(set(bench.labels().values())) == 6


def _failing_writes(bench: Bench, monkeypatch: pytest.MonkeyPatch, fatal: int) -> list[int]:
    """Makes the ``fatal``-th payload write of the store, and all after it, fail."""
    count = [0]
    real = bench.store.set_payload

    def set_payload(name: str, payload: Payload, *, where: Filter, key: str | None = None) -> None:
        count[0] += 1
        if count[0] >= fatal:
            raise StoreUnavailable("gone")
        real(name, payload, where=where, key=key)

    monkeypatch.setattr(bench.store, "set_payload", set_payload)
    return count


@pytest.mark.parametrize("fatal", range(1, 7))
def test_run_whose_store_fails_at_any_write_changes_nothing_for_readers(
    bench: Bench, fatal: int
) -> None:
    """Whatever write is the last before the store goes away, readers see one whole run."""
    bench.put(blobs(300))
    bench.recluster(3)
    before, active = bench.labels(), bench.state.pointer.active_run
    run, _ = bench.start(bench.task(6, warm_start=False))

    with pytest.MonkeyPatch.context() as patch:
        _failing_writes(bench, patch, fatal)
        with pytest.raises(StoreUnavailable):
            run.execute()
    bench.lease.release()

    after = bench.labels()
    assert bench.state.pointer.active_run == active or len(set(after.values())) == 6
    if bench.state.pointer.active_run == active:
        assert after == before
    bench.recluster(6, seed=4, warm_start=False)
    assert len(set(bench.labels().values())) == 6
    assert None not in bench.labels().values()


CHANGES = ("set_payload", "upsert", "delete", "delete_fields", "flush")
"""The methods of a store that change it, or that a run relies on for that."""


def test_run_whose_store_fails_at_any_change_leaves_a_whole_clustering(bench: Bench) -> None:
    """Every change that a run makes is once the last: what readers see is one run or the other."""
    bench.put(blobs(120))
    bench.recluster(3)
    fatal, done = 0, False
    while not done:
        fatal += 1
        before, active = bench.labels(), bench.state.pointer.active_run
        run, _ = bench.start(bench.task(3 + fatal % 2, seed=fatal, warm_start=False))
        count = [0]
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(bench.store, name, _counted(bench, name, count, fatal))
            try:
                assert run.execute() == Outcome.SUCCEEDED
                done = count[0] < fatal
            except StoreUnavailable:
                pass
        bench.lease.release()
        after = bench.labels()
        assert None not in after.values()
        if bench.state.pointer.active_run == active:
            assert after == before
        else:
            assert list(after.values()) == bench.nearest(bench.vectors(after))
    assert fatal > 10


def _counted(bench: Bench, name: str, count: list[int], fatal: int) -> Callable[..., object]:
    real = getattr(bench.store, name)

    def change(*arguments: object, **options: object) -> object:
        renewal = threading.current_thread() is not threading.main_thread()
        count[0] += not renewal
        if count[0] >= fatal and not renewal:
            raise StoreUnavailable("gone")
        return real(*arguments, **options)

    return change


class CancelledAtLook(threading.Event):
    """An event that is set once it was looked at ``looks`` times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_run_cancelled_at_any_look_leaves_the_active_run_whole(bench: Bench) -> None:
    """Wherever a run looks whether it is to stop, it may be told so."""
    bench.put(blobs(120))
    bench.recluster(3)
    before, active = bench.labels(), bench.state.pointer.active_run
    looks = 0
    while True:
        looks += 1
        cancelled = CancelledAtLook(looks)
        _, execute = bench.start(bench.task(6, warm_start=False), cancelled=cancelled)
        try:
            outcome = execute()
        except Cancelled:
            assert bench.labels() == before
            assert bench.state.pointer.active_run == active
        else:
            assert outcome == Outcome.SUCCEEDED
            assert cancelled.left > 0
            break
    assert looks > 15
    assert len(set(bench.labels().values())) == 6


@pytest.mark.parametrize("first", [True, False], ids=["first-run", "later-run"])
@pytest.mark.parametrize("write", [1, 4])
def test_run_asleep_with_a_write_to_send_changes_nothing_when_it_wakes(
    bench: Bench, *, write: int, first: bool
) -> None:
    """Paused after its last look at the lease, it sends when another run is long active.

    Not even points that the other run had no reason to write, or that were replaced since.
    """
    ids = bench.put(blobs(300))
    if not first:
        bench.recluster(3)
    _, execute = bench.start(bench.task(6, warm_start=False))
    lease = bench.lease
    real, sent = bench.store.set_payload, [0]
    replaced = blobs(20, seed=8)
    seen: list[dict[str, int | None]] = []

    def sleep(name: str, payload: Payload, *, where: Filter, key: str | None = None) -> None:
        sent[0] += name == bench.collection
        if name == bench.collection and sent[0] == write:
            sent[0] += 1_000  # the writes of the other run are nobody's sleep
            bench.clusterings.compare_and_set("default", {"lease_expires": 0.0})
            lease._valid_until = 0.0
            second = bench.recluster(6, seed=4, warm_start=False)
            bench.put(replaced, age_s=-1)
            Newcomers(bench.store, bench.collection, "default").assign(
                block_size=64, check=lambda: None
            )
            assert bench.state.pointer.active_run == second.task.run
            seen.append(bench.labels())
            with pytest.raises(LeaseLost) as lost:  # as its renewing thread finds when it wakes
                lease._set({}, bench.clusterings)
            lease._lost = lost.value
        real(name, payload, where=where, key=key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.store, "set_payload", sleep)
        with pytest.raises(LeaseLost):
            execute()
    assert bench.labels() == seen[0]
    assert [seen[0][one] for one in ids[:20]] == bench.nearest(replaced)
    assert not bench.state.unsettled


def test_only_the_run_after_one_that_did_not_end_writes_every_point(bench: Bench) -> None:
    """It seals them; the next one writes what differs, as always."""
    bench.put(blobs(300))
    bench.recluster(3)
    assert bench.recluster(3).progress.points_written == 0
    _, execute = bench.start(bench.task(6, warm_start=False))
    with pytest.MonkeyPatch.context() as patch:
        _failing_writes(bench, patch, 3)
        with pytest.raises(StoreUnavailable):
            execute()
    bench.clusterings.compare_and_set("default", {"lease_expires": 0.0})
    assert bench.state.unsettled
    assert bench.recluster(3).progress.points_written == 300
    assert bench.recluster(3).progress.points_written == 0


def test_run_without_a_free_lease_is_refused(bench: Bench) -> None:
    """While one run holds the lease, a second cannot begin, and is told which one holds it."""
    bench.put(blobs(50))
    task = bench.task(2)
    _, execute = bench.start(task)
    with pytest.raises(LeaseHeld, match=task.run):
        bench.start(bench.task(3))
    assert execute() == Outcome.SUCCEEDED
    bench.recluster(3)


def test_run_that_lost_its_lease_does_not_flip(bench: Bench) -> None:
    """A run whose lease another took cannot move the pointer, however far it has come."""
    bench.put(blobs(100))
    bench.recluster(2)
    active = bench.state.pointer.active_run

    def usurp() -> None:
        fence = bench.state.lease.fence
        bench.clusterings.compare_and_set(
            "default", {"fence": fence + 1, "lease_owner": "usurper", "lease_run": "x"}
        )

    engine = after(settle=usurp)
    _, execute = bench.start(bench.task(4, warm_start=False), make_engine=engine)
    with pytest.raises(LeaseLost):
        execute()
    assert bench.state.pointer.active_run == active
    assert bench.state.lease.owner == "usurper"


def _assign(bench: Bench) -> int:
    newcomers = Newcomers(bench.store, bench.collection, "default")
    return newcomers.assign(block_size=32, check=lambda: None)


def test_newcomers_get_the_nearest_cluster_of_both_runs(bench: Bench) -> None:
    """A new point gets the nearest centroid of the active run, and of the previous one."""
    bench.put(blobs(200))
    bench.recluster(4)
    bench.recluster(6, warm_start=False)
    late = blobs(50, seed=8)
    ids = bench.put(late, first=500)

    assert _assign(bench) == 50
    assert _assign(bench) == 0

    state = bench.state
    for slot, run in (
        (state.pointer.active_slot, state.pointer.active_run),
        (state.pointer.inactive_slot, state.pointer.previous_run),
    ):
        labels = bench.labels(slot)
        assert [labels[one] for one in ids] == bench.nearest(late, run)


@pytest.mark.parametrize("change", ["assigned", "replaced"])
def test_newcomers_that_change_under_the_look_keep_what_they_have(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A point assigned or replaced between reading and writing is not overwritten."""
    bench.put(blobs(100))
    bench.recluster(4)
    late = blobs(5, seed=8)
    ids = bench.put(late, first=500, age_s=5)
    scan = bench.store.scan

    def scan_then_change(name: str, options: Scan) -> Iterator[Block]:
        for block in scan(name, options):
            if change == "replaced" and isinstance(block, VectorBlock) and len(block) == 5:
                bench.put(-late, first=500, age_s=0)
            elif len(block) == 5:
                where = Filter((IdIn(ids),))
                state = bench.state
                labels = {state.pointer.active_slot: 77, FENCE: state.lease.fence + 1}
                bench.store.set_payload(name, dict(labels), where=where, key="clusters.default")
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "scan", scan_then_change)
        _assign(bench)
    labels = bench.labels()
    assert {labels[one] for one in ids} == ({77} if change == "assigned" else {None})


def test_newcomers_after_runs_on_different_vectors(store: Store) -> None:
    """The previous run's centroids are of another space: only the active slot is filled."""
    specs = [VectorInfo("wide", DIM, "a" * 64), VectorInfo("narrow", 4, "b" * 64)]
    store.create_collection("toys", specs)
    bench = Bench(store)

    def put(first: int, count: int) -> list[str]:
        wide = blobs(count, seed=first)
        narrow = wide[:, :4] / np.linalg.norm(wide[:, :4], axis=1, keepdims=True)
        ids = [point_id(str(first + i)) for i in range(count)]
        store.upsert(
            "toys",
            [
                Point(one, {"wide": w, "narrow": n}, {"ingested_at": 1.0})
                for one, w, n in zip(ids, wide, narrow, strict=True)
            ],
        )
        return ids

    put(0, 60)
    bench.recluster(3, vector="wide")
    bench.recluster(4, vector="narrow")
    ids = put(100, 5)
    assert _assign(bench) == 5
    active, other = bench.labels(), bench.labels(bench.state.pointer.inactive_slot)
    assert all(active[one] is not None and other[one] is None for one in ids)


def test_newcomers_leave_the_inactive_slot_to_a_run_under_way(bench: Bench) -> None:
    """While a lease is held, only the slot that readers follow is filled."""
    bench.put(blobs(100))
    bench.recluster(3)
    _, execute = bench.start(bench.task(3))
    ids = bench.put(blobs(5, seed=4), first=900, age_s=0)
    assert _assign(bench) == 5
    active, inactive = (
        bench.labels(s)
        for s in (bench.state.pointer.active_slot, bench.state.pointer.inactive_slot)
    )
    assert all(active[one] is not None for one in ids)
    assert all(inactive[one] is None for one in ids)
    assert execute() == Outcome.SUCCEEDED
    assert None not in bench.labels().values()


def test_newcomers_before_the_first_run_wait(bench: Bench) -> None:
    """Without an active run there is nothing to assign to."""
    bench.put(blobs(5))
    assert _assign(bench) == 0
    assert set(bench.labels().values()) == {None}


def test_lease_that_expired_is_taken_over(bench: Bench) -> None:
    """A lease past its time goes to the next run, under a higher fence."""
    bench.put(blobs(50))
    bench.clusterings.ensure("default")
    bench.clusterings.compare_and_set(
        "default",
        {"lease_owner": "dead", "lease_run": "dead", "lease_expires": time.time() - 1, "fence": 9},
    )
    bench.recluster(2)
    assert bench.state.lease.fence == 10
    assert bench.state.lease.owner == ""


DENSITY = plan_fit(HdbscanOptions(min_cluster_size=10), duplicate_cosine=2)


def density(bench: Bench, **changes: object) -> Reclustering:
    """A run of hdbscan on what is stored."""
    return bench.recluster(0, fit=DENSITY, **changes)


def test_run_of_a_density_method_keeps_its_own_labels(bench: Bench) -> None:
    """Every point that the fit saw has hdbscan's label, noise included, in both slots."""
    vectors = np.concatenate([blobs(200, spread=0.05), scattered(40)])
    ids = bench.put(vectors)

    density(bench)

    # hdbscan breaks ties by the order of its input, so it is given the run's own.
    sample = sample_vectors(
        bench.store, "toys", VectorScan(vector="toy"), size=1000, seed=0, progress=lambda _: None
    )
    truth = run_fit(DENSITY, sample.vectors, None).labels
    assert truth is not None
    assert 0 < (truth == NOISE).sum() < 60
    held = bench.labels()
    assert set(held) == set(ids)
    got = np.array([held[one] for one in unpack_ids(sample.ids)])
    assert adjusted_rand_score(truth, got) == 1
    np.testing.assert_array_equal(truth == NOISE, got == NOISE)
    assert bench.labels("a") == bench.labels("b")
    assert bench.state.drift.run_noise == (truth == NOISE).sum()
    assert 0 < bench.state.drift.run_confidence <= 1


def scattered(n: int, seed: int = 11) -> Vectors:
    """``n`` directions that have nothing in common, (n, DIM)."""
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def test_newcomers_of_a_density_run_are_assigned_or_noise(bench: Bench) -> None:
    """What lies in a cluster joins it, what lies nowhere is noise; both are counted."""
    vectors = np.concatenate([blobs(200, spread=0.05), scattered(40)])
    bench.put(vectors)
    density(bench)
    inside = bench.put(blobs(50, seed=3, spread=0.04), first=1000)
    outside = bench.put(scattered(30, seed=12), first=2000)

    assert _assign(bench) == 80

    labels = bench.labels()
    assert sum(labels[one] == NOISE for one in inside) <= 10
    assert sum(labels[one] == NOISE for one in outside) >= 25
    state = bench.state
    noise = sum(labels[one] == NOISE for one in (*inside, *outside))
    assert state.drift.newcomers_clustered == 80 - noise
    assert 0.5 < state.drift.newcomers_confidence / state.drift.newcomers_clustered <= 1
    density(bench)
    assert (bench.state.drift.newcomers_clustered, bench.state.drift.newcomers_confidence) == (
        0,
        0.0,
    )


def test_noise_is_clustered_alone(bench: Bench) -> None:
    """New clusters are made of noise only; every other point stays where it was."""
    bench.put(np.concatenate([blobs(200, spread=0.05), scattered(30)]))
    density(bench)
    hidden = -blobs(60, centres=2, seed=5, spread=0.05)
    new = bench.put(hidden, first=1000)
    _assign(bench)
    before = bench.labels()
    assert all(before[one] == NOISE for one in new)

    run = density(bench, noise_only=True)

    after = bench.labels()
    assert all(after[one] == label for one, label in before.items() if label != NOISE)
    assert len({after[one] for one in new} - {NOISE}) == 2
    assert not {after[one] for one in new} & set(before.values()) - {NOISE}
    assert run.progress.plan is not None
    assert run.progress.points_written <= 90
    kinds = {line.kind for line in run.progress.plan.lineage}
    assert kinds == {"continued", "born"}
    late = bench.put(-blobs(10, centres=1, seed=6, spread=0.03), first=5000)
    old = bench.put(blobs(10, seed=7, spread=0.03), first=6000)
    _assign(bench)
    found = bench.labels()
    assert sum(found[one] == after[new[0]] for one in late) >= 8
    assert sum(found[one] in before.values() for one in old) >= 8


def test_noise_of_a_run_that_leaves_none_cannot_be_clustered(bench: Bench) -> None:
    """After k-means there is no noise: the run ends in words, and nothing changes."""
    bench.put(blobs(100))
    bench.recluster(4)
    _, execute = bench.start(bench.task(0, fit=DENSITY, noise_only=True))
    with pytest.raises(Conflict, match="left no noise: it was not of hdbscan or evoc"):
        execute()


def test_replaced_point_does_not_get_the_label_of_its_old_picture(bench: Bench) -> None:
    """Replaced after the sample was read, a point is assigned by its new vector."""
    vectors = blobs(200, spread=0.05)
    bench.put(vectors)

    def fit(*arguments: object, **options: object) -> Fit:
        found = fit_here(*arguments, **options)  # type: ignore[arg-type]
        bench.put(vectors[1:2], age_s=0)  # point 0 moves to group 1
        return found

    _, execute = bench.start(bench.task(0, fit=DENSITY), fit=fit)
    assert execute() == Outcome.SUCCEEDED
    labels = bench.labels()
    assert labels[point_id("0")] == labels[point_id("1")] != labels[point_id("5")]


def test_names_come_from_fields_and_stay_with_their_ids(bench: Bench) -> None:
    """A run names clusters by a payload field; the next one, not asked to, keeps the names."""
    vectors = blobs(100, spread=0.05)
    ids = bench.put(vectors)
    for i, one in enumerate(ids):
        bench.store.set_payload("toys", {"kind": f"k{i % 5}"}, where=Filter((IdIn([one]),)))
    bench.recluster(5, naming=NameSources(fields=("kind",)))

    def names() -> dict[int, str]:
        found = bench.clusterings.clusters("default", bench.state.pointer.active_run)
        return {one.cluster: one.name for one in found}

    first = names()
    labels = bench.labels()
    assert first == {labels[ids[i]]: f"k{i}" for i in range(5)}
    bench.recluster(5, seed=3)
    assert names() == first


def test_noise_of_another_vector_cannot_be_clustered(store: Store) -> None:
    """Prototypes of two embedding spaces must not stand beside each other."""
    specs = [VectorInfo("toy", DIM, "f" * 64), VectorInfo("other", DIM, "e" * 64)]
    store.create_collection("toys", specs)
    bench = Bench(store)
    vectors = np.concatenate([blobs(200, spread=0.05), scattered(40)])
    store.upsert(
        "toys",
        [
            Point(point_id(str(i)), {"toy": one, "other": -one}, {"ingested_at": 0.0})
            for i, one in enumerate(vectors)
        ],
    )
    density(bench)
    before = bench.labels()
    _, execute = bench.start(bench.task(0, fit=DENSITY, noise_only=True, vector="other"))
    with pytest.raises(Conflict, match="expected the active run's vector, toy, got other"):
        execute()
    assert bench.labels() == before


@pytest.mark.parametrize(("sealed_by", "left"), [(2, None), (3, 0)])
def test_a_late_clearing_leaves_what_a_later_run_sealed(
    bench: Bench, sealed_by: int, left: int | None
) -> None:
    """As with labels: what fence 2 sends reaches no point that fence 3 has sealed."""
    ids = bench.put(blobs(3))
    writer = SlotWriter(
        bench.store, "toys", "default", 2, lambda: None, Seal(sealed_by, sealing=True)
    )
    writer.write(ids, {"a": 0, "b": 0})
    late = replace(writer, seal=Seal(2, sealing=False))
    late.clear(ids, "a")
    held = [r.payload["clusters"]["default"] for r in bench.store.retrieve("toys", ids) if r]
    assert [(one.get("a"), one["b"]) for one in held] == [(left, 0)] * 3


def test_points_without_the_vector_have_no_label_of_an_earlier_run(quick_path: Path) -> None:
    """A run of one vector, then one of another that half of the points have: half are clustered."""
    with open_store(StoreConfig(path=quick_path / "store")) as store:
        specs = [VectorInfo("toy", DIM, "f" * 64), VectorInfo("late", 4, "e" * 64)]
        store.create_collection("toys", specs)
        bench = Bench(store)
        ids = bench.put(blobs(100))
        bench.recluster(5)
        bench.recluster(5)  # both slots have labels now
        late = unit(np.random.default_rng(0).normal(size=(50, 4)))
        stored = [
            Point(one, {"toy": vector, "late": late[i]}, {"ingested_at": 0.0})
            for i, (one, vector) in enumerate(zip(ids[:50], blobs(100), strict=False))
        ]
        slots = {r.id: r.payload["clusters"] for r in store.retrieve("toys", ids) if r}
        store.upsert("toys", stored)
        for one in ids[:50]:  # as they were: an upsert replaces the payload
            store.set_payload("toys", {"clusters": slots[one]}, where=Filter((IdIn([one]),)))
        run = bench.recluster(2, vector="toy+late")
        assert run.progress.plan is not None
        assert run.progress.plan.points == 50
        labels = bench.labels()
        assert {labels[one] is None for one in ids[50:]} == {True}
        assert store.facet("toys", bench.state.active_field).keys() == {
            labels[one] for one in ids[:50]
        }
