"""The use case on a real model and a real store, where gRPC would hide what is tested."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import OnnxSession, RuntimeConfig
from embedder.flow.admission import Capacity
from embedder.flow.batching import Patience
from embedder.inference.fleet import Fleet
from embedder.ingest.ingestor import Destination, Ingestor
from embedder.ingest.items import Item, Remote, Status, content_hash
from embedder.ingest.points import Patch, Points
from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from shoal.errors import OperatorError, StoreUnavailable
from shoal.store import Filter, IdIn, Point, Record, Store, StoreConfig, open_store, point_id

NAME = "efficientnet-lite0"


class Watched:
    """The real session, which counts what it embeds and chokes on an all-white image."""

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.provider = self._session.provider
        self.inputs = self._session.inputs
        self.outputs = self._session.outputs
        self.images = 0

    def run(self, feeds: dict[str, Any], output: str) -> np.ndarray:
        pixels = feeds["pixels"]
        self.images += len(pixels)
        if (pixels == 255).all(axis=(1, 2, 3)).any():
            msg = "white"
            raise OperatorError(msg)
        vectors = self._session.run(feeds, output)
        vectors[(pixels == 0).all(axis=(1, 2, 3))] = np.nan
        return vectors


@dataclass
class Room:
    ingestor: Ingestor
    fleet: Fleet
    points: Points
    store: Store
    session: Watched
    photos: Destination

    async def ingest(self, data: bytes, key: str, **fields: Any) -> Status:
        item = Item(key, data, content_hash(data), fields)
        return (await self.ingestor.ingest(self.photos, item)).status


Enter = Callable[[], AbstractAsyncContextManager[Room]]


@pytest.fixture
def enter(open_session: Callable[..., OnnxSession]) -> Enter:
    """Gives a context manager that joins the use case to a store in memory."""
    model = load_artefact(bundled_artefact()).image_model

    @asynccontextmanager
    async def entered() -> AsyncIterator[Room]:
        config = EmbedderConfig(run_size=1)  # or opening it would measure
        session = Watched(open_session(model, RuntimeConfig()))
        fleet = Fleet(config, open_encoder=lambda artefact, _: Encoder(artefact, [session]))
        with open_store(StoreConfig(in_memory=True)) as store:
            points = Points(store, workers=config.store_workers)
            await fleet.start()
            points.start()
            ingestor = Ingestor(fleet, points, Locations(config.locations), max_bytes=2**20)
            photos = await ingestor.open("photos")
            yield Room(ingestor, fleet, points, store, session, photos)
            await fleet.close()
            await points.close()

    return entered


def test_ingest_of_known_bytes_does_not_embed(enter: Enter, images: Any) -> None:
    """The same bytes, with the same or with other fields, never reach the model again."""

    async def scenario() -> None:
        async with enter() as room:
            statuses = [
                await room.ingest(images.china, "china", a=1),
                await room.ingest(images.china, "china", a=1),
                await room.ingest(images.china, "china", a=2),
            ]
            assert statuses == [Status.STORED, Status.UNCHANGED, Status.UPDATED]
            assert room.session.images == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", [(0, 1), (1, 0)])
def test_remote_items_of_one_content_do_not_wait_for_each_other_for_ever(
    enter: Enter, images: Any, tmp_path: Path, turns: tuple[int, int]
) -> None:
    """One has the memory and waits for the turn of the hash; the other must not have that turn."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(images.china)
    keys = ("", f"sha256:{content_hash(images.china)}")

    async def scenario() -> None:
        capacity = Capacity(max_items=1, max_bytes=2**30)
        locations = Locations(LocationsConfig(roots=(tmp_path,), capacity=capacity))
        async with enter() as room:
            ingestor = Ingestor(room.fleet, room.points, locations, max_bytes=2**20)
            items = [Remote(keys[turn], photo.as_uri(), {}) for turn in turns]
            async with asyncio.timeout(60):
                found = await asyncio.gather(
                    *(ingestor.ingest(room.photos, item) for item in items)
                )
            assert {each.status for each in found} == {Status.STORED, Status.UNCHANGED}
            await locations.close()

    asyncio.run(scenario())


def test_ingest_of_one_image_under_two_keys_is_two_points(enter: Enter, images: Any) -> None:
    """A key makes the point, not the bytes; both points have the same vector."""

    async def scenario() -> None:
        async with enter() as room:
            await asyncio.gather(room.ingest(images.china, "one"), room.ingest(images.china, "two"))
            one, two = room.store.retrieve(
                "photos", [point_id("one"), point_id("two")], vectors=[NAME]
            )
            assert one is not None
            assert two is not None
            np.testing.assert_allclose(one.vectors[NAME], two.vectors[NAME], atol=1e-6)
            assert room.store.count("photos") == 2

    asyncio.run(scenario())


