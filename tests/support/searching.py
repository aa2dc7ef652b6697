"""A clustered collection, a stand-in embedder, and the search service over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import grpc.aio
import numpy as np
from reclustering import DIM, VECTOR, Bench, blobs
from serving import serving

from search.config import SearchConfig
from search.service import SearchService
from shoal.errors import ImageCorrupt, InvalidArgument, ShoalError
from shoal.rpc.callers import caller_of
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.rpc.server import Service
from shoal.rpc.status import item_error
from shoal.store import Store
from shoal.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc, search_pb2_grpc
from shoal.values import VectorInfo
from shoal.vectors import Vectors, encode

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"

FINGERPRINT = "f" * 64


class ToyEmbedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """An embedder whose images are vectors already: DIM float32, little-endian.

    A text is a number, and means the unit vector along that axis. Keeps how long it was given.
    """

    name = "shoal.v1.EmbedderService"
    fingerprint = FINGERPRINT
    failure: ShoalError | None = None
    remaining_s: float | None = None
    caller = ""
    asked = ""
    """The fingerprint that was asked for last."""

    def register(self, server: grpc.aio.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self, server)

    async def start(self) -> None:
        pass

    async def ready(self) -> bool:
        return True

    def drain(self) -> None:
        pass

    async def stop(self, grace_s: float) -> None:
        pass

    async def Embed(
        self, request: embedder_pb2.EmbedRequest, context: Context
    ) -> embedder_pb2.EmbedResponse:
        self.note(request, context)
        result = embedder_pb2.EmbedResult()
        data = request.images[0].data
        if len(data) == DIM * 4:
            result.vector.CopyFrom(self.vector(data))
        else:
            result.error.CopyFrom(item_error(ImageCorrupt("not a toy")))
        return embedder_pb2.EmbedResponse(results=[result], encoder=VECTOR)

    async def EmbedText(
        self, request: embedder_pb2.EmbedTextRequest, context: Context
    ) -> embedder_pb2.EmbedTextResponse:
        self.note(request, context)
        result = embedder_pb2.EmbedResult()
        if request.texts[0].isdecimal():
            axis = np.eye(DIM, dtype=np.float32)[int(request.texts[0])]
            result.vector.CopyFrom(self.vector(encode(axis)))
        else:
            result.error.CopyFrom(item_error(InvalidArgument("not a number")))
        return embedder_pb2.EmbedTextResponse(results=[result], encoder=VECTOR)

    def note(
        self, request: embedder_pb2.EmbedRequest | embedder_pb2.EmbedTextRequest, context: Context
    ) -> None:
        self.remaining_s = context.time_remaining()
        self.caller = caller_of(context)
        self.asked = request.fingerprint
        if self.failure is not None:
            raise self.failure
        assert request.encoder == VECTOR

    def vector(self, values: bytes) -> common_pb2.Vector:
        return common_pb2.Vector(values=values, dim=DIM, fingerprint=self.fingerprint)


@dataclass
class Scene:
    """200 points in 4 clusters, and a stub that searches them."""

    bench: Bench
    vectors: Vectors
    ids: list[str]
    stub: search_pb2_grpc.SearchServiceStub
    embedder: ToyEmbedder


@contextmanager
def searching(store: Store) -> Iterator[Scene]:
    """A scene in ``store``, which is empty."""
    store.create_collection("toys", [VectorInfo(VECTOR, DIM, FINGERPRINT)])
    bench = Bench(store)
    points = blobs(200, centres=4, spread=0.3)
    ids = bench.put(points)
    embedder = ToyEmbedder()
    with serving(lambda: [embedder]) as toy:

        def make() -> list[Service]:
            channel = open_aio_channel(ChannelConfig(address=toy.address))
            return [SearchService(SearchConfig(), store, channel)]

        with serving(make) as served:
            yield Scene(
                bench, points, ids, search_pb2_grpc.SearchServiceStub(served.channel), embedder
            )
