"""Measures the drift of clusterings in the store, and exports it as metrics. Blocking."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

from prometheus_client import Gauge

from clusterer.upkeep.drift import Baseline, compare
from clusterer.upkeep.unchanged import Unchanged
from shoal.errors import NotFound
from shoal.store.clusterings import Clusterings, State
from shoal.store.gateway import Store
from shoal.store.model import Collection
from shoal.values import Drift
from shoal.vectors import NOISE

_LABELS = ("collection", "clustering")
_DUE = Gauge("shoal_clusterer_recluster_due", "1 when reclustering is due.", _LABELS)
_NEWCOMERS = Gauge("shoal_clusterer_drift_newcomers", "Points since the run.", _LABELS)
_NOISE = Gauge("shoal_clusterer_drift_noise_share", "Share of noise among them.", _LABELS)
_CONFIDENCE = Gauge("shoal_clusterer_drift_confidence", "Mean confidence of the rest.", _LABELS)
_PSI = Gauge("shoal_clusterer_drift_psi", "Stability index of their clusters.", _LABELS)


def measure(store: Store, collection: str, state: State) -> Drift:
    """The drift of the clustering in ``state`` since its active run.

    Raises:
        NotFound: the run's clusters are lost.
    """
    sizes = Clusterings(store, collection).sizes(state.clustering, state.pointer.active_run)
    if state.drift.run_noise:
        sizes[NOISE] = state.drift.run_noise
    now = {int(c): n for c, n in store.facet(collection, state.active_field).items()}
    clustered = state.drift.newcomers_clustered
    return compare(
        Baseline(sizes, state.drift.run_confidence),
        now,
        confidence=state.drift.newcomers_confidence / clustered if clustered else None,
    )


Known: TypeAlias = Unchanged[dict[str, Drift]]
"""The drift of the clusterings of each collection that has not changed since."""


def export(store: Store, known: Known) -> None:
    """Sets the metrics of every clustering that has an active run, and clears all others."""
    for gauge in (_DUE, _NEWCOMERS, _NOISE, _CONFIDENCE, _PSI):
        gauge.clear()
    for collection in store.collections():
        found = known.get(collection.name)
        if found is None:
            version = known.version(collection.name)
            found = _measured(store, collection)
            known.keep(collection.name, version, found)
        for name, drift in found.items():
            labels = (collection.name, name)
            _DUE.labels(*labels).set(drift.due)
            _NEWCOMERS.labels(*labels).set(drift.newcomers)
            _NOISE.labels(*labels).set(drift.noise_share)
            _CONFIDENCE.labels(*labels).set(drift.confidence)
            _PSI.labels(*labels).set(drift.psi)


def _measured(store: Store, collection: Collection) -> dict[str, Drift]:
    """The drift of each clustering of ``collection`` that has an active run."""
    clusterings = Clusterings(store, collection.name)
    found: dict[str, Drift] = {}
    for name in collection.clusterings:
        state = clusterings.state(name)
        if state.pointer.active_run:
            with contextlib.suppress(NotFound):  # a run went live meanwhile
                found[name] = measure(store, collection.name, state)
    return found
