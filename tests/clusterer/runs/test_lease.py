from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from reclustering import Bench

from clusterer.runs.lease import Holder, Lease, acquire, break_lease
from shoal.clock import SKEW_S
from shoal.errors import LeaseHeld, LeaseLost, StoreUnavailable
from shoal.store import Store
from shoal.store.clusterings import Clusterings, State, StoredLease
from shoal.store.model import Equals, Filter, Payload

NOW = 1_700_000_000.0
"""The Unix time at which a ManualClock begins."""
TTL = 30.0


class ManualClock:
    """A clock that stands until told. Monotonic time begins at 0."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.pauses: list[float] = []
        """How long the renewer wanted to wait, each time."""
        self._go = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)

    def now(self) -> float:
        return NOW + self.passed

    def monotonic(self) -> float:
        return self.passed

    def wait(self, stopped: threading.Event, pause_s: float) -> bool:
        self.pauses.append(pause_s)
        self._waiting.release()
        while not stopped.is_set():
            if self._go.acquire(timeout=0.005):
                return False
        return True

    def renew(self) -> None:
        """Lets the renewer renew once, and returns when it waits again."""
        self.let_renew()
        assert self._waiting.acquire(timeout=20), "the renewer has ended"
        self._waiting.release()

    def let_renew(self) -> None:
        """Lets the renewer, which waits, begin to renew."""
        assert self._waiting.acquire(timeout=20), "the renewer has ended"
        self._go.release()


def holder(owner: str, ttl_s: float = TTL) -> Holder:
    return Holder("default", owner, f"run-{owner}", ttl_s)


class Interrupted(Clusterings):
    """Clusterings that call ``meanwhile`` once after the state was read by ``ensure``."""

    def __init__(self, store: Store, meanwhile: Callable[[], object]) -> None:
        super().__init__(store, "toys")
        self._meanwhile = meanwhile

    def ensure(self, clustering: str) -> State:
        found = super().ensure(clustering)
        self._meanwhile()
        return found


class Flaky(Clusterings):
    """Clusterings whose store is away while ``away``."""

    away = False

    def compare_and_set(
        self, clustering: str, changes: Payload, *expected: Equals, where: Filter | None = None
    ) -> State:
        if self.away:
            raise StoreUnavailable("away")
        return super().compare_and_set(clustering, changes, *expected, where=where)


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


def test_lease_is_written_with_its_holder_and_its_end(quick: Bench) -> None:
    """The state says who holds the lease, for which run and until when; the fence has grown."""
    clock = ManualClock()
    lease, before = acquire(quick.clusterings, holder("a"), clock=clock)
    assert before.lease == StoredLease()
    assert quick.state.lease == StoredLease(1, "a", "run-a", NOW + TTL, TTL)
    assert lease.fence == 1
    lease.release()
    assert quick.state.lease == StoredLease(1, "", "", 0.0, TTL)
    again, before = acquire(quick.clusterings, holder("b"), clock=clock)
    assert before.lease.run == ""
    assert again.fence == quick.state.lease.fence == 2
    again.release()


@pytest.mark.parametrize("ahead_s", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("ttl_s", [TTL, 1000.0])
def test_lease_of_a_clock_that_was_wrong_is_free(
    quick: Bench, ahead_s: float, ttl_s: float
) -> None:
    """It would be held for ever: one that ends later than its holder can have asked for is not."""
    clock = ManualClock()
    clock.passed = SKEW_S + ahead_s  # as a machine whose clock is ahead
    lease, _ = acquire(quick.clusterings, holder("a", ttl_s), clock=clock)
    lease._stop.set()  # its process dies
    lease._renewer.join()
    clock.passed = 0.0
    assert quick.state.lease.held(clock.now()) is (ahead_s <= 0)
    if ahead_s <= 0:  # clocks may differ that much
        with pytest.raises(LeaseHeld):
            acquire(quick.clusterings, holder("b"), clock=clock)
    else:
        acquire(quick.clusterings, holder("b"), clock=clock)[0].release()


def test_lease_of_an_earlier_version_has_no_time_to_live() -> None:
    """It is held as long as it says, unless that is further away than clocks differ."""
    for ends, held in ((NOW + TTL, True), (NOW + SKEW_S, True), (NOW + SKEW_S + 1, False)):
        assert StoredLease(3, "a", "run-a", ends).held(NOW) is held


def test_lease_is_released_at_the_end_of_a_with_block(quick: Bench) -> None:
    """However the block ends, the lease is free, and the thread that renewed it is gone."""
    lease, _ = acquire(quick.clusterings, holder("a"), clock=ManualClock())
    with pytest.raises(ZeroDivisionError), lease as entered:
        1 / (entered._renewer.is_alive() - 1)
    assert quick.state.lease.owner == ""
    assert not lease._renewer.is_alive()


def test_lease_that_is_held_is_refused_with_the_run_that_holds_it(quick: Bench) -> None:
    """Whoever is refused learns which run has the lease and when it ends unless renewed."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    clock.passed = 18.0
    with pytest.raises(LeaseHeld, match=r"'default'.*run-a.*expires in 12 s unless") as caught:
        acquire(quick.clusterings, holder("b"), clock=clock)
    assert caught.value.metadata == {"run": "run-a"}
    assert quick.state.lease.owner == "a"
    lease.release()


