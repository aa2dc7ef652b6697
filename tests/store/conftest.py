"""The engines that every test of the store runs on.

``server`` is the Qdrant server at SHOAL_TEST_QDRANT_URL if it is set. Otherwise it is a stand-in:
Qdrant's gRPC services over a client in memory, which tests our use of the wire (conversions,
metadata, status codes) though not the server itself.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from threading import RLock
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.common import client_warnings
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from shoal.store import (
    EVERYWHERE,
    Payload,
    Point,
    Store,
    StoreConfig,
    VectorSpec,
    open_store,
    point_id,
    records_name,
)
from shoal.vectors import Vectors

DIM = 8
ENCODER = VectorSpec("tiny", DIM, "ab" * 32)


@dataclass
class Room:
    """One collection in one store, and short ways to fill and read it."""

    store: Store
    name: str
    encoder: VectorSpec = ENCODER

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
    if url := os.environ.get("SHOAL_TEST_QDRANT_URL"):
        yield url, int(os.environ.get("SHOAL_TEST_QDRANT_GRPC_PORT", "6334"))
        return
    server, port = start_stand_in()
    yield "http://127.0.0.1:1", port
    server.stop(None).wait()


@pytest.fixture(scope="session", params=["embedded", "memory", "server"])
def config(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server_url: tuple[str, int],
) -> StoreConfig:
    """Where each engine keeps its points."""
    if request.param == "embedded":
        return StoreConfig(path=tmp_path_factory.mktemp("embedded") / "store")
    if request.param == "memory":
        return StoreConfig(in_memory=True)
    return StoreConfig(url=server_url[0], grpc_port=server_url[1], timeout_s=20)


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


# The stand-in for a server.


def start_stand_in() -> tuple[grpc.Server, int]:
    """A started server and its port."""
    client_warnings.SEEN_MESSAGES.update(
        ("create-local-payload-indexes", "local_query_points_search_params_ignored")
    )
    client, lock = QdrantClient(location=":memory:"), RLock()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    wire.add_CollectionsServicer_to_server(_Collections(client, lock), server)
    wire.add_PointsServicer_to_server(_Points(client, lock), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class _Servicer:
    def __init__(self, client: QdrantClient, lock: RLock) -> None:
        self._client = client
        self._lock = lock

    def __getattribute__(self, name: str) -> Any:
        """Every handler runs alone, with the client's errors as a server's statuses."""
        found = super().__getattribute__(name)
        if not name[0].isupper():
            return found

        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            with self._lock:
                try:
                    answer: Message = found(request)
                except ValueError as exc:
                    context.abort(_status(str(exc)), str(exc))
                return answer

        return handle


def _status(text: str) -> grpc.StatusCode:
    if "not found" in text:
        return grpc.StatusCode.NOT_FOUND
    if "already exists" in text:
        return grpc.StatusCode.ALREADY_EXISTS
    return grpc.StatusCode.INVALID_ARGUMENT


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _with(request: Any) -> dict[str, Any]:
    return {
        "with_payload": GrpcToRest.convert_with_payload_interface(request.with_payload),
        "with_vectors": GrpcToRest.convert_with_vectors_selector(request.with_vectors),
    }


def _selected(request: Any) -> models.FilterSelector:
    field = "points" if isinstance(request, wire.DeletePoints) else "points_selector"
    selector = GrpcToRest.convert_points_selector(getattr(request, field))
    if not isinstance(selector, models.FilterSelector):
        raise NotImplementedError("the stand-in selects by filter only")
    return selector


class _Collections(_Servicer, wire.CollectionsServicer):  # type: ignore[misc]
    def List(self, _: Any) -> Message:
        rows = self._client.get_collections().collections
        return wire.ListCollectionsResponse(
            collections=[wire.CollectionDescription(name=row.name) for row in rows]
        )

    def Get(self, request: Any) -> Message:
        info = self._client.get_collection(request.collection_name)
        return wire.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any) -> Message:
        self._client.create_collection(
            request.collection_name,
            vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=GrpcToRest.convert_payload(request.metadata),
        )
        return wire.CollectionOperationResponse(result=True)

    def Update(self, request: Any) -> Message:
        metadata = GrpcToRest.convert_payload(request.metadata)
        self._client.update_collection(request.collection_name, metadata=metadata)
        return wire.CollectionOperationResponse(result=True)

    def Delete(self, request: Any) -> Message:
        self._client.delete_collection(request.collection_name)
        return wire.CollectionOperationResponse(result=True)


class _Points(_Servicer, wire.PointsServicer):  # type: ignore[misc]
    def Upsert(self, request: Any) -> Message:
        if not request.wait:
            raise ValueError("expected wait")
        self._client.upsert(
            request.collection_name,
            [GrpcToRest.convert_point_struct(point) for point in request.points],
            update_mode=GrpcToRest.convert_update_mode(request.update_mode),
        )
        return _done()

    def Get(self, request: Any) -> Message:
        ids = [GrpcToRest.convert_point_id(i) for i in request.ids]
        records = self._client.retrieve(request.collection_name, ids, **_with(request))
        return wire.GetResponse(result=[_record(record) for record in records])

    def Scroll(self, request: Any) -> Message:
        offset = request.offset if request.HasField("offset") else None
        records, following = self._client.scroll(
            request.collection_name,
            scroll_filter=_filter(request),
            limit=request.limit,
            offset=None if offset is None else GrpcToRest.convert_point_id(offset),
            **_with(request),
        )
        return wire.ScrollResponse(
            result=[_record(record) for record in records],
            next_page_offset=(
                None if following is None else RestToGrpc.convert_extended_point_id(following)
            ),
        )

    def Query(self, request: Any) -> Message:
        found = self._client.query_points(
            request.collection_name,
            query=GrpcToRest.convert_query(request.query),
            using=request.using,
            query_filter=_filter(request),
            limit=request.limit,
            **_with(request),
        )
        points = [
            RestToGrpc.convert_scored_point(p.model_copy(update={"payload": p.payload or {}}))
            for p in found.points
        ]
        return wire.QueryResponse(result=points)

    def Count(self, request: Any) -> Message:
        counted = self._client.count(request.collection_name, count_filter=_filter(request))
        return wire.CountResponse(result=wire.CountResult(count=counted.count))

    def Facet(self, request: Any) -> Message:
        found = self._client.facet(
            request.collection_name, request.key, _filter(request), request.limit
        )
        hits = [RestToGrpc.convert_facet_value_hit(hit) for hit in found.hits]
        return wire.FacetResponse(hits=hits)

    def SetPayload(self, request: Any) -> Message:
        self._client.set_payload(
            request.collection_name,
            GrpcToRest.convert_payload(request.payload),
            _selected(request),
            key=request.key if request.HasField("key") else None,
        )
        return _done()

    def DeletePayload(self, request: Any) -> Message:
        self._client.delete_payload(request.collection_name, list(request.keys), _selected(request))
        return _done()

    def Delete(self, request: Any) -> Message:
        self._client.delete(request.collection_name, _selected(request))
        return _done()

    def CreateFieldIndex(self, _: Any) -> Message:
        return _done()


def _record(record: models.Record) -> Message:
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def _done() -> Message:
    result = wire.UpdateResult(operation_id=0, status=wire.UpdateStatus.Completed)
    return wire.PointsOperationResponse(result=result)
