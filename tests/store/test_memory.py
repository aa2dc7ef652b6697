from __future__ import annotations

import numpy as np
import pytest
from qdrant_client.common import client_warnings
from qdrant_client.local.local_collection import LocalCollection

from shoal.store import Payload, Point, Store, StoreConfig, VectorInfo, open_store, point_id


def test_memory_engine_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's warnings about its in-memory engine are expected, and not repeated."""
    monkeypatch.setattr(client_warnings, "SEEN_MESSAGES", set())
    monkeypatch.setattr(LocalCollection, "LARGE_DATA_THRESHOLD", 1)
    with open_store(StoreConfig(in_memory=True)) as store:
        store.create_collection("photos", [VectorInfo("v", 2, "00")])
        _write(store, [{"n": i} for i in range(5)])  # warnings are errors in this test run
        assert store.count("photos") == 5


def _write(store: Store, payloads: list[Payload]) -> None:
    up = np.array([0, 1], np.float32)
    store.upsert("photos", [Point(point_id(str(i)), {"v": up}, p) for i, p in enumerate(payloads)])