def test_lease_that_expired_goes_to_the_next_who_learns_whose_it_was(quick: Bench) -> None:
    """At its last moment a lease is held; past that it is free, under a higher fence."""
    clock = ManualClock()
    first, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    clock.passed = TTL
    with pytest.raises(LeaseHeld, match="expires in 0 s"):
        acquire(quick.clusterings, holder("b"), clock=clock)
    clock.passed = TTL + 0.5
    second, before = acquire(quick.clusterings, holder("b"), clock=clock)
    assert (before.lease.run, second.fence) == ("run-a", 2)
    first.release()
    assert quick.state.lease.owner == "b"
    second.release()


def test_lease_that_was_renewed_after_the_look_is_not_taken(quick: Bench) -> None:
    """An owner that wakes between the look at its expired lease and the taking of it keeps it."""
    clock = ManualClock()
    owner, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    clock.passed = TTL + 1

    def wake() -> None:
        quick.clusterings.compare_and_set("default", {"lease_expires": NOW + 2 * TTL})

    with pytest.raises(LeaseHeld, match="run-a"):
        acquire(Interrupted(quick.store, wake), holder("b"), clock=clock)
    assert quick.state.lease == StoredLease(1, "a", "run-a", NOW + 2 * TTL, TTL)
    owner.release()


def test_lease_that_another_was_faster_to_take_is_refused(quick: Bench) -> None:
    """Of two that saw the lease free, the second is told of the first, even if that has ended."""
    clock = ManualClock()
    faster: list[Lease] = []

    def take() -> None:
        faster.append(acquire(quick.clusterings, holder("a"), clock=clock)[0])

    with pytest.raises(LeaseHeld, match="run-a"):
        acquire(Interrupted(quick.store, take), holder("b"), clock=clock)
    assert quick.state.lease == StoredLease(1, "a", "run-a", NOW + TTL, TTL)
    faster[0].release()

    def take_and_release() -> None:
        acquire(quick.clusterings, holder("c"), clock=clock)[0].release()

    with pytest.raises(LeaseHeld):
        acquire(Interrupted(quick.store, take_and_release), holder("d"), clock=clock)
    assert quick.state.lease == StoredLease(2, "", "", 0.0, TTL)


def test_lease_lives_as_long_as_it_is_renewed(quick: Bench) -> None:
    """Renewed three times in its time to live, a lease outlives it, here and in the store."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    for at in (10.0, 20.0, 45.0):
        clock.passed = at
        clock.renew()
        assert quick.state.lease.expires == NOW + at + TTL
    assert set(clock.pauses) == {TTL / 3}
    clock.passed = 74.9
    lease.check()
    lease.update({"active_run": "mine"})
    assert quick.state.pointer.active_run == "mine"
    clock.passed = 75.0
    with pytest.raises(LeaseLost, match="'default' expired"):
        lease.check()
    lease.release()


def test_lease_ends_for_its_holder_when_its_time_is_up(quick: Bench) -> None:
    """A holder that cannot be sure stops and writes nothing, even if nobody has taken the lease."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    clock.passed = TTL - 0.1
    lease.check()
    clock.passed = TTL
    with pytest.raises(LeaseLost, match="expired"):
        lease.check()
    with pytest.raises(LeaseLost, match="expired"):
        lease.update({"active_run": "late"})
    assert quick.state.pointer.active_run == ""
    lease.release()
    assert quick.state.lease.owner == ""