def test_ingest_at_the_same_time_under_one_key_lets_the_last_win(enter: Enter, images: Any) -> None:
    """Of many in flight with one id, each waits for the one before; the point is the last's."""

    async def scenario() -> None:
        async with enter() as room:
            data = [*images.digits[:10], images.flower]
            statuses = await asyncio.gather(
                *(room.ingest(each, "it", n=number) for number, each in enumerate(data))
            )
            expected = (await room.fleet.embed(images.flower, (NAME,), Patience()))[NAME]
            (record,) = room.store.retrieve("photos", [point_id("it")], vectors=[NAME])
            assert statuses == [Status.STORED] + [Status.UPDATED] * 10
            assert record is not None
            assert record.payload["n"] == 10
            np.testing.assert_allclose(record.vectors[NAME], expected, atol=1e-6)
            assert room.store.count("photos") == 1

    asyncio.run(scenario())


def _flat(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_ingest_poison_costs_only_itself(enter: Enter, images: Any) -> None:
    """An image on which the model fails, or of which it makes NaN, fails alone in its batch."""

    async def scenario() -> None:
        async with enter() as room:
            data = [*images.digits[:6], _flat(255), *images.digits[6:12], _flat(0)]
            answers = await asyncio.gather(
                *(room.ingest(each, str(number)) for number, each in enumerate(data)),
                return_exceptions=True,
            )
            failed = [number for number, each in enumerate(answers) if each is not Status.STORED]
            assert failed == [6, 13]
            assert all(isinstance(answers[number], OperatorError) for number in failed)
            assert room.store.count("photos") == 12

    asyncio.run(scenario())


def test_ingest_acknowledges_only_what_the_store_has_written(
    enter: Enter, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the write fails the item fails; sent again after that, it is stored."""

    async def scenario() -> None:
        async with enter() as room:

            def away(*_: object, **__: object) -> None:
                msg = "away"
                raise StoreUnavailable(msg)

            with monkeypatch.context() as patch:
                patch.setattr(room.store, "upsert", away)
                with pytest.raises(StoreUnavailable):
                    await room.ingest(images.china, "china")
            assert room.store.count("photos") == 0
            assert await room.ingest(images.china, "china") is Status.STORED
            assert room.store.count("photos") == 1

    asyncio.run(scenario())


class _SlowStore:
    """Keeps payloads; its first write waits until it is told to go on."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.first = threading.Event()
        self.go_on = threading.Event()

    def retrieve(self, _name: str, ids: list[str]) -> list[Record | None]:
        return [Record(i, self.rows[i], {}) if i in self.rows else None for i in ids]

    def upsert(self, _name: str, points: list[Point]) -> None:
        if not self.first.is_set():
            self.first.set()
            self.go_on.wait(30)
        for point in points:
            self.rows[point.id] = point.payload


class _NoModel:
    """A fleet without a model."""

    async def embed(self, _data: bytes, _names: Any, _patience: Patience) -> dict[str, np.ndarray]:
        return {"none": np.array([1, 0], np.float32)}


def test_ingest_cancelled_in_its_write_does_not_overtake_a_later_one() -> None:
    """A sender that went away and came back with other bytes finds those stored, for good."""

    async def scenario() -> None:
        store = _SlowStore()
        points = Points(store, workers=2)  # type: ignore[arg-type]
        points.start()
        nowhere = Locations(LocationsConfig())
        ingestor = Ingestor(_NoModel(), points, nowhere, max_bytes=100)  # type: ignore[arg-type]
        old, new = (Item("k", data, content_hash(data), {}) for data in (b"old", b"new"))
        first = asyncio.create_task(ingestor.ingest(Destination("c", ("none",)), old))
        await asyncio.to_thread(store.first.wait)
        first.cancel()
        second = asyncio.create_task(ingestor.ingest(Destination("c", ("none",)), new))
        await asyncio.wait({second}, timeout=0.2)
        store.go_on.set()
        await asyncio.gather(first, return_exceptions=True)
        assert (await second).status is Status.UPDATED
        await points.close()
        assert store.rows[new.id]["content_hash"] == new.content_hash

    asyncio.run(scenario())


def test_ingest_of_fields_for_content_that_was_replaced_meanwhile_wins_whole(
    enter: Enter, images: Any
) -> None:
    """Fields are not mixed with the bytes that another process stored under them."""

    async def scenario() -> None:
        async with enter() as room:
            await room.ingest(images.china, "k", colour="red")
            write = room.ingestor._points.write

            async def replaced_first(collection: str, change: Any) -> None:
                if isinstance(change, Patch):
                    where = Filter((IdIn([point_id("k")]),))
                    room.store.set_payload("photos", {"content_hash": "0" * 64}, where=where)
                await write(collection, change)

            room.ingestor._points.write = replaced_first  # type: ignore[method-assign]
            assert await room.ingest(images.china, "k", colour="blue") is Status.UPDATED
            (record,) = room.store.retrieve("photos", [point_id("k")])
            assert record is not None
            assert record.payload["colour"] == "blue"
            assert record.payload["content_hash"] == content_hash(images.china)

    asyncio.run(scenario())
