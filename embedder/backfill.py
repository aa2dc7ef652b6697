"""The embedder's ingestion without its server, for tasks that read their images themselves.

Requests, rules and answers are those of the service's Ingest, so that an image becomes the same
point whichever way it came; only the stream is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

from embedder import messages
from embedder.config import EmbedderConfig
from embedder.inference.fleet import Fleet
from embedder.ingest.ingestor import Destination, Ingestor
from embedder.ingest.items import Outcome
from embedder.ingest.points import Points
from embedder.locations.reading import Locations
from shoal.errors import LocationUnavailable, ShoalError, TransientError
from shoal.store import Store
from shoal.store.model import check_collection_name
from shoal.v1 import embedder_pb2 as pb


def ingest_all(
    requests: Iterable[pb.IngestRequest],
    *,
    collection: str,
    encoders: tuple[str, ...],
    config: EmbedderConfig,
    store: Store,
) -> list[pb.IngestResponse]:
    """One answer per request, in no order; a bad image costs only itself.

    ``requests`` may read files: each is taken when there is room for it, and at most
    ``config.stream_window`` are under way. Without any request, the encoders are opened and proven
    right, and the collection is made.

    Raises:
        ConfigError, ArtefactError, SelfTestFailed: an encoder cannot be opened.
        NotFound, EncoderMismatch, Unsupported: as ``Ingestor.open``.
        StoreUnavailable, Overloaded: the store failed while items were written.
    """
    return asyncio.run(_ingest_all(requests, collection, encoders, config, store))


async def _ingest_all(
    requests: Iterable[pb.IngestRequest],
    collection: str,
    encoders: tuple[str, ...],
    config: EmbedderConfig,
    store: Store,
) -> list[pb.IngestResponse]:
    limit = config.limits.max_bytes
    async with AsyncExitStack() as stack:
        locations = Locations(config.locations)
        stack.push_async_callback(locations.close)
        fleet = Fleet(config)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        points = Points(store, workers=config.store_workers)
        points.start()
        stack.push_async_callback(points.close)
        ingestor = Ingestor(fleet, points, locations, max_bytes=limit)
        destination = await ingestor.open(check_collection_name(collection), encoders)
        answers: list[pb.IngestResponse] = []
        under_way: set[asyncio.Task[pb.IngestResponse]] = set()
        waiting = iter(requests)
        try:
            while (request := await asyncio.to_thread(next, waiting, None)) is not None:
                task = asyncio.create_task(_answer(ingestor, destination, request, limit))
                under_way.add(task)
                del request, task  # an image is up to 20 MiB
                if len(under_way) >= config.stream_window:
                    under_way = await _wait_for_one(under_way, answers)
            while under_way:
                under_way = await _wait_for_one(under_way, answers)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return answers


async def _wait_for_one(
    under_way: set[asyncio.Task[pb.IngestResponse]], answers: list[pb.IngestResponse]
) -> set[asyncio.Task[pb.IngestResponse]]:
    """The tasks still under way once one has ended; what has ended goes to ``answers``."""
    done, rest = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    answers += [task.result() for task in done]
    return rest


async def _answer(
    ingestor: Ingestor, to: Destination, request: pb.IngestRequest, limit: int
) -> pb.IngestResponse:
    key = request.key
    answer: Outcome | ShoalError
    try:
        item = await messages.to_ingest(request, max_bytes=limit)
        key = item.key
        answer = await ingestor.ingest(to, item)
    except Exception as exc:
        if isinstance(exc, TransientError) and not isinstance(exc, LocationUnavailable):
            raise  # the store's error: the sender of this task does the task again
        answer = messages.item_failure(exc, log="the task's log")
    return messages.ingest_response(request.sequence, key, answer)
