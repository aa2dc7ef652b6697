"""The state of a clustering: one point, changed by conditional writes only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from shoal.clock import SKEW_S
from shoal.store.clusterings.records import Records
from shoal.store.model import (
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    check_clustering_name,
    other_slot,
    point_id,
    slot_field,
)


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which run readers see. A run that ends, and a rollback, change it.

    Attributes:
        active_slot: The slot that readers follow.
        active_run: The run that wrote it; empty before the first run.
        previous_run: The run whose assignment is intact in the other slot; empty if none is.
        changed_at: When the pointer last moved, in Unix seconds.
        rollback_request: The request id of the rollback that moved it, if one did.
    """

    active_slot: str = "a"
    active_run: str = ""
    previous_run: str = ""
    changed_at: float = 0.0
    rollback_request: str = ""

    @property
    def inactive_slot(self) -> str:
        """The slot that a run may write."""
        return other_slot(self.active_slot)


@dataclass(frozen=True, slots=True)
class StoredLease:
    """The lease as the store has it: the run under way, if any.

    Attributes:
        fence: Grows with every lease; a write that names an older one changes nothing.
        owner: Who holds the lease; unique to the attempt; empty if nobody does.
        run: The run that it is held for; empty if nobody holds it.
        expires: When it ends unless renewed, in Unix seconds.
        ttl: The time for which it was taken, in seconds; 0 in a record of an earlier version.
    """

    fence: int = 0
    owner: str = ""
    run: str = ""
    expires: float = 0.0
    ttl: float = 0.0

    def held(self, now: float) -> bool:
        """Whether somebody holds the lease at ``now``: an expired one is a dead run's."""
        return bool(self.run) and now <= self.expires <= self.latest(now)

    def latest(self, now: float) -> float:
        """When the lease ends if it was renewed at ``now``. A later end is of a wrong clock."""
        return now + self.ttl + SKEW_S


@dataclass(frozen=True, slots=True)
class DriftSums:
    """The numbers from which drift is computed.

    Attributes:
        run_noise: Points that the active run assigned to noise.
        run_confidence: The mean confidence of the points that the active run assigned.
        previous_noise: ``run_noise`` of the run before.
        previous_confidence: ``run_confidence`` of the run before.
        newcomers_clustered: Points assigned since the active run, without noise.
        newcomers_confidence: The sum of their confidences.
    """

    run_noise: int = 0
    run_confidence: float = 0.0
    previous_noise: int = 0
    previous_confidence: float = 0.0
    newcomers_clustered: int = 0
    newcomers_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """One clustering at one moment.

    Attributes:
        clustering: Its name.
        pointer: Which run readers see.
        lease: The run under way.
        drift: The numbers from which drift is computed.
        next_cluster: The first cluster id that was never given.
        unsettled: A run has begun to write labels and has not moved the pointer: some of its
            writes may still arrive.
    """

    clustering: str
    pointer: Pointer = field(default_factory=Pointer)
    lease: StoredLease = field(default_factory=StoredLease)
    drift: DriftSums = field(default_factory=DriftSums)
    next_cluster: int = 0
    unsettled: bool = False

    @property
    def active_field(self) -> str:
        """The payload field that readers follow."""
        return slot_field(self.clustering, self.pointer.active_slot)

    @property
    def inactive_field(self) -> str:
        """The payload field that a run may write."""
        return slot_field(self.clustering, self.pointer.inactive_slot)


class States(Records):
    """The states of a collection's clusterings."""

    def state(self, clustering: str = "") -> State:
        """The state of ``clustering``; the state of a clustering never run if it has none yet.

        Raises:
            NotFound: the collection does not exist.
        """
        clustering = check_clustering_name(clustering)
        (record,) = self._store.retrieve(self._records, [_state_id(clustering)])
        if record is None:
            self._store.collection(self.collection)
            return State(clustering)
        return _from_payload(record.payload)

    def ensure(self, clustering: str) -> State:
        """The state of ``clustering``, made if it is new, with its slots indexed."""
        clustering = check_clustering_name(clustering)
        if clustering not in self._store.collection(self.collection).clusterings:
            self._store.ensure_clustering(self.collection, clustering)
        initial: Payload = {"kind": "clustering", **_to_payload(State(clustering))}
        self._store.upsert(
            self._records, [Point(_state_id(clustering), {}, initial)], insert_only=True
        )
        return self.state(clustering)

    def compare_and_set(
        self, clustering: str, changes: Payload, *expected: Equals, where: Filter | None = None
    ) -> State:
        """Sets ``changes`` if every ``expected`` field still holds; the state afterwards.

        The comparison and the write are one operation of the store.
        """
        condition = (where or Filter()).also(IdIn([_state_id(clustering)]), *expected)
        self._store.set_payload(self._records, changes, where=condition)
        return self.state(clustering)


_LEASE_KEYS = {
    "fence": "fence",
    "owner": "lease_owner",
    "run": "lease_run",
    "expires": "lease_expires",
    "ttl": "lease_ttl",
}
"""The payload key of each field of a lease. Fields of the other parts have their names as keys."""


def _to_payload(state: State) -> Payload:
    """``state`` as it is stored: all parts in one flat object."""
    return {
        "clustering": state.clustering,
        **asdict(state.pointer),
        **{_LEASE_KEYS[key]: value for key, value in asdict(state.lease).items()},
        **asdict(state.drift),
        "next_cluster": state.next_cluster,
        "unsettled": state.unsettled,
    }


def _from_payload(payload: Payload) -> State:
    """The state in ``payload``. A missing key, of an older version, means the default."""
    lease = {name: payload[key] for name, key in _LEASE_KEYS.items() if key in payload}
    own = {key: payload[key] for key in ("next_cluster", "unsettled") if key in payload}
    return State(
        clustering=str(payload["clustering"]),
        pointer=Pointer(**_of(Pointer, payload)),  # type: ignore[arg-type]
        lease=StoredLease(**lease),  # type: ignore[arg-type]
        drift=DriftSums(**_of(DriftSums, payload)),  # type: ignore[arg-type]
        **own,  # type: ignore[arg-type]
    )


def _of(part: type[Pointer | DriftSums], payload: Payload) -> Payload:
    """The fields of ``part`` that ``payload`` has."""
    return {f.name: payload[f.name] for f in fields(part) if f.name in payload}


def _state_id(clustering: str) -> str:
    return point_id(f"state/{clustering}")
