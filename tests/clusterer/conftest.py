"""Real stores, embedded and in memory, with one empty collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reclustering import DIM, VECTOR, Bench

from shoal.store import Store, StoreConfig, open_store
from shoal.values import VectorInfo


@pytest.fixture(params=["embedded", "memory"])
def store(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[Store]:
    config = (
        StoreConfig(path=quick_path / "store")
        if request.param == "embedded"
        else StoreConfig(in_memory=True)
    )
    opened = open_store(config)
    yield opened
    opened.close()


@pytest.fixture
def quick() -> Iterator[Bench]:
    """An empty collection of DIM-d vectors in memory, for rules that no engine's own ways touch."""
    store = open_store(StoreConfig(in_memory=True))
    store.create_collection("toys", [VectorInfo(VECTOR, DIM, "f" * 64)])
    yield Bench(store)
    store.close()


@pytest.fixture
def bench(store: Store) -> Bench:
    """An empty collection of DIM-d vectors."""
    store.create_collection("toys", [VectorInfo(VECTOR, DIM, "f" * 64)])
    return Bench(store)
