"""Writes labels into a slot: only the points that differ, one operation per cluster and chunk.

Every payload write copies the point inside the engine, vector included. So a cutover is cheap
because it leaves most points unwritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clusterer.runs.points import UNASSIGNED, PointTable, Rows, unpack_ids
from shoal.errors import Conflict
from shoal.store.clusterings import FENCE, State, cluster_of
from shoal.store.gateway import Store
from shoal.store.model import (
    ARRIVED,
    SLOTS,
    Condition,
    Empty,
    Filter,
    IdIn,
    Payload,
    Range,
    Scan,
    slot_field,
)
from shoal.vectors import Labels

VERIFY_ROUNDS = 3
"""The most scans of a verification: each looks again at the points that the last one mended."""

Ids: TypeAlias = list[str] | npt.NDArray[np.void]
"""Ids of points: UUID strings, or as ``pack_ids`` packs them."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Protects labels from a run that sleeps, loses its lease, and wakes with a write to send.

    A write seals the points that it labels with the fence of the run's lease, and reaches no point
    that a later run has sealed. A run writes, and so seals, every point if the run before it began
    to write and did not end (``State.unsettled``). If that run only sleeps, its late writes find
    every point sealed, also once readers follow the slot.

    Attributes:
        fence: The fence of the run's lease.
        sealing: Whether the run writes every point, and not only those whose label changes.
    """

    fence: int
    sealing: bool


@dataclass(slots=True)
class Written:
    """The result of writing a slot.

    Attributes:
        points: Points that were written.
        labels: How many of all points that were looked at have each label by now.
        gained: How many points have each label since the writing that had not before.
        lost: How many points had each label before the writing and have not any more.
    """

    points: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    gained: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)

    def join(self, other: Written) -> Written:
        """This, with the counts of ``other``, which is of other points."""
        self.points += other.points
        self.labels.update(other.labels)
        self.gained.update(other.gained)
        self.lost.update(other.lost)
        return self

    def labels_after(self, later: Written) -> Counter[int]:
        """The labels after a ``later`` writing too; a label that no point has is left out."""
        return +Counter({k: n - later.lost[k] for k, n in (self.labels + later.gained).items()})


@dataclass(frozen=True, slots=True)
class SlotWriter:
    """Writes the slots of one clustering, ``chunk`` points in an operation.

    ``check`` is called before every operation and may raise.
    """

    store: Store
    collection: str
    clustering: str
    chunk: int
    check: Callable[[], None]
    seal: Seal

    def write(
        self,
        ids: Ids,
        values: Mapping[str, int],
        *,
        unless: tuple[Condition, ...] = (),
        done: Callable[[int], object] | None = None,
    ) -> None:
        """Sets the slots in ``values`` of the points ``ids``, and seals them.

        Points that meet a condition of ``unless``, or that a later run has sealed, stay as they
        are. ``done`` gets the number of ids of each operation after it.
        """
        written: Payload = {**values, FENCE: self.seal.fence}
        key = f"clusters.{self.clustering}"
        for chunk in self._chunks(ids):
            where = Filter((IdIn(chunk),), must_not=(*unless, self._sealed))
            self.store.set_payload(self.collection, dict(written), where=where, key=key)
            if done is not None:
                done(len(chunk))

    def clear(self, ids: Ids, slot: str) -> None:
        """Empties ``slot`` of the points ``ids``."""
        emptied = [slot_field(self.clustering, slot)]
        for chunk in self._chunks(ids):
            where = Filter((IdIn(chunk),), must_not=(self._sealed,))
            self.store.delete_fields(self.collection, emptied, where=where)

    def _chunks(self, ids: Ids) -> Iterator[list[str]]:
        """The ids of each operation, after a check."""
        for at in range(0, len(ids), self.chunk):
            self.check()
            chunk = ids[at : at + self.chunk]
            yield chunk if isinstance(chunk, list) else unpack_ids(chunk)

    @property
    def _sealed(self) -> Condition:
        """The condition that a later run has sealed the point."""
        return Range(slot_field(self.clustering, FENCE), gt=self.seal.fence)


def written_slots(state: State) -> tuple[str, ...]:
    """The slots that a run writes: the inactive slot; both slots before the first run.

    Before the first run nobody reads either slot, and the next run finds labels in both.
    """
    return (state.pointer.inactive_slot,) if state.pointer.active_run else SLOTS


def write_differences(  # noqa: PLR0913 - what is wanted and where, and whom to tell
    writer: SlotWriter,
    table: PointTable,
    wanted: Labels,
    state: State,
    *,
    began: float,
    progress: Callable[[int], None],
) -> Written:
    """Makes the inactive slot of the points of ``table`` hold the labels ``wanted``, int32 (N,).

    Points that came in after ``began`` are left out: the run catches up with them.
    """
    stale = np.nonzero((table.inactive != wanted) | writer.seal.sealing)[0]
    since = (Range(ARRIVED, gt=began),)
    written = Written(labels=count_labels(wanted))

    def count(points: int) -> None:
        written.points += points
        progress(written.points)

    for label, rows in by_label(wanted, stale):
        values = dict.fromkeys(written_slots(state), label)
        writer.write(table.ids[rows], values, unless=since, done=count)
    return written


def verify(
    writer: SlotWriter,
    table: PointTable,
    wanted: Labels,
    state: State,
    *,
    expected: Mapping[int, int],
) -> int:
    """Checks that the inactive slot holds the labels ``wanted``, and mends those that differ.

    ``expected`` is how many points of the collection, in the table or not, have each label.

    A point of the table whose slot is empty was replaced or deleted since; it is left to the
    assignment of new points. The counts of the store are compared first; only if they differ are
    the points read: two labels swapped between points would pass, but nothing swaps them.

    Returns:
        The number of points mended.

    Raises:
        Conflict: points kept changing.
    """
    if writer.store.facet(writer.collection, state.inactive_field) == expected:
        return 0
    mended = 0
    for _ in range(VERIFY_ROUNDS):
        wrong = list(_wrong(writer, table, wanted, state))
        for label, ids, replaced in wrong:
            writer.write(ids, {state.pointer.inactive_slot: label}, unless=replaced)
        if not wrong:
            return mended
        mended += sum(len(ids) for _, ids, _ in wrong)
    raise still_differs(state)


def still_differs(state: State) -> Conflict:
    """The error for a slot that was mended again and again."""
    return Conflict(
        f"clustering {state.clustering!r}: {state.inactive_field} still differs from the plan "
        f"after {VERIFY_ROUNDS} rounds: is another process writing it?"
    )


def clear_strays(writer: SlotWriter, table: PointTable, state: State, vector: str) -> int:
    """Empties the inactive slot of points that have no ``vector``.

    No run of that vector gives them a label. A label that a run of another vector gave them would
    look like one of this run.

    Returns:
        The number of points.
    """
    cleared = 0
    for block in writer.store.scan(writer.collection, labelled(state)):
        others = [block.ids[i] for i in np.nonzero(table.find(block.ids) < 0)[0]]
        cleared += clear_those_without(writer, others, state, vector)
    return cleared


def labelled(state: State) -> Scan:
    """A scan of the ids of points that have a label in the inactive slot."""
    return Scan(where=Filter(must_not=(Empty(state.inactive_field),)), fields=())


def clear_those_without(writer: SlotWriter, ids: Sequence[str], state: State, vector: str) -> int:
    """Empties the inactive slot of the points of ``ids`` that have no ``vector``.

    Returns:
        The number of points.
    """
    writer.check()
    found = writer.store.retrieve(writer.collection, ids, vectors=(vector,))
    strays = [record.id for record in found if record and vector not in record.vectors]
    writer.clear(strays, state.pointer.inactive_slot)
    return len(strays)


def _wrong(
    writer: SlotWriter, table: PointTable, wanted: Labels, state: State
) -> Iterator[tuple[int, list[str], tuple[Condition, ...]]]:
    """The points whose inactive slot holds another label than the wanted one, by wanted label.

    Each group comes with the condition that a point was replaced after it was read.
    """
    if not len(table):
        return
    options = Scan(
        where=Filter(must_not=(Empty(state.inactive_field),)), fields=("clusters", "ingested_at")
    )
    for block in writer.store.scan(writer.collection, options):
        writer.check()
        held = slot_labels(block.payloads, state.clustering, state.pointer.inactive_slot)
        rows = table.find(block.ids)
        wrong = np.nonzero((rows >= 0) & (held != wanted[rows]))[0]
        for label, at in by_label(wanted[rows], wrong):
            payloads = [block.payloads[i] for i in at]
            yield label, [block.ids[i] for i in at], replaced_since(payloads)


def replaced_since(payloads: Sequence[Payload]) -> tuple[Condition, ...]:
    """The condition that a point was replaced after the ``payloads`` were read.

    A label for the old vector must not end up on the new one. Without a time in every payload there
    is no condition.
    """
    times = [payload.get("ingested_at") for payload in payloads]
    known = [time for time in times if isinstance(time, int | float)]
    return (Range(ARRIVED, gt=max(known)),) if known and len(known) == len(times) else ()


def slot_labels(payloads: Sequence[Payload], clustering: str, slot: str) -> Labels:
    """The label in one slot of each of ``payloads``, int32 (B,), UNASSIGNED where it is empty."""
    found = (cluster_of(payload, clustering, slot) for payload in payloads)
    return np.array([UNASSIGNED if c is None else c for c in found], dtype=np.int32)


def count_labels(labels: Labels) -> Counter[int]:
    """How often each of ``labels`` (N,) occurs."""
    values, counts = np.unique(labels, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def by_label(labels: Labels, rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Each label among ``labels[rows]``, ascending, and the ``rows`` that have it."""
    if not len(rows):
        return
    order = rows[np.argsort(labels[rows], kind="stable")]
    values, starts = np.unique(labels[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, starts[1:]), strict=True)
