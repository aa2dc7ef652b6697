"""Writing labels into a slot: only the points that differ, one operation per cluster and chunk.

Every payload write copies the point inside the engine, vector included, so what is not written
is what makes a cutover cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clusterer.runs.points import UNASSIGNED, PointTable, unpack_ids
from shoal.errors import Conflict
from shoal.store.clusterings import FENCE, State, cluster_of
from shoal.store.gateway import Store
from shoal.store.model import Condition, Empty, Filter, IdIn, Payload, Range, Scan, slot_field
from shoal.vectors import Labels

_VERIFY_ROUNDS = 3
"""Scans of a verification: points that change under it are mended and looked at once more."""


@dataclass(frozen=True, slots=True)
class Seal:
    """How labels are kept from a run that sleeps, loses its lease, and wakes with a write to send.

    No write of a run reaches a point that a later run has sealed. A run seals every point if the
    one before it began to write and did not end (``State.unsettled``): if that one only sleeps,
    what it may still send finds every point sealed, also once readers follow the slot.

    Attributes:
        fence: That of the run's lease.
        sealing: Whether this run seals what it writes, and writes every point.
    """

    fence: int
    sealing: bool


@dataclass(frozen=True, slots=True)
class SlotWriter:
    """Writes one collection's slots. ``check`` is called before every operation and may raise.

    ``seal`` is None for who holds no lease.
    """

    store: Store
    collection: str
    clustering: str
    chunk: int
    check: Callable[[], None]
    seal: Seal | None = None

    def write(
        self,
        ids: list[str],
        values: Mapping[str, int],
        *conditions: Condition,
        unless: tuple[Condition, ...] = (),
    ) -> None:
        """Sets the slots in ``values`` of the points ``ids``.

        Of those only that meet all ``conditions`` and none of ``unless``.
        """
        written: Payload = {**values}
        if self.seal is not None and self.seal.sealing:
            written[FENCE] = self.seal.fence
        key = f"clusters.{self.clustering}"
        for at in range(0, len(ids), self.chunk):
            self.check()
            must = (IdIn(ids[at : at + self.chunk]), *conditions)
            where = Filter(must, must_not=(*unless, *self._sealed))
            self.store.set_payload(self.collection, dict(written), where=where, key=key)

    def clear(self, ids: list[str], slot: str) -> None:
        """Empties ``slot`` of the points ``ids``."""
        field = slot_field(self.clustering, slot)
        for at in range(0, len(ids), self.chunk):
            self.check()
            where = Filter((IdIn(ids[at : at + self.chunk]),), must_not=self._sealed)
            self.store.delete_fields(self.collection, [field], where=where)

    @property
    def _sealed(self) -> tuple[Condition, ...]:
        """What holds of a point that a later run has sealed."""
        if self.seal is None:
            return ()
        return (Range(slot_field(self.clustering, FENCE), gt=self.seal.fence),)


def write_differences(
    writer: SlotWriter,
    table: PointTable,
    state: State,
    *,
    began: float,
    progress: Callable[[int], None],
) -> int:
    """Makes the inactive slot hold ``table.wanted``; returns the number of points written.

    Before the first run nobody reads either slot, so both are set at once: the next run then
    finds them in place. Points that came in after ``began`` are left out: the run catches up with
    those.
    """
    both = not state.pointer.active_run
    sealing = writer.seal is not None and writer.seal.sealing
    stale = np.nonzero((table.inactive != table.wanted) | sealing)[0]
    since = (Range("ingested_at", gt=began),)
    written = 0
    for label, rows in _groups(table.wanted, stale):
        slots = ("a", "b") if both else (state.pointer.inactive_slot,)
        for at in range(0, len(rows), writer.chunk):
            chunk = rows[at : at + writer.chunk]
            writer.write(unpack_ids(table.ids[chunk]), dict.fromkeys(slots, label), unless=since)
            written += len(chunk)
            progress(written)
    table.inactive[stale] = table.wanted[stale]
    return written


def verify(writer: SlotWriter, table: PointTable, state: State, *, late: Mapping[int, int]) -> int:
    """Checks that the inactive slot holds ``table.wanted``, and mends what does not.

    ``late`` counts the labels of points that are not in the table.

    A point of the table whose slot is empty was replaced or deleted since; it is left to the
    assignment of new points. The counts of the store are compared first; only if they differ are
    the points read: two labels swapped between points would pass, but nothing swaps them.

    Returns:
        The number of points mended.

    Raises:
        Conflict: points kept changing.
    """
    if _counts_agree(writer, table, state, late):
        return 0
    mended = 0
    for _ in range(_VERIFY_ROUNDS):
        wrong = list(_wrong(writer, table, state))
        for label, ids, read in wrong:
            writer.write(ids, {state.pointer.inactive_slot: label}, *read)
        if not wrong:
            return mended
        mended += sum(len(ids) for _, ids, _ in wrong)
    raise Conflict(
        f"clustering {state.clustering!r}: {state.inactive_field} still differs from the plan "
        f"after {_VERIFY_ROUNDS} rounds: is another process writing it?"
    )


def clear_strays(writer: SlotWriter, table: PointTable, state: State, vector: str) -> int:
    """Empties the inactive slot of points that have no ``vector``: no run of it gives them a label.

    What an earlier run of another vector gave them would look like this one's.

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
    """Empties the inactive slot of those of ``ids`` that have no ``vector``; returns how many."""
    writer.check()
    found = writer.store.retrieve(writer.collection, ids, vectors=(vector,))
    strays = [record.id for record in found if record and vector not in record.vectors]
    writer.clear(strays, state.pointer.inactive_slot)
    return len(strays)


def _counts_agree(
    writer: SlotWriter, table: PointTable, state: State, late: Mapping[int, int]
) -> bool:
    labels, counts = np.unique(table.wanted, return_counts=True)
    expected = Counter(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
    expected.update(late)
    return writer.store.facet(writer.collection, state.inactive_field) == expected


def _wrong(
    writer: SlotWriter, table: PointTable, state: State
) -> Iterator[tuple[int, list[str], tuple[Condition, ...]]]:
    """The points whose inactive slot holds another label than wanted, by wanted label.

    With the condition that they are still what was read.
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
        wrong = np.nonzero((rows >= 0) & (held != table.wanted[rows]))[0]
        for label, at in _groups(table.wanted[rows], wrong):
            yield label, [block.ids[i] for i in at], as_read([block.payloads[i] for i in at])


def as_read(payloads: Sequence[Payload]) -> tuple[Condition, ...]:
    """The condition that none of the points was replaced since their ``payloads`` were read.

    A label for the old vector must not end up on the new one. Empty if a payload has no time.
    """
    times = [payload.get("ingested_at") for payload in payloads]
    known = [time for time in times if isinstance(time, int | float)]
    return (Range("ingested_at", lte=max(known)),) if known and len(known) == len(times) else ()


def slot_labels(payloads: Sequence[Payload], clustering: str, slot: str) -> Labels:
    """What a slot holds in each of ``payloads``, int32 (B,), UNASSIGNED where it is empty."""
    found = (cluster_of(payload, clustering, slot) for payload in payloads)
    return np.array([UNASSIGNED if c is None else c for c in found], dtype=np.int32)


def _groups(labels: Labels, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """``rows`` grouped by their label."""
    if not len(rows):
        return
    order = rows[np.argsort(labels[rows], kind="stable")]
    values, starts = np.unique(labels[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, starts[1:]), strict=True)
