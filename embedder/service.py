"""The gRPC edge of the embedder: messages in, use cases called, messages out; and its life.

Owns the gates of calls and of streams. The rules of ingestion are in ``embedder.ingest``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import grpc
import grpc.aio

from embedder import messages, metrics
from embedder.config import MAX_CALL_IMAGES, EmbedderConfig
from embedder.encoding.artefact import Artefact
from embedder.flow.admission import Allowance, Gate
from embedder.flow.batching import Lane, Patience
from embedder.flow.streaming import Flow, Room, answer_stream
from embedder.images.cost import SLOW_MS
from embedder.inference.fleet import Fleet
from embedder.inference.pipeline import Vector
from embedder.ingest.ingestor import Ingestor
from embedder.ingest.items import Item, Remote
from embedder.ingest.points import Points
from embedder.locations.reading import Locations
from embedder.requests import Asked, Load, Reader, Request, count, outcome
from shoal.errors import InvalidArgument, Overloaded, ServiceUnavailable, ShoalError
from shoal.rpc.callers import caller_of
from shoal.rpc.requests import Excess
from shoal.store import Store
from shoal.store.model import check_collection_name
from shoal.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

_LOG = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext


T = TypeVar("T")

_SLOW_RETRY_AFTER_S = 10.0
"""A caller that is refused for slow images is told to wait this long."""


@dataclass(frozen=True, slots=True)
class _Running:
    """The parts that exist between start and stop."""

    fleet: Fleet
    points: Points
    locations: Locations
    ingestor: Ingestor


@dataclass(frozen=True, slots=True)
class _Call:
    """What the images of an Embed call have in common."""

    encoder: Artefact
    patience: Patience
    allowance: Allowance


class EmbedderService(embedder_pb2_grpc.EmbedderServiceServicer):
    """Embeds images, and ingests them into a store that it does not own."""

    name = "shoal.v1.EmbedderService"

    def __init__(self, config: EmbedderConfig, store: Store) -> None:
        """Prepares; ``start`` loads the encoders."""
        self._config = config
        self._store = store
        self._calls = Gate("embed", config.calls)
        self._streams = Gate("ingest", config.streams)
        unit = "ms of slow decoding"
        self._slow_calls = Gate(
            "embed", config.slow_calls, unit=unit, retry_after_s=_SLOW_RETRY_AFTER_S
        )
        self._slow_streams = Gate("ingest", config.slow_streams, unit=unit)
        self._draining = asyncio.Event()
        self._running: _Running | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Adds this service to ``server``."""
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Loads the default encoder and proves it right; verifies the others.

        Raises:
            ConfigError, ArtefactError, SelfTestFailed: an encoder cannot serve, or the package that
                reads an object store is not installed.
        """
        locations = Locations(self._config.locations)
        fleet = Fleet(self._config)
        await fleet.start()
        points = Points(self._store, workers=self._config.store_workers)
        points.start()
        limit = self._config.limits.max_bytes
        ingestor = Ingestor(fleet, points, locations, max_bytes=limit)
        self._running = _Running(fleet, points, locations, ingestor)

    async def ready(self) -> bool:
        """True when the open models answer rightly and the store answers; raises why not.

        Raises Unrecoverable when a model has failed for too long: in this process it always will.
        """
        if self._running is None or self._draining.is_set():
            return False
        self._running.fleet.check()
        await self._running.points.reachable()
        return True

    @property
    def details(self) -> Sequence[str]:
        """The execution provider of the default encoder, for health."""
        fleet = self._running.fleet if self._running else None
        return () if fleet is None else (fleet.provider(fleet.default),)

    def drain(self) -> None:
        """Refuses new work from now on; a stream ends once it has answered what it has read."""
        self._draining.set()

    async def stop(self, grace_s: float) -> None:
        """Drains for at most ``grace_s`` seconds, then gives up threads and sessions."""
        self.drain()
        running, self._running = self._running, None
        if running is None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.gather(
                    running.fleet.close(), running.points.close(), running.locations.close()
                )
        except TimeoutError:
            _LOG.warning("stopped before all work was done", extra={"grace_s": grace_s})

    async def Embed(
        self, request: embedder_pb2.EmbedRequest, context: Context[Any, Any]
    ) -> embedder_pb2.EmbedResponse:
        """One answer per image, in order; a bad image costs only itself."""
        running = self._alive()
        encoder = running.fleet.as_made(request.encoder, request.fingerprint)
        _check_count("images", len(request.images))
        patience = Patience(Lane.CALL, _deadline(context), caller_of(context))
        call = _Call(encoder, patience, Allowance(1000 * self._config.max_call_decode_s))
        load = Load.of(request.images, running.fleet)
        with self._admitted(load.items, load.size), self._admitted_slow(load):
            answers = await asyncio.gather(
                *(self._embed(running, image, call) for image in request.images)
            )
        results = [
            messages.embed_result(answer, fingerprint=encoder.fingerprint) for answer in answers
        ]
        return embedder_pb2.EmbedResponse(results=results, encoder=encoder.name)

    async def EmbedText(
        self, request: embedder_pb2.EmbedTextRequest, context: Context[Any, Any]
    ) -> embedder_pb2.EmbedTextResponse:
        """One answer per text, in order; a bad text costs only itself."""
        running = self._alive()
        name = running.fleet.with_text(request.encoder).name
        encoder = running.fleet.as_made(name, request.fingerprint)
        _check_count("texts", len(request.texts))
        patience = Patience(Lane.CALL, _deadline(context), caller_of(context))
        size = sum(map(len, request.texts))
        with self._admitted(len(request.texts), size):
            answers = await asyncio.gather(
                *(_embed_text(running, text, encoder.name, patience) for text in request.texts)
            )
        results = [
            messages.embed_result(answer, fingerprint=encoder.fingerprint) for answer in answers
        ]
        return embedder_pb2.EmbedTextResponse(results=results, encoder=encoder.name)

    @contextmanager
    def _admitted(self, items: int, size: int) -> Iterator[None]:
        """Room for a call, which is counted and refused if there is none."""
        with self._counted(self._calls.admit(items, size)):
            yield

    @contextmanager
    def _admitted_slow(self, load: Load) -> Iterator[None]:
        """Room for the slow images of a call, as for the others, which they do not hold up."""
        most = round(1000 * self._config.max_call_decode_s)
        if not load.slow_ms:
            yield
            return
        with self._counted(self._slow_calls.admit(min(load.slow_ms, most), load.slow_size)):
            yield

    @contextmanager
    def _counted(self, room: AbstractContextManager[None]) -> Iterator[None]:
        """``room``; a refusal is counted."""
        with ExitStack() as stack:
            try:
                stack.enter_context(room)
            except Overloaded:
                metrics.REFUSED.inc()
                raise
            yield

    async def Ingest(
        self,
        request_iterator: AsyncIterator[Request],
        context: Context[Any, Any],
    ) -> AsyncIterator[embedder_pb2.IngestResponse]:
        """One answer per request, as they finish; a bad image costs only itself."""
        running = self._alive()
        first = await self._first(request_iterator)
        if first is None:
            return
        head = first.head if isinstance(first, Excess) else first
        collection = check_collection_name(head.collection)
        destination = await running.ingestor.open(collection, head.encoders)
        destination = replace(destination, caller=caller_of(context))

        async def answer(asked: Asked) -> embedder_pb2.IngestResponse:
            if isinstance(asked, embedder_pb2.IngestResponse):
                return asked
            found = await _answered(running.ingestor.ingest(destination, asked))
            count("Ingest", found)
            return messages.ingest_response(asked.sequence, asked.key, found)

        room = partial(self._room, running.fleet)
        flow: Flow[Asked] = Flow(self._config.stream_window, room, stop=self._draining)
        reader = Reader(
            first, request_iterator, collection, max_bytes=self._config.limits.max_bytes
        )
        del first, head  # up to a whole message, for as long as the stream lives
        async with aclosing(answer_stream(reader.asked(), answer, flow=flow)) as responses:
            async for response in responses:
                yield response
        if reader.failure is not None:
            raise reader.failure
        if not reader.finished:
            msg = "the server is shutting down: send again what was not answered"
            raise ServiceUnavailable(msg)

    def _room(self, fleet: Fleet, asked: Asked) -> Room:
        """The room of a stream's request; a slow image holds up only the streams of slow ones."""
        if isinstance(asked, Remote):  # it may be slow
            return Room(self._slow_streams, 0, round(SLOW_MS))
        if not isinstance(asked, Item):
            return Room(self._streams, 0)
        slow_ms = math.ceil(fleet.slow_ms(asked.data))
        if not slow_ms:
            return Room(self._streams, len(asked.data))
        return Room(self._slow_streams, len(asked.data), slow_ms)

    async def _first(self, requests: AsyncIterator[Request]) -> Request | None:
        """The first request of a stream, or None; a stream that sends none ends with the server."""
        reading = asyncio.ensure_future(anext(requests, None))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            msg = "the server is shutting down"
            raise ServiceUnavailable(msg)
        finally:
            for waiting in (reading, draining):
                waiting.cancel()
            await asyncio.gather(reading, draining, return_exceptions=True)

    async def GetInfo(
        self, request: embedder_pb2.GetInfoRequest, context: Context[Any, Any]
    ) -> embedder_pb2.GetInfoResponse:
        """The encoders and the limits."""
        del request, context
        fleet = self._alive().fleet
        return embedder_pb2.GetInfoResponse(
            encoders=[
                messages.encoder_info(
                    artefact,
                    provider=fleet.provider(artefact.name),
                    loaded=fleet.is_open(artefact.name),
                )
                for artefact in fleet.artefacts
            ],
            version=_version(),
            max_image_bytes=self._config.limits.max_bytes,
            max_image_pixels=self._config.limits.max_pixels,
            max_batch_images=MAX_CALL_IMAGES,
            uri_schemes=self._config.locations.schemes,
        )

    def _alive(self) -> _Running:
        if self._running is None or self._draining.is_set():
            msg = "the embedder is shutting down"
            raise ServiceUnavailable(msg)
        return self._running

    async def _embed(
        self, running: _Running, image: common_pb2.Image, call: _Call
    ) -> Vector | ShoalError:
        answer = await _answered(self._vector(running, image, call))
        count("Embed", answer)
        return answer

    async def _vector(self, running: _Running, image: common_pb2.Image, call: _Call) -> Vector:
        limit = self._config.limits.max_bytes
        source = messages.image_source(image, max_bytes=limit)
        async with AsyncExitStack() as held:
            if isinstance(source, str):
                reading = running.locations.read(source, max_bytes=limit)
                source = await held.enter_async_context(reading)
            call.allowance.spend(running.fleet.slow_ms(source))
            encoder = call.encoder
            made = await running.fleet.embed(
                source,
                (encoder.name,),
                call.patience,
                fingerprints={encoder.name: encoder.fingerprint},
            )
            return made[encoder.name]