def test_time_counts_from_before_the_store_was_asked(quick: Bench) -> None:
    """A store that takes its time to answer does not make the lease last longer here than there."""
    clock = ManualClock()

    class Slow(Clusterings):
        def compare_and_set(
            self, clustering: str, changes: Payload, *expected: Equals, where: Filter | None = None
        ) -> State:
            found = super().compare_and_set(clustering, changes, *expected, where=where)
            clock.passed += 8
            return found

    lease, _ = acquire(Slow(quick.store, "toys"), holder("a"), clock=clock)
    assert quick.state.lease.expires == NOW + TTL
    clock.passed = TTL - 5
    clock.renew()  # until TTL + 3 by now
    assert quick.state.lease.expires == NOW + 2 * TTL - 5
    clock.passed = 2 * TTL - 5.1
    lease.check()
    clock.passed = 2 * TTL - 5
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()


def test_hiccups_of_the_store_do_not_end_the_renewing(quick: Bench) -> None:
    """Two renewals fail; the third keeps the lease as if nothing had been."""
    clock = ManualClock()
    clusterings = Flaky(quick.store, "toys")
    lease, _ = acquire(clusterings, holder("a"), clock=clock)
    clusterings.away = True
    for at in (10.0, 20.0):
        clock.passed = at
        clock.renew()
        lease.check()
    assert quick.state.lease.expires == NOW + TTL
    clusterings.away = False
    clock.passed = 29.0
    clock.renew()
    clock.passed = 58.9
    lease.check()
    lease.release()


def test_store_that_is_away_is_asked_again_soon(quick: Bench) -> None:
    """Within a second, so that the lease is renewed as soon as the store is back."""
    clock = ManualClock()
    clusterings = Flaky(quick.store, "toys")
    lease, _ = acquire(clusterings, holder("a"), clock=clock)
    clusterings.away = True
    clock.renew()
    clock.renew()
    clusterings.away = False
    clock.renew()
    assert clock.pauses == [TTL / 3, 1.0, 1.0, TTL / 3]
    lease.release()
    hasty, _ = acquire(clusterings, holder("b", ttl_s=0.6), clock=(clock := ManualClock()))
    clusterings.away = True
    clock.renew()
    assert clock.pauses == [0.6 / 3] * 2
    clusterings.away = False
    hasty.release()


def test_lease_that_expired_is_renewed_if_nobody_has_taken_it(quick: Bench) -> None:
    """Nobody else can have written anything meanwhile: its holder goes on, under the same fence."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    clock.passed = 100.0
    assert not lease.held()
    clock.renew()
    assert lease.held()
    lease.update({"active_run": "mine"})
    assert quick.state.lease == StoredLease(1, "a", "run-a", NOW + 100 + TTL, TTL)
    lease.release()


def test_lease_writes_through_the_clusterings_that_it_is_given(quick: Bench) -> None:
    """A run's are patient; those of the thread that renews are not."""
    away = Flaky(quick.store, "toys")
    lease, _ = acquire(away, holder("a"), clock=ManualClock())
    away.away = True
    lease.update({"next_cluster": 9}, through=quick.clusterings)
    lease.release(through=quick.clusterings)
    assert (quick.state.next_cluster, quick.state.lease.owner) == (9, "")


def test_failed_renewals_do_not_extend_the_lease(quick: Bench) -> None:
    """While the store is away the time runs on, and the holder stops when it is up."""
    clock = ManualClock()
    clusterings = Flaky(quick.store, "toys")
    lease, _ = acquire(clusterings, holder("a"), clock=clock)
    clusterings.away = True
    clock.passed = 20.0
    clock.renew()
    clock.passed = TTL
    with pytest.raises(LeaseLost, match="expired"):
        lease.check()
    clusterings.away = False
    lease.release()


