from __future__ import annotations

import threading
import time

import pytest
from reclustering import Bench

from clusterer.runs.lease import Holder, Lease, acquire, break_lease
from shoal.errors import LeaseHeld, LeaseLost


def holder(owner: str, *, ttl_s: float = 30.0) -> Holder:
    return Holder("default", owner, f"run-{owner}", ttl_s)


def test_lease_goes_to_exactly_one_of_many(bench: Bench) -> None:
    """Of eight that ask at once, one gets the lease and seven are told who has it."""
    won: list[Lease] = []
    refused: list[LeaseHeld] = []
    together = threading.Barrier(8)

    def ask(owner: str) -> None:
        together.wait()
        try:
            won.append(acquire(bench.clusterings, holder(owner))[0])
        except LeaseHeld as exc:
            refused.append(exc)

    threads = [threading.Thread(target=ask, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    won[0].release()
    acquire(bench.clusterings, holder("next"))[0].release()


def test_lease_is_renewed_while_it_is_held(bench: Bench) -> None:
    """A lease lives longer than its time to live, as long as its holder does."""
    lease, _ = acquire(bench.clusterings, holder("a", ttl_s=0.3))
    first = bench.state.lease.expires
    deadline = time.monotonic() + 20
    while bench.state.lease.expires <= first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.state.lease.expires > first
    lease.release()
    assert bench.state.lease.owner == ""


def test_lease_that_another_took_writes_nothing(bench: Bench) -> None:
    """After a takeover the old holder's updates fail, and its release frees nothing."""
    old, _ = acquire(bench.clusterings, holder("old"))
    bench.clusterings.compare_and_set("default", {"lease_expires": 0.0})  # it slept too long
    new, _ = acquire(bench.clusterings, holder("new"))
    with pytest.raises(LeaseLost):
        old.update({"active_run": "stolen"})
    old.release()
    assert bench.state.pointer.active_run == ""
    assert bench.state.lease.owner == "new"
    new.update({"active_run": "mine"})
    assert bench.state.pointer.active_run == "mine"
    new.release()


def test_lease_past_its_time_is_refused_before_the_store_is_asked(bench: Bench) -> None:
    """A holder that cannot be sure of its lease stops, even if nobody has taken it yet."""
    lease, _ = acquire(bench.clusterings, holder("a"))
    lease._valid_until = time.monotonic() - 1
    with pytest.raises(LeaseLost, match="expired"):
        lease.check()
    lease.release()


def test_lease_broken_is_free_and_its_fence_outdated(bench: Bench) -> None:
    """Breaking a dead owner's lease frees it, and the owner, were it alive, could not write."""
    lease, _ = acquire(bench.clusterings, holder("a"))
    break_lease(bench.clusterings, bench.state)
    with pytest.raises(LeaseLost):
        lease.update({"active_run": "late"})
    lease.release()
    acquire(bench.clusterings, holder("b"))[0].release()