async def _embed_text(
    running: _Running, text: str, encoder: str, patience: Patience
) -> Vector | ShoalError:
    answer = await _answered(_text_vector(running, text, encoder, patience))
    metrics.TEXTS.labels(outcome(answer)).inc()
    return answer


async def _text_vector(running: _Running, text: str, encoder: str, patience: Patience) -> Vector:
    messages.check_text(text)
    return await running.fleet.embed_text(text, encoder, patience)


async def _answered(working: Awaitable[T]) -> T | ShoalError:
    """The result of an item's work, or the error that its sender is told."""
    try:
        return await working
    except Exception as exc:  # noqa: BLE001 - the edge of an item, as the interceptor of a call
        return messages.item_failure(exc)


def _check_count(what: str, count: int) -> None:
    if not 1 <= count <= MAX_CALL_IMAGES:
        msg = f"{what}: expected 1 to {MAX_CALL_IMAGES} of them, got {count}"
        raise InvalidArgument(msg, field=what)


def _deadline(context: Context[Any, Any]) -> float | None:
    """When the caller stops waiting, in the loop's time."""
    left: float | None = context.time_remaining()  # the stubs forget that there may be none
    return None if left is None else asyncio.get_running_loop().time() + left


def _version() -> str:
    try:
        return version("shoal")
    except PackageNotFoundError:
        return "0+unknown"
