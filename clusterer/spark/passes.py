"""The work of a Spark task on one slice of the store: it counts it or writes it. Knows no Spark.

Both scan the slice and assign its points by the run's rule. Counting gives the driver the numbers
of a plan. Writing sets the labels that differ. It may be repeated, also while it is under way: each
write names the time at which its points were read, and follows a look at the lease's fence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from clusterer.runs.assign import Rule, Totals
from clusterer.runs.matching import named
from clusterer.runs.points import UNASSIGNED
from clusterer.runs.writeback import (
    Seal,
    SlotWriter,
    Written,
    by_label,
    clear_those_without,
    count_labels,
    labelled,
    replaced_since,
    slot_labels,
    written_slots,
)
from shoal.errors import LeaseLost, StoreUnavailable
from shoal.spark.slices import Slice, scan_slice
from shoal.store import Store, StoreConfig, open_store
from shoal.store.clusterings import FENCE, Clusterings, State
from shoal.store.model import Filter, Payload, VectorBlock, VectorScan
from shoal.store.patience import Patience
from shoal.vectors import Labels, Vectors

STORE_PATIENCE_S: Final = 120.0
"""How long a task waits for a server that is away: Spark gives up a task that failed four times."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of every task of a run. Picklable.

    Attributes:
        store: How to open the store.
        collection: Its collection.
        vector: The name of the vector that is clustered.
        state: The clustering when the run began, which has the slots.
        run: The run's id.
        fence: The fence of the run's lease; no write under another fence changes anything.
        rule: Gives any point its cluster.
        fields: Payload fields whose values are counted for names.
        block_size: Points of one read.
        write_chunk: Ids of one write.
    """

    store: StoreConfig
    collection: str
    vector: str
    state: State
    run: str
    fence: int
    rule: Rule
    fields: tuple[str, ...]
    block_size: int
    write_chunk: int


class SliceTotals(Totals):
    """The totals of some slices, and how many points have each old label with each new cluster.

    ``active`` and ``inactive`` count the pairs (label of the slot, row of the model) that there
    are, K x K at most.
    """

    def __init__(self, centroids: Vectors, sample: int, fields: tuple[str, ...]) -> None:
        super().__init__(centroids, sample, fields)
        self.points = 0
        self.active: Counter[tuple[int, int]] = Counter()
        self.inactive: Counter[tuple[int, int]] = Counter()

    def add(self, orders: Orders, block: VectorBlock) -> None:
        """Counts a block of a scan."""
        state = orders.state
        active = slot_labels(block.payloads, state.clustering, state.pointer.active_slot)
        inactive = slot_labels(block.payloads, state.clustering, state.pointer.inactive_slot)
        found = orders.rule.assign(block.ids, block.vectors, active)
        self.count(block, found)
        self.points += len(block)
        self.active.update(_pairs(active, found.labels))
        self.inactive.update(_pairs(inactive, found.labels))

    def join(self, other: SliceTotals) -> SliceTotals:
        """This, with the counts of ``other``."""
        self.merge(other)
        self.points += other.points
        self.active.update(other.active)
        self.inactive.update(other.inactive)
        return self


def _pairs(labels: Labels, rows: Labels) -> Counter[tuple[int, int]]:
    pairs, counts = np.unique(np.stack([labels, rows], axis=1), axis=0, return_counts=True)
    return Counter({(a, b): n for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)})


def count_slice(orders: Orders, sample: int, part: Slice) -> SliceTotals:
    """The totals of one slice; ``sample`` of its vectors are kept for the silhouette."""
    totals = SliceTotals(orders.rule.model.centroids, sample, orders.fields)
    options = VectorScan(
        vector=orders.vector,
        fields=(f"clusters.{orders.state.clustering}", *orders.fields),
        block_size=orders.block_size,
    )
    with _opened(orders) as store:
        for block in scan_slice(store, orders.collection, part, options):
            totals.add(orders, block)
    return totals


def write_slice(orders: Orders, ids: Labels, where: Filter, part: Slice) -> Written:
    """Labels the points of ``part`` that ``where`` selects, in the inactive slot.

    ``ids`` int32 (K,) are the ids of the model's rows. Before the first run nobody reads either
    slot, so both are written.

    Raises:
        LeaseLost: the run's lease is over, or another's; nothing more is written.
    """
    done = Written()
    with _opened(orders) as store:
        writer = _writer(store, orders)
        options = VectorScan(
            where=where,
            vector=orders.vector,
            fields=("clusters", "ingested_at"),
            block_size=orders.block_size,
        )
        waiting = _Waiting(orders, writer)
        for block in scan_slice(store, orders.collection, part, options):
            _write(orders, ids, block, waiting, done)
        waiting.write_all()
    return done


def clear_slice(orders: Orders, part: Slice) -> int:
    """Empties the inactive slot of the points of ``part`` that lack the run's vector.

    Returns:
        The number of points.

    Raises:
        LeaseLost: as ``write_slice``.
    """
    options = replace(labelled(orders.state), block_size=orders.block_size)
    with _opened(orders) as store:
        writer = _writer(store, orders)
        return sum(
            clear_those_without(writer, block.ids, orders.state, orders.vector)
            for block in scan_slice(store, orders.collection, part, options)
        )


@contextmanager
def _opened(orders: Orders) -> Iterator[Store]:
    """The store, whose calls are made again while the server is away and the lease is the run's."""
    with open_store(orders.store) as store:
        check = fence_check(store, orders)

        def ready() -> bool:
            try:
                check()
            except StoreUnavailable:
                return False
            return True

        yield store.patient(Patience(STORE_PATIENCE_S, ready=ready))


