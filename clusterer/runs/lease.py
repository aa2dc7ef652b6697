"""The lease of a clustering: one run at a time, by conditional writes of the store.

Every lease has a higher fence than the one before. Each write to the clustering's state names
the fence it was made under, so a run that slept past its expiry changes nothing when it wakes.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from shoal.errors import LeaseHeld, LeaseLost, ShoalError
from shoal.store.clusterings import Clusterings, State
from shoal.store.model import Equals, Filter, Payload, Range

RENEWALS: Final = 3
"""How often a lease is renewed in its time to live."""

AWAY_PAUSE_S: Final = 1.0
"""The longest pause between two tries to renew while the store is away."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who takes the lease: ``owner`` is unique to the attempt, ``run`` is what it is for."""

    clustering: str
    owner: str
    run: str
    ttl_s: float


class Clock(Protocol):
    """What a lease knows of time, in seconds."""

    def now(self) -> float:
        """Unix time, which the store compares."""

    def monotonic(self) -> float:
        """Time that never goes back, by which the holder itself goes."""

    def wait(self, stopped: threading.Event, pause_s: float) -> bool:
        """Waits until ``stopped`` is set, ``pause_s`` at most; whether it is set."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """As ``Clock.now``."""
        return time.time()

    def monotonic(self) -> float:
        """As ``Clock.monotonic``."""
        return time.monotonic()

    def wait(self, stopped: threading.Event, pause_s: float) -> bool:
        """As ``Clock.wait``."""
        return stopped.wait(pause_s)


SYSTEM_CLOCK: Final = SystemClock()


class Lease:
    """A held lease, renewed by its own thread until released. Made by :func:`acquire`."""

    def __init__(
        self,
        clusterings: Clusterings,
        holder: Holder,
        fence: int,
        *,
        valid_until: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.fence = fence
        self._clusterings = clusterings
        self._holder = holder
        self._clock = clock
        self._valid_until = valid_until
        self._lost: LeaseLost | None = None
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew_until_stopped, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def held(self) -> bool:
        """Whether the lease is certainly ours; False while its time is up and it is not renewed.

        It may still be renewed once the store is back, if nobody has taken it by then.

        Raises:
            LeaseLost: another run has taken it.
        """
        if self._lost is not None:
            raise self._lost
        return self._clock.monotonic() < self._valid_until

    def check(self) -> None:
        """Raises LeaseLost unless the lease is certainly still ours."""
        if not self.held():
            raise LeaseLost(f"the lease of clustering {self._holder.clustering!r} expired")

    def update(self, changes: Payload, *, through: Clusterings | None = None) -> State:
        """Sets ``changes`` in the clustering's state, if the lease is still ours.

        They may be set twice, the second time in vain, ``through`` clusterings that are patient.

        Raises:
            LeaseLost: another run has taken it, or its time is up; nothing was written, unless
                it was taken after the write.
        """
        self.check()
        return self._set(changes, through or self._clusterings)

    def _set(self, changes: Payload, clusterings: Clusterings) -> State:
        """As ``update``, also when the time is up: the store knows who has the lease."""
        state = clusterings.compare_and_set(self._holder.clustering, changes, *self._ours())
        if (state.lease.fence, state.lease.owner) != (self.fence, self._holder.owner):
            raise LeaseLost(
                f"clustering {self._holder.clustering!r}: another run took the lease "
                f"(fence {state.lease.fence}, ours {self.fence})"
            )
        return state

    def keep_renewing(self) -> None:
        """Starts the thread that renews the lease until it is released or lost."""
        self._renewer.start()

    def release(self, *, through: Clusterings | None = None) -> None:
        """Gives the lease back; a lease that was lost stays with its new owner."""
        self._stop.set()
        self._renewer.join()
        (through or self._clusterings).compare_and_set(
            self._holder.clustering,
            {"lease_owner": "", "lease_run": "", "lease_expires": 0.0},
            *self._ours(),
        )

    def _ours(self) -> tuple[Equals, Equals]:
        return (Equals("fence", self.fence), Equals("lease_owner", self._holder.owner))

    def _renew_until_stopped(self) -> None:
        ttl_s = self._holder.ttl_s
        pause_s = ttl_s / RENEWALS
        while not self._clock.wait(self._stop, pause_s):
            asked = self._clock.monotonic()
            try:
                self._set({"lease_expires": self._clock.now() + ttl_s}, self._clusterings)
            except LeaseLost as exc:
                self._lost = exc
                return
            except ShoalError:  # the store is away: who holds the lease decides how long to wait
                pause_s = min(AWAY_PAUSE_S, ttl_s / RENEWALS)
                continue
            self._valid_until = asked + ttl_s
            pause_s = ttl_s / RENEWALS


def acquire(
    clusterings: Clusterings, holder: Holder, *, clock: Clock = SYSTEM_CLOCK
) -> tuple[Lease, State]:
    """Takes the lease if it is free or expired, and keeps renewing it.

    A lease that ends later than its holder can have asked for is of a wrong clock, and is free.

    Returns:
        The lease, and the state as it was before, whose ``lease.run`` names a run that died.

    Raises:
        LeaseHeld: another run has it, or was faster.
    """
    before = clusterings.ensure(holder.clustering)
    now, asked = clock.now(), clock.monotonic()
    after = clusterings.compare_and_set(
        holder.clustering,
        {
            "fence": before.lease.fence + 1,
            "lease_owner": holder.owner,
            "lease_run": holder.run,
            "lease_expires": now + holder.ttl_s,
            "lease_ttl": holder.ttl_s,
        },
        Equals("fence", before.lease.fence),
        where=Filter(
            should=(
                Range("lease_expires", lt=now),
                Range("lease_expires", gt=before.lease.latest(now)),
            )
        ),
    )
    if after.lease.owner != holder.owner:
        raise _held(after, now)
    lease = Lease(
        clusterings, holder, after.lease.fence, valid_until=asked + holder.ttl_s, clock=clock
    )
    lease.keep_renewing()
    return lease, before


def break_lease(clusterings: Clusterings, state: State) -> None:
    """Frees the lease in ``state``, whose owner is known to be dead, and outdates its fence."""
    clusterings.compare_and_set(
        state.clustering,
        {"fence": state.lease.fence + 1, "lease_owner": "", "lease_run": "", "lease_expires": 0.0},
        Equals("fence", state.lease.fence),
    )


def _held(state: State, now: float) -> LeaseHeld:
    return LeaseHeld(
        f"clustering {state.clustering!r} is being changed by run {state.lease.run}: "
        f"wait for it to end, or cancel it (its lease expires in "
        f"{max(0.0, state.lease.expires - now):.0f} s unless renewed)",
        run=state.lease.run,
    )
