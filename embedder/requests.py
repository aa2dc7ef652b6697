"""What callers bring: the requests of a stream, one by one, and the images of a call together."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from embedder import messages, metrics
from embedder.images.cost import SLOW_MS
from embedder.inference.fleet import Fleet
from embedder.inference.pipeline import Vector
from embedder.ingest.items import Item, Outcome, Remote
from shoal.errors import InvalidArgument, ShoalError
from shoal.rpc.requests import Excess
from shoal.v1 import common_pb2, embedder_pb2

Request: TypeAlias = embedder_pb2.IngestRequest | Excess[embedder_pb2.IngestRequest]
"""A request of a stream as it comes in."""
Asked: TypeAlias = Item | Remote | embedder_pb2.IngestResponse
"""A request of a stream: the item in it, or its answer already where there is none."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a call brings: images and their bytes, slow ones and others."""

    items: int
    size: int
    slow_ms: int
    slow_size: int

    @classmethod
    def of(cls, images: Sequence[common_pb2.Image], fleet: Fleet) -> Load:
        """The load of ``images``; those that are yet to be read may be slow, and count as such."""
        items = size = slow_size = 0
        slow_ms = 0.0
        for image in images:
            data = image.data
            ms = SLOW_MS if image.uri else fleet.slow_ms(data)
            slow_ms += ms
            if ms:
                slow_size += len(data)
            else:
                items, size = items + 1, size + len(data)
        return cls(items, size, math.ceil(slow_ms), slow_size)


def count(rpc: str, answer: Vector | Outcome | ShoalError) -> None:
    """Counts an answer to an image by what became of it."""
    metrics.IMAGES.labels(rpc, outcome(answer)).inc()


def outcome(answer: Vector | Outcome | ShoalError) -> str:
    """The label of an answer: a status or an error's reason, in lower case."""
    if isinstance(answer, ShoalError):
        return answer.reason.lower()
    return answer.status.value if isinstance(answer, Outcome) else "embedded"


class Reader:
    """The requests of a stream, checked one after the other, in order.

    ``finished`` tells whether the sender came to its end. ``failure`` is the reason why the stream
    cannot be read further; its sender is told once all earlier requests are answered.
    """

    def __init__(
        self,
        first: Request,
        rest: AsyncIterator[Request],
        collection: str,
        *,
        max_bytes: int,
    ) -> None:
        self._next: Request | None = first
        self._rest = rest
        self._collection = collection
        self._max_bytes = max_bytes
        self.finished = False
        self.failure: ShoalError | None = None

    async def asked(self) -> AsyncIterator[Asked]:
        """Every request, as an item or as its refusal."""
        while self._next is not None:
            request, self._next = self._next, None
            asked = await self._asked(request)
            del request  # while this waits for room, only the bytes that are counted are held
            yield asked
            del asked
            await self._read()

    async def _asked(self, request: Request) -> Asked:
        if isinstance(request, Excess):
            return _refused(request.head, request.error)
        try:
            _check_collection(request.collection, self._collection)
            return await messages.to_ingest(request, max_bytes=self._max_bytes)
        except ShoalError as exc:
            return _refused(request, messages.item_failure(exc))

    async def _read(self) -> None:
        try:
            self._next = await anext(self._rest, None)
        except InvalidArgument as exc:  # such as a payload nested deeper than protobuf allows
            self.failure = exc
        self.finished = self._next is None


def _refused(request: embedder_pb2.IngestRequest, error: ShoalError) -> embedder_pb2.IngestResponse:
    count("Ingest", error)
    return messages.ingest_response(request.sequence, request.key, error)


def _check_collection(name: str, opened: str) -> None:
    if name not in ("", opened):
        msg = f"collection: expected {opened!r}, as the stream began with, or nothing, got {name!r}"
        raise InvalidArgument(msg, field="collection")