def _writer(store: Store, orders: Orders) -> SlotWriter:
    return SlotWriter(
        store,
        orders.collection,
        orders.state.clustering,
        orders.write_chunk,
        fence_check(store, orders),
        Seal(orders.fence, sealing=orders.state.unsettled),
    )


class _Waiting:
    """Points that wait to be written, by label: one operation costs the same for few and many.

    A label is written when a whole operation's points wait for it; at the end of the slice all are.
    """

    def __init__(self, orders: Orders, writer: SlotWriter) -> None:
        self._writer = writer
        self._chunk = orders.write_chunk
        self._slots = written_slots(orders.state)
        self._ids: dict[int, list[str]] = {}
        self._times: dict[int, list[Payload]] = {}

    def add(self, label: int, ids: list[str], payloads: list[Payload]) -> None:
        """Takes points to write ``label`` to."""
        held = self._ids.setdefault(label, [])
        held += ids
        times = self._times.setdefault(label, [])
        times += [{"ingested_at": payload.get("ingested_at")} for payload in payloads]
        if len(held) >= self._chunk:
            self._write(label)

    def write_all(self) -> None:
        """Writes all points that wait."""
        for label in sorted(self._ids):
            self._write(label)

    def _write(self, label: int) -> None:
        ids, times = self._ids.pop(label), self._times.pop(label)
        values = dict.fromkeys(self._slots, label)
        self._writer.write(ids, values, unless=replaced_since(times))


def _write(
    orders: Orders, ids: Labels, block: VectorBlock, waiting: _Waiting, done: Written
) -> None:
    state = orders.state
    active = slot_labels(block.payloads, state.clustering, state.pointer.active_slot)
    held = slot_labels(block.payloads, state.clustering, state.pointer.inactive_slot)
    wanted = named(ids, orders.rule.assign(block.ids, block.vectors, active).labels)
    differ = held != wanted
    if state.unsettled:
        sealed = slot_labels(block.payloads, state.clustering, FENCE)
        differ |= sealed != orders.fence
    for label, at in by_label(wanted, np.nonzero(differ)[0]):
        waiting.add(label, [block.ids[i] for i in at], [block.payloads[i] for i in at])
    done.points += int(np.count_nonzero(differ))
    done.labels.update(count_labels(wanted))
    done.gained.update(count_labels(wanted[differ]))
    done.lost.update(count_labels(held[differ & (held != UNASSIGNED)]))


def fence_check(store: Store, orders: Orders) -> Callable[[], None]:
    """A check that raises LeaseLost unless the store says that the lease is still the run's."""
    clusterings = Clusterings(store, orders.collection)

    def check() -> None:
        now = clusterings.state(orders.state.clustering)
        if (now.lease.fence, now.lease.run) != (orders.fence, orders.run):
            raise LeaseLost(
                f"clustering {now.clustering!r}: the lease of run {orders.run} is over "
                f"(fence {now.lease.fence}, ours {orders.fence}); nothing was written"
            )

    return check


def read_vectors(
    orders_store: StoreConfig, collection: str, part: Slice, options: VectorScan
) -> Vectors:
    """The vectors of one slice, float32 (N, D)."""
    with open_store(orders_store) as opened:
        store = opened.patient(Patience(STORE_PATIENCE_S))
        dim = store.collection(collection).vector(options.vector).dim
        found = [block.vectors for block in scan_slice(store, collection, part, options)]
    return np.concatenate(found) if found else np.zeros((0, dim), np.float32)
