"""The vector of a query image or text, which the embedder computes. Knows gRPC and no store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio

from shoal.errors import (
    DeadlineExceeded,
    EncoderMismatch,
    NotFound,
    ServiceUnavailable,
    ShoalError,
    Unauthenticated,
)
from shoal.rpc.callers import on_behalf_of
from shoal.rpc.status import from_item_error, from_rpc_error
from shoal.rpc.unreachable import reason_of
from shoal.v1 import common_pb2, embedder_pb2_grpc
from shoal.v1 import embedder_pb2 as pb


class QueryEmbedder:
    """Asks the embedder for the vector of one query."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self._timeout_s = timeout_s

    async def image(
        self,
        image: common_pb2.Image,
        encoder: str,
        context: grpc.aio.ServicerContext[object, object],
        *,
        fingerprint: str = "",
    ) -> common_pb2.Vector:
        """The vector of ``image``, as the collection's vectors of ``fingerprint`` were made.

        Raises:
            ImageInvalid: the embedder refuses the image.
            ServiceUnavailable: the embedder cannot be reached.
        """
        request = pb.EmbedRequest(images=[image], encoder=encoder, fingerprint=fingerprint)
        with _translating(encoder):
            answer = await self._stub.Embed(
                request, timeout=self._timeout(context), metadata=on_behalf_of(context)
            )
        return _vector_of(answer.results[0])

    async def text(
        self,
        text: str,
        encoder: str,
        context: grpc.aio.ServicerContext[object, object],
        *,
        fingerprint: str = "",
    ) -> common_pb2.Vector:
        """The vector of ``text``, as the collection's vectors of ``fingerprint`` were made.

        Raises:
            Unsupported: the encoder has no text tower.
            ServiceUnavailable: the embedder cannot be reached.
        """
        request = pb.EmbedTextRequest(texts=[text], encoder=encoder, fingerprint=fingerprint)
        with _translating(encoder):
            answer = await self._stub.EmbedText(
                request, timeout=self._timeout(context), metadata=on_behalf_of(context)
            )
        return _vector_of(answer.results[0])

    def _timeout(self, context: grpc.aio.ServicerContext[object, object]) -> float:
        """How many seconds the embedder has: the configured ones, or fewer before the deadline."""
        remaining = context.time_remaining()
        if remaining is None:
            return self._timeout_s
        if remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the query was embedded")
        return min(self._timeout_s, remaining)


@contextmanager
def _translating(encoder: str) -> Iterator[None]:
    """Turns a failed call to the embedder into the error that the searching caller understands."""
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        raise _caller_error(exc, encoder) from exc


def _caller_error(exc: grpc.aio.AioRpcError, encoder: str) -> ShoalError:
    error = from_rpc_error(exc, "the embedder")
    if type(error) is ServiceUnavailable and "address" in error.metadata:  # no answer of its own
        why = reason_of(exc.details() or exc.code().name)
        return ServiceUnavailable(
            f"the search service does not reach its embedder, which queries by image and text need "
            f"(--embedder-address of `shoal serve search`): {why}"
        )
    if isinstance(error, NotFound):  # what it does not have is the encoder: only that is named
        return EncoderMismatch(
            f"the collection was made with the encoder {encoder!r}, which the embedder does not "
            f"have: {error.message}",
            encoder=encoder,
        )
    if isinstance(error, Unauthenticated):  # of this service: the caller's own token was right
        return ServiceUnavailable("the embedder refuses the search service's token")
    return error


def _vector_of(result: pb.EmbedResult) -> common_pb2.Vector:
    if result.WhichOneof("outcome") == "error":
        raise from_item_error(result.error)
    return result.vector
