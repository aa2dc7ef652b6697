"""Runs over a store that is away for a while, between any two of its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from faulty_engine import EachOnce, Faulty, away_until, make_hasty, refuse
from reclustering import Bench, blobs

from clusterer.runs.task import Outcome
from shoal.errors import Cancelled, LeaseLost, StoreUnavailable


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def bench(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A collection of 60 points, clustered once."""
    make_hasty(monkeypatch)
    found = Bench(faulty.store())
    found.put(blobs(60))
    found.recluster(2, warm_start=False)
    return found


def execute(bench: Bench, faulty: Faulty, fault: Callable[[str], object], k: int) -> Outcome:
    """The outcome of a run whose calls of the engine meet ``fault``."""
    run, _ = bench.start(bench.task(k, warm_start=False))
    faulty.fault = fault
    try:
        return run.execute()
    finally:
        faulty.fault = lambda _: None
        bench.lease.release()


@pytest.mark.parametrize("when", ["before", "after"])
def test_run_survives_that_each_call_fails_once(bench: Bench, faulty: Faulty, when: str) -> None:
    """Refused, or done and not answered: the run succeeds, and what it wrote is whole."""
    fault = EachOnce(when)
    assert execute(bench, faulty, fault, 4) == Outcome.SUCCEEDED
    labels = bench.labels()
    assert len(set(labels.values())) == 4
    assert None not in labels.values()
    state = bench.state
    assert (state.unsettled, bool(state.pointer.previous_run)) == (False, True)
    assert len(bench.clusterings.clusters("default", state.pointer.active_run)) == 4
    assert {"retrieve", "scroll", "set_payload", "upsert", "facet"} <= set(fault.failed)


def test_run_takes_its_lease_again_if_nobody_has_it(bench: Bench, faulty: Faulty) -> None:
    """The store was away for longer than the lease: the run goes on under the same fence."""
    bench.config = replace(bench.config, lease_ttl_s=0.2)
    expired: list[bool] = []

    def back() -> bool:
        if not expired and not bench.lease.held():
            expired.append(True)
        return bool(expired)

    assert execute(bench, faulty, away_until(back), 4) == Outcome.SUCCEEDED
    assert expired
    assert len(set(bench.labels().values())) == 4


def test_run_ends_when_another_took_its_lease_while_the_store_was_away(
    bench: Bench, faulty: Faulty
) -> None:
    """It writes nothing more; readers keep what they had."""
    bench.config = replace(bench.config, lease_ttl_s=0.2)
    before = bench.labels()
    taken: list[bool] = []

    def back() -> bool:
        if not taken and not bench.lease.held():
            faulty.fault = lambda _: None  # the other process's store is not away
            fence = bench.state.lease.fence + 1
            bench.clusterings.compare_and_set("default", {"fence": fence, "lease_owner": "b"})
            taken.append(True)
        return bool(taken)

    with pytest.raises(LeaseLost, match="another run took the lease"):
        execute(bench, faulty, away_until(back), 4)
    assert bench.labels() == before
    assert bench.state.lease.owner == "b"


def test_run_fails_when_the_store_is_away_for_too_long(bench: Bench, faulty: Faulty) -> None:
    """Its error says for how long, and what failed; readers keep what they had."""
    bench.config = replace(bench.config, store_patience_s=0.2)
    before = bench.labels()
    with pytest.raises(StoreUnavailable, match=r"away for 0\.2 s: .*connection refused"):
        execute(bench, faulty, away_until(lambda: False), 4)
    assert bench.labels() == before


def test_run_fails_when_its_lease_cannot_be_renewed_for_too_long(
    bench: Bench, faulty: Faulty
) -> None:
    """Between two calls too: a long fit is followed by a look at the lease."""
    bench.config = replace(bench.config, lease_ttl_s=0.2, store_patience_s=0.3)
    run, _ = bench.start(bench.task(4))
    faulty.fault = refuse
    while bench.lease.held():
        pass
    with pytest.raises(StoreUnavailable, match=r"away for 0\.3 s: the lease could not be renewed"):
        run._tracker.check()
    faulty.fault = lambda _: None
    bench.lease.release()


def test_run_that_waits_for_the_store_can_be_cancelled(bench: Bench, faulty: Faulty) -> None:
    """At once, and not when the store is back, or when the pause is over."""
    fault = away_until(lambda: False)

    def cancelled_later(moment: str) -> None:
        try:
            fault(moment)
        except OSError:
            bench.cancelled.set()
            raise

    with pytest.raises(Cancelled):
        execute(bench, faulty, cancelled_later, 4)
    run, _ = bench.start(bench.task(4))
    assert run._tracker.patience.stopped is bench.cancelled
    bench.lease.release()