def test_loss_that_a_renewal_finds_is_kept(quick: Bench) -> None:
    """Taken over while its own time is not up, a lease is lost from the next renewal on."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    quick.clusterings.compare_and_set("default", {"fence": 7, "lease_owner": "b"})
    lease.check()
    clock.let_renew()
    lease._renewer.join(20)
    assert not lease._renewer.is_alive()
    for _ in range(2):
        with pytest.raises(LeaseLost, match=r"another run took the lease \(fence 7, ours 1\)"):
            lease.check()
    lease.release()
    assert (quick.state.lease.fence, quick.state.lease.owner) == (7, "b")


@pytest.mark.parametrize("taken", [{"fence": 7}, {"lease_owner": "b"}])
def test_update_needs_the_fence_and_the_owner(quick: Bench, taken: Payload) -> None:
    """Either of them changed is another lease: nothing is written and nothing released."""
    lease, _ = acquire(quick.clusterings, holder("a"), clock=ManualClock())
    quick.clusterings.compare_and_set("default", taken)
    with pytest.raises(LeaseLost, match="another run took the lease"):
        lease.update({"active_run": "stolen"})
    lease.release()
    assert quick.state.pointer.active_run == ""
    assert quick.state.lease.run == "run-a"


def test_update_gives_the_state_that_it_made(quick: Bench) -> None:
    """What was set is in the answer, and the rest is as it was."""
    lease, before = acquire(quick.clusterings, holder("a"), clock=ManualClock())
    after = lease.update({"next_cluster": 9})
    assert (after.next_cluster, after.pointer) == (9, before.pointer)
    lease.release()


def test_lease_that_another_took_writes_nothing(bench: Bench) -> None:
    """After a takeover the old holder's updates fail, and its release frees nothing."""
    old, _ = acquire(bench.clusterings, holder("old"), clock=ManualClock())
    bench.clusterings.compare_and_set("default", {"lease_expires": 0.0})  # it slept too long
    new, _ = acquire(bench.clusterings, holder("new"), clock=ManualClock())
    with pytest.raises(LeaseLost):
        old.update({"active_run": "stolen"})
    old.release()
    assert bench.state.pointer.active_run == ""
    assert bench.state.lease.owner == "new"
    new.update({"active_run": "mine"})
    assert bench.state.pointer.active_run == "mine"
    new.release()


def test_lease_broken_is_free_and_its_fence_outdated(quick: Bench) -> None:
    """A broken lease is free at once, and no write that names its fence counts any more."""
    clock = ManualClock()
    lease, _ = acquire(quick.clusterings, holder("a"), clock=clock)
    break_lease(quick.clusterings, quick.state)
    assert quick.state.lease == StoredLease(2, "", "", 0.0, TTL)
    quick.clusterings.compare_and_set("default", {"active_run": "late"}, Equals("fence", 1))
    assert quick.state.pointer.active_run == ""
    with pytest.raises(LeaseLost):
        lease.update({"active_run": "late"})
    lease.release()
    again, _ = acquire(quick.clusterings, holder("b"), clock=clock)
    assert again.fence == 3
    again.release()


def test_breaking_a_lease_leaves_a_newer_one(quick: Bench) -> None:
    """What was read before another run took the lease breaks nothing of that run's."""
    clock = ManualClock()
    acquire(quick.clusterings, holder("a"), clock=clock)[0].release()
    read = quick.state
    lease, _ = acquire(quick.clusterings, holder("b"), clock=clock)
    break_lease(quick.clusterings, read)
    assert quick.state.lease == StoredLease(2, "b", "run-b", NOW + TTL, TTL)
    lease.release()


def test_lease_by_the_system_clock_is_renewed(quick: Bench) -> None:
    """Without a clock of its own a lease goes by this machine's, and renews itself."""
    renewed = threading.Event()

    class Watched(Clusterings):
        def compare_and_set(
            self, clustering: str, changes: Payload, *expected: Equals, where: Filter | None = None
        ) -> State:
            if list(changes) == ["lease_expires"]:
                renewed.set()
            return super().compare_and_set(clustering, changes, *expected, where=where)

    lease, _ = acquire(Watched(quick.store, "toys"), holder("a", ttl_s=0.3))
    assert renewed.wait(20)
    lease.release()
    assert quick.state.lease.owner == ""
