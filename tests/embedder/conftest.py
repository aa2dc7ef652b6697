"""Real images as the bytes that a caller would send, and a real server on a real store."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from embedder.config import EmbedderConfig
from embedder.encoding import encoder
from embedder.encoding.runtime import OnnxSession
from embedder.service import EmbedderService
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.rpc.server import RpcServer, ServerConfig
from shoal.store import Store, StoreConfig, open_store
from shoal.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return buffer.getvalue()


def _huge_png() -> bytes:
    """A PNG of 45 bytes whose header claims 50,000 x 50,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Images:
    """Encoded images: two photos, some digits, and what is not an image."""

    china: bytes
    flower: bytes
    digits: tuple[bytes, ...]
    truncated: bytes
    text: bytes
    huge: bytes
    empty: bytes = b""


@pytest.fixture(scope="session")
def images() -> Images:
    """scikit-learn's two photos as JPEG, 24 digits as PNG, and four bad ones."""
    china, flower = (_encoded(photo, "JPEG") for photo in load_sample_images().images)
    digits = tuple(
        _encoded((digit * 15).astype(np.uint8), "PNG") for digit in load_digits().images[:24]
    )
    return Images(
        china=china,
        flower=flower,
        digits=digits,
        truncated=china[: len(china) // 2],
        text=b"this is not an image, whatever its name says\n",
        huge=_huge_png(),
    )


@dataclass
class Served:
    """A running embedder, its store, and a caller's stub."""

    service: EmbedderService
    server: RpcServer
    store: Store
    stub: Any
    sequence: int = field(default=0)

    def request(self, data: bytes, **fields: Any) -> embedder_pb2.IngestRequest:
        """A request of the collection "photos"; ``payload`` as a dict."""
        self.sequence += 1
        payload = fields.pop("payload", None)
        request = embedder_pb2.IngestRequest(
            sequence=self.sequence,
            collection=fields.pop("collection", "photos"),
            image=common_pb2.Image(data=data),
            **fields,
        )
        if payload is not None:
            request.payload.update(payload)
        return request

    async def ingest(
        self, *requests: embedder_pb2.IngestRequest
    ) -> list[embedder_pb2.IngestResponse]:
        """One stream; the responses in the order of the requests, one for each."""
        got = [response async for response in self.stub.Ingest(iter(requests))]
        assert sorted(response.sequence for response in got) == sorted(
            request.sequence for request in requests
        )
        order = {request.sequence: place for place, request in enumerate(requests)}
        return sorted(got, key=lambda response: order[response.sequence])

    async def embed(self, *images: bytes, **options: Any) -> embedder_pb2.EmbedResponse:
        """One Embed call."""
        request = embedder_pb2.EmbedRequest(
            images=[common_pb2.Image(data=data) for data in images], **options
        )
        response: embedder_pb2.EmbedResponse = await self.stub.Embed(request)
        return response


@pytest.fixture(scope="session")
def open_session() -> Callable[..., OnnxSession]:
    """Opens each model once: a session has no state, and may run in many threads."""
    return functools.cache(OnnxSession)


@pytest.fixture
def shared_sessions(
    open_session: Callable[..., OnnxSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lets the encoders of all tests that ask for this share the sessions of their models."""
    monkeypatch.setattr(encoder, "OnnxSession", open_session)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(quick_path: Path, shared_sessions: None) -> Serve:  # noqa: ARG001 - asked for
    """Gives a context manager that runs an embedder on a free port and its store."""

    @asynccontextmanager
    async def running(config: EmbedderConfig | None = None) -> AsyncIterator[Served]:
        with open_store(StoreConfig(path=quick_path / "store")) as store:
            service = EmbedderService(config or EmbedderConfig(run_size=1), store)
            server = RpcServer(
                ServerConfig(address="127.0.0.1:0", grace_s=5, health_interval_s=0.1), [service]
            )
            port = await server.start()
            channel = open_aio_channel(ChannelConfig(address=f"127.0.0.1:{port}"))
            try:
                stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
                yield Served(service, server, store, stub)
            finally:
                await channel.close(None)
                await server.stop()

    return running
