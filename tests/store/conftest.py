"""The engines that every test of the store runs on.

``server`` is the Qdrant server at SHOAL_TEST_QDRANT_URL if it is set. Otherwise it is a stand-in.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from quick_disk import quick_directory
from stand_in import qdrant_server

from shoal.store import (
    EVERYWHERE,
    Payload,
    Point,
    Store,
    StoreConfig,
    VectorInfo,
    open_store,
    point_id,
    records_name,
)
from shoal.vectors import Vectors

DIM = 8
ENCODER = VectorInfo("tiny", DIM, "ab" * 32)


@dataclass
class Room:
    """One collection in one store, and short ways to fill and read it."""

    store: Store
    name: str
    encoder: VectorInfo = ENCODER

    @staticmethod
    def vectors(count: int, *, dim: int = DIM, seed: int = 0) -> Vectors:
        """Random directions, (count, dim)."""
        vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def point(self, key: object, payload: Payload | None = None, *, seed: int = 0) -> Point:
        """A point with the id of ``key`` and a random vector."""
        vector = self.vectors(1, seed=seed)[0]
        return Point(point_id(str(key)), {self.encoder.name: vector}, payload or {})

    def fill(self, payloads: Sequence[Payload]) -> list[str]:
        """Writes a point per payload, keys 0, 1, ...; their ids, in the same order."""
        points = [self.point(i, payload, seed=i) for i, payload in enumerate(payloads)]
        self.store.upsert(self.name, points)
        return [point.id for point in points]

    def state(self) -> dict[str, Payload]:
        """Every point's payload by id."""
        return {
            i: payload
            for block in self.store.scan(self.name)
            for i, payload in zip(block.ids, block.payloads, strict=True)
        }


@pytest.fixture(scope="session")
def server_url() -> Iterator[tuple[str, int]]:
    """The address of a server, and its gRPC port."""
    with qdrant_server() as place:
        yield place


@pytest.fixture(scope="session", params=["embedded", "memory", "server"])
def config(request: pytest.FixtureRequest, server_url: tuple[str, int]) -> Iterator[StoreConfig]:
    """Where each engine keeps its points."""
    if request.param == "embedded":
        with quick_directory() as path:
            yield StoreConfig(path=path / "store")
    elif request.param == "memory":
        yield StoreConfig(in_memory=True)
    else:
        yield StoreConfig(url=server_url[0], grpc_port=server_url[1], timeout_s=20)


@pytest.fixture(scope="session")
def store(config: StoreConfig) -> Iterator[Store]:
    """An open store of each kind, shared: it holds other tests' (or people's) collections."""
    with open_store(config) as opened:
        yield opened


@pytest.fixture
def fresh_name(store: Store) -> Iterator[str]:
    """A name that no collection has; what the test makes of it is dropped afterwards."""
    name = _unique_name()
    yield name
    if any(collection.name == name for collection in store.collections()):
        store.drop_collection(name)


@pytest.fixture
def new_room(store: Store, fresh_name: str) -> Room:
    """An empty collection that the test may change and drop."""
    store.create_collection(fresh_name, [ENCODER])
    return Room(store, fresh_name)


@pytest.fixture(scope="session")
def shared_room(store: Store) -> Iterator[Room]:
    """A collection for tests that only write points."""
    room = Room(store, _unique_name())
    store.create_collection(room.name, [ENCODER])
    yield room
    store.drop_collection(room.name)


@pytest.fixture
def room(shared_room: Room) -> Room:
    """An empty collection; the test may write points, and nothing else."""
    for name in (shared_room.name, records_name(shared_room.name)):
        shared_room.store.delete(name, EVERYWHERE)
    return shared_room


def _unique_name() -> str:
    return f"test-{uuid.uuid4().hex[:16]}"
