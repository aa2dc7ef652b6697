"""A Qdrant server, or what stands in for one.

The stand-in has Qdrant's gRPC services over a client in memory, which tests our use of the wire
(conversions, metadata, status codes) though not the server itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from threading import RLock
from typing import Any

import grpc
from google.protobuf.message import Message
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.common import client_warnings
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc


@contextmanager
def qdrant_server() -> Iterator[tuple[str, int]]:
    """The URL and gRPC port of the server at SHOAL_TEST_QDRANT_URL, or of a stand-in."""
    if url := os.environ.get("SHOAL_TEST_QDRANT_URL"):
        yield url, int(os.environ.get("SHOAL_TEST_QDRANT_GRPC_PORT", "6334"))
        return
    server, port = start_stand_in()
    yield "http://127.0.0.1:1", port
    server.stop(None).wait()


def start_stand_in(
    *, port: int = 0, client: QdrantClient | None = None, version: str = "1.19.0"
) -> tuple[grpc.Server, int]:
    """A started server, which says that it has this version, and its port.

    ``client`` has the points, which outlive the server.
    """
    client_warnings.SEEN_MESSAGES.update(
        ("create-local-payload-indexes", "local_query_points_search_params_ignored")
    )
    client, lock = client or QdrantClient(location=":memory:"), RLock()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    wire.add_CollectionsServicer_to_server(_Collections(client, lock), server)
    wire.add_PointsServicer_to_server(_Points(client, lock), server)
    wire.add_QdrantServicer_to_server(_Root(version), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
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
    selector = GrpcToRest.convert_points_selector(request.points_selector)
    if not isinstance(selector, models.FilterSelector):
        raise NotImplementedError("the stand-in writes payloads by filter only")
    return selector


class _Root(wire.QdrantServicer):  # type: ignore[misc]
    def __init__(self, version: str) -> None:
        self._version = version

    def HealthCheck(self, request: Any, context: Any) -> Message:
        del request, context
        return wire.HealthCheckReply(title="qdrant", version=self._version)


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
        selector = GrpcToRest.convert_points_selector(request.points)
        if not isinstance(selector, models.PointIdsList):
            raise NotImplementedError("the stand-in deletes by ids only")
        self._client.delete(request.collection_name, selector)
        return _done()

    def CreateFieldIndex(self, _: Any) -> Message:
        return _done()

    def DeleteFieldIndex(self, _: Any) -> Message:
        return _done()


def _record(record: models.Record) -> Message:
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def _done() -> Message:
    result = wire.UpdateResult(operation_id=0, status=wire.UpdateStatus.Completed)
    return wire.PointsOperationResponse(result=result)
