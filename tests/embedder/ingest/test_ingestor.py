"""The use case on a real model and a real store, where gRPC would hide what is tested."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import OnnxSession, RuntimeConfig
from embedder.flow.admission import Capacity
from embedder.flow.batching import Lane, Patience
from embedder.inference.fleet import Fleet
from embedder.ingest.ingestor import Destination, Ingestor
from embedder.ingest.items import (
    MAX_PAYLOAD_BYTES,
    Item,
    Outcome,
    Remote,
    Status,
    content_hash,
    to_item,
)
from embedder.ingest.points import Patch, Points
from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from shoal.errors import (
    EncoderMismatch,
    ImageCorrupt,
    InvalidArgument,
    NotFound,
    OperatorError,
    StoreUnavailable,
    Unsupported,
)
from shoal.store import (
    EVERYWHERE,
    Filter,
    IdIn,
    Point,
    Record,
    Store,
    StoreConfig,
    VectorInfo,
    arrival,
    open_store,
    point_id,
)

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

    async def embed(
        self, _data: bytes, _names: Any, _patience: Patience, **_: Any
    ) -> dict[str, np.ndarray]:
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


@dataclass
class Rules:
    """The use case without a model: a vector is made of the first byte, and counted."""

    ingestor: Ingestor
    store: Store
    points: Points
    locations: Pages
    fleet: FirstBytes
    embedded: list[bytes]
    photos: Destination

    async def ingest(self, key: str, data: bytes, **fields: Any) -> Status:
        item = Item(key, data, content_hash(data), fields)
        outcome = await self.ingestor.ingest(self.photos, item)
        assert (outcome.key, outcome.id) == (key, point_id(key))
        return outcome.status

    def point(self, key: str) -> Record:
        (record,) = self.store.retrieve("photos", [point_id(key)], vectors=["first"])
        assert record is not None
        return record


class Pages:
    """Places whose content arrives when it is told to."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.may_arrive: dict[str, asyncio.Event] = {}
        self.asked: list[tuple[str, int]] = []

    @asynccontextmanager
    async def read(self, uri: str, *, max_bytes: int) -> AsyncIterator[bytes]:
        self.asked.append((uri, max_bytes))
        if uri in self.may_arrive:
            await self.may_arrive[uri].wait()
        yield self.pages[uri]


def encoder(name: str, now: str, before: str) -> SimpleNamespace:
    """An artefact with its fingerprint, and with the one from before it had a matte."""
    older = SimpleNamespace(name=name, dim=2, fingerprint=before * 64)
    return SimpleNamespace(name=name, dim=2, fingerprint=now * 64, before_matte=older)


class FirstBytes:
    """A fleet of two encoders whose vectors tell an image's first byte."""

    artefacts = (encoder("first", "1", "a"), encoder("second", "2", "b"))

    def __init__(self) -> None:
        self.embedded: list[bytes] = []
        self.patience: set[Patience] = set()
        self.fingerprints: dict[str, str] = {}

    def artefact(self, name: str) -> Any:
        for artefact in self.artefacts:
            if name in ("", artefact.name):
                return artefact
        raise NotFound(f"no encoder {name!r}", encoder=name)

    def as_made(self, name: str, fingerprint: str) -> Any:
        artefact = self.artefact(name)
        for each in (artefact, artefact.before_matte):
            if each.fingerprint == fingerprint:
                return each
        raise EncoderMismatch("another", encoder=name)

    async def embed(
        self,
        data: bytes,
        names: Sequence[str],
        patience: Patience,
        *,
        fingerprints: Mapping[str, str],
    ) -> dict[str, np.ndarray]:
        self.fingerprints = dict(fingerprints)
        self.embedded.append(data)
        self.patience.add(patience)
        if data == b"bad":
            raise ImageCorrupt("bad")
        vector = np.array([data[0], 1], np.float32)
        return {name: vector / np.linalg.norm(vector) for name in names}


@asynccontextmanager
async def rules() -> AsyncIterator[Rules]:
    with open_store(StoreConfig(in_memory=True)) as store:
        points = Points(store, workers=1)
        points.start()
        fleet, pages = FirstBytes(), Pages()
        ingestor = Ingestor(fleet, points, pages, max_bytes=77)  # type: ignore[arg-type]
        photos = await ingestor.open("photos")
        try:
            yield Rules(ingestor, store, points, pages, fleet, fleet.embedded, photos)
        finally:
            await points.close()
        assert fleet.patience <= {Patience(Lane.STREAM)}
        assert len(ingestor._turns) == 0


def test_a_point_is_what_its_sender_says_and_what_shoal_adds() -> None:
    """Own fields as they are; key, content's hash and the time; the vector of the bytes."""

    async def scenario() -> None:
        async with rules() as room:
            before = time.time()
            assert await room.ingest("k", b"aa", colour="red") is Status.STORED
            record = room.point("k")
            added = record.payload.pop("ingested_at")
            assert record.payload.pop("clusters") == arrival(added)["clusters"]
            assert isinstance(added, float)
            assert before <= added <= time.time()
            assert record.payload == {
                "colour": "red",
                "key": "k",
                "content_hash": content_hash(b"aa"),
            }
            np.testing.assert_allclose(record.vectors["first"][0], 97 / np.hypot(97, 1), rtol=1e-6)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"a": 1, "b": [1, {"c": 2}]}, Status.UNCHANGED),
        ({"b": [1, {"c": 2}], "a": 1}, Status.UNCHANGED),
        ({"a": 1}, Status.UPDATED),
        ({}, Status.UPDATED),
        ({"a": True, "b": [1, {"c": 2}]}, Status.UPDATED),
        ({"a": 1, "b": [1, {"c": 3}]}, Status.UPDATED),
        ({"a": 1, "b": [1, {"c": 2}], "d": 4}, Status.UPDATED),
    ],
)
def test_the_same_bytes_change_fields_only(said: dict[str, Any], expected: Status) -> None:
    """Fields are the last sender's, true is not 1; time, vector and clusters stay; no model."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1, b=[1, {"c": 2}])
            slots = {"clusters": {"default": {"a": 3, "b": 4}}}
            room.store.set_payload("photos", slots, where=EVERYWHERE)
            before = room.point("k")
            status = await room.ingest("k", b"aa", **said)
            after = room.point("k")
            assert status is expected
            ours = ("key", "content_hash", "ingested_at", "clusters")
            whole = {**said, **{name: before.payload[name] for name in ours}}
            assert json.dumps(after.payload, sort_keys=True) == json.dumps(whole, sort_keys=True)
            np.testing.assert_array_equal(after.vectors["first"], before.vectors["first"])
            assert room.embedded == [b"aa"]

    asyncio.run(scenario())


def test_other_bytes_replace_the_point() -> None:
    """Vector, fields and time are new; the clusters were the old vector's, and go."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1)
            slots = {"clusters": {"default": {"a": 3, "b": 4}}}
            room.store.set_payload("photos", slots, where=EVERYWHERE)
            before = room.point("k")
            assert await room.ingest("k", b"\x01b", b=2) is Status.UPDATED
            after = room.point("k")
            assert set(after.payload) == {"b", "key", "content_hash", "ingested_at", "clusters"}
            assert after.payload["ingested_at"] > before.payload["ingested_at"]
            assert after.payload["clusters"] == arrival(after.payload["ingested_at"])["clusters"]
            assert after.vectors["first"][0] == pytest.approx(0.5**0.5)

    asyncio.run(scenario())


def merging(key: str, data: bytes, fields: dict[str, Any], *nulls: str) -> Item:
    return Item(key, data, content_hash(data), fields, merge=frozenset(nulls))


@pytest.mark.parametrize("data", [b"aa", b"other"])
def test_merged_fields_keep_what_they_do_not_name(data: bytes) -> None:
    """Also uri and source, and also when the bytes are others; a null removes one field."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1, b={"c": 2}, gone=3, uri="u", source="s")
            item = merging("k", data, {"b": {"d": 4}, "new": True, "source": "t"}, "gone", "never")
            outcome = await room.ingestor.ingest(room.photos, item)
            assert outcome.status is Status.UPDATED
            payload = dict(room.point("k").payload)
            ours = {name: payload.pop(name) for name in ("key", "ingested_at", "clusters")}
            assert ours["clusters"] == arrival(ours["ingested_at"])["clusters"]
            assert payload == {
                "a": 1,
                "b": {"d": 4},
                "new": True,
                "uri": "u",
                "source": "t",
                "content_hash": content_hash(data),
            }
            assert room.embedded == ([b"aa"] if data == b"aa" else [b"aa", data])
            same = await room.ingestor.ingest(room.photos, merging("k", data, {"a": 1}))
            assert same.status is Status.UNCHANGED
            assert await room.ingest("k", data, a=1) is Status.UPDATED
            assert "new" not in room.point("k").payload

    asyncio.run(scenario())


def test_merged_fields_of_a_new_point_are_its_fields() -> None:
    """There is nothing to keep."""

    async def scenario() -> None:
        async with rules() as room:
            item = merging("k", b"aa", {"a": 1}, "b")
            assert (await room.ingestor.ingest(room.photos, item)).status is Status.STORED
            assert room.point("k").payload["a"] == 1

    asyncio.run(scenario())


def test_fields_that_are_merged_at_the_same_time_are_all_there() -> None:
    """Each item of a key has its turn, and finds what those before it left."""

    async def scenario() -> None:
        async with rules() as room:
            items = [merging("k", b"aa", {f"f{n}": n}) for n in range(20)]
            await asyncio.gather(*(room.ingestor.ingest(room.photos, item) for item in items))
            payload = room.point("k").payload
            assert {name: payload[name] for name in payload if name.startswith("f")} == {
                f"f{n}": n for n in range(20)
            }

    asyncio.run(scenario())


def test_fields_of_another_process_are_merged_too() -> None:
    """It has replaced the image meanwhile: this one came later, and keeps what is there by now."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1, b=2)
            write = room.points.write

            async def replaced_first(collection: str, change: Any) -> None:
                if isinstance(change, Patch):
                    room.points.write = write  # type: ignore[method-assign]
                    found = room.point("k")
                    payload = {**found.payload, "content_hash": "other", "a": 7, "theirs": 8}
                    room.store.upsert("photos", [Point(found.id, found.vectors, payload)])
                await write(collection, change)

            room.points.write = replaced_first  # type: ignore[method-assign]
            item = merging("k", b"aa", {"b": 3})
            assert (await room.ingestor.ingest(room.photos, item)).status is Status.UPDATED
            payload = room.point("k").payload
            assert {name: payload[name] for name in ("a", "b", "theirs")} == {
                "a": 7,
                "b": 3,
                "theirs": 8,
            }
            assert payload["content_hash"] == content_hash(b"aa")

    asyncio.run(scenario())


def test_merged_fields_are_bounded_together() -> None:
    """Or a payload would grow with each item; the limit itself is allowed, and nothing changes."""

    async def scenario() -> None:
        async with rules() as room:
            half = MAX_PAYLOAD_BYTES // 2
            await room.ingest("k", b"aa", a="x" * half)
            room_left = MAX_PAYLOAD_BYTES - len(json.dumps({"a": "x" * half, "b": ""}))
            for data in (b"aa", b"other"):
                item = merging("k", data, {"b": "y" * (room_left + 1)})
                with pytest.raises(InvalidArgument, match="with the fields that stay, got 65537"):
                    await room.ingestor.ingest(room.photos, item)
            assert "b" not in room.point("k").payload
            item = merging("k", b"aa", {"b": "y" * room_left, "uri": "u" * 1000})
            await room.ingestor.ingest(room.photos, item)
            assert len(room.point("k").payload["b"]) == room_left

    asyncio.run(scenario())


def test_remote_items_merge_as_others_do() -> None:
    """What was said of them goes with the image that is read."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1, b=2)
            room.locations.pages["p"] = b"other"
            item = Remote("k", "p", {"c": 3}, merge=frozenset({"b"}))
            await room.ingestor.ingest(room.photos, item)
            payload = room.point("k").payload
            assert (payload["a"], payload.get("b"), payload["c"]) == (1, None, 3)

    asyncio.run(scenario())


def test_an_image_that_is_none_changes_nothing() -> None:
    """The point of its key stays as it was, and the next with that key has its turn."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1)
            before = room.point("k").payload
            with pytest.raises(ImageCorrupt):
                await room.ingest("k", b"bad", a=2)
            assert room.point("k").payload == before
            assert await room.ingest("k", b"aa", a=1) is Status.UNCHANGED

    asyncio.run(scenario())


def test_a_point_that_was_deleted_meanwhile_is_made_again() -> None:
    """Fields have nowhere to go then: the item came later, and is stored whole."""

    async def scenario() -> None:
        async with rules() as room:
            await room.ingest("k", b"aa", a=1)
            write = room.points.write

            async def deleted_first(collection: str, change: Any) -> None:
                if isinstance(change, Patch):
                    room.store.delete("photos", Filter((IdIn([point_id("k")]),)))
                await write(collection, change)

            room.points.write = deleted_first  # type: ignore[method-assign]
            assert await room.ingest("k", b"aa", a=2) is Status.UPDATED
            assert room.point("k").payload["a"] == 2
            assert room.embedded == [b"aa", b"aa"]

    asyncio.run(scenario())


def test_remote_items_are_read_and_stored_as_others_are() -> None:
    """Under their key, or their content's hash; read within the limit; and known the next time."""

    async def scenario() -> None:
        async with rules() as room:
            room.locations.pages = {"u": b"aa", "v": b"bb"}
            by_hash = f"sha256:{content_hash(b'bb')}"
            for status in (Status.STORED, Status.UNCHANGED):
                named = await room.ingestor.ingest(room.photos, Remote("k", "u", {"a": 1}))
                assert named == Outcome("k", point_id("k"), status)
                nameless = await room.ingestor.ingest(room.photos, Remote("", "v", {"a": 2}))
                assert nameless == Outcome(by_hash, point_id(by_hash), status)
            assert room.point("k").payload["a"] == 1
            assert room.point(by_hash).payload["a"] == 2
            assert room.locations.asked == [("u", 77), ("v", 77)] * 2
            assert await room.ingest(by_hash, b"bb", a=2) is Status.UNCHANGED

    asyncio.run(scenario())


@pytest.mark.parametrize("other", ["remote", "sent"])
def test_remote_items_of_one_key_are_stored_in_the_order_in_which_they_came(other: str) -> None:
    """The later one wins, also when the earlier one's place is slower."""

    async def scenario() -> None:
        async with rules() as room:
            room.locations.pages = {"slow": b"aa", "quick": b"bb"}
            room.locations.may_arrive = {"slow": asyncio.Event()}
            sent = Item("k", b"bb", content_hash(b"bb"), {})
            late = Remote("k", "quick", {}) if other == "remote" else sent
            first, second = (
                asyncio.create_task(room.ingestor.ingest(room.photos, item))
                for item in (Remote("k", "slow", {}), late)
            )
            for _ in range(20):
                await asyncio.sleep(0)
            assert not second.done()
            assert room.locations.asked == [("slow", 77)]
            room.locations.may_arrive["slow"].set()
            assert [(await first).status, (await second).status] == [Status.STORED, Status.UPDATED]
            assert room.point("k").payload["content_hash"] == content_hash(b"bb")

    asyncio.run(scenario())


def test_items_of_other_keys_or_collections_do_not_wait() -> None:
    """Only a point has one writer at a time."""

    async def scenario() -> None:
        async with rules() as room:
            room.locations.pages = {"slow": b"aa"}
            room.locations.may_arrive = {"slow": asyncio.Event()}
            slow = asyncio.create_task(
                room.ingestor.ingest(room.photos, Remote("k", "slow", {"a": 1}))
            )
            await asyncio.sleep(0)
            assert await room.ingest("other", b"bb") is Status.STORED
            elsewhere = await room.ingestor.open("elsewhere")
            item = Item("k", b"cc", content_hash(b"cc"), {})
            assert (await room.ingestor.ingest(elsewhere, item)).status is Status.STORED
            remote = Remote("k", "quick", {})
            room.locations.pages["quick"] = b"dd"
            assert (await room.ingestor.ingest(elsewhere, remote)).status is Status.UPDATED
            assert not slow.done()
            room.locations.may_arrive["slow"].set()
            await slow

    asyncio.run(scenario())


def test_a_large_image_is_hashed_as_a_small_one_is() -> None:
    """In a thread, where it would hold up the loop; its key and number are the same."""

    async def scenario() -> None:
        for size in (2**20, 2**20 + 1):
            data = bytes(size)
            item = await to_item("", data, {"a": 1}, sequence=7)
            digest = content_hash(data)
            assert item == Item(f"sha256:{digest}", data, digest, {"a": 1}, 7)
            assert item.id == point_id(item.key)
        assert (await to_item("k", b"x", {})).key == "k"

    asyncio.run(scenario())


def test_a_new_collection_has_the_encoders_that_are_asked_for() -> None:
    """By default the server's first; later streams use those that it has, and need not say so."""

    async def scenario() -> None:
        async with rules() as room:
            assert room.photos == Destination("photos", ("first",), {"first": "1" * 64})
            both = await room.ingestor.open("both", ["second", "first"])
            assert both == await room.ingestor.open("both")
            assert set(both.encoders) == {"first", "second"}
            specs = room.store.collection("both").vectors
            assert {(s.name, s.dim, s.fingerprint) for s in specs} == {
                ("first", 2, "1" * 64),
                ("second", 2, "2" * 64),
            }
            assert await room.ingestor.open("both", ["first"]) == both
            with pytest.raises(NotFound):
                await room.ingestor.open("new", ["gone"])
            with pytest.raises(NotFound):
                room.store.collection("new")
            with pytest.raises(EncoderMismatch):
                await room.ingestor.open("photos", ["second"])
            with pytest.raises(Unsupported):
                await room.ingestor.open("photos", ["first", "second"])

    asyncio.run(scenario())


@pytest.mark.parametrize("named", [[], ["first"]])
def test_a_collection_from_before_the_matte_keeps_its_rule(named: list[str]) -> None:
    """Whether or not its encoder is named; a new collection gets the new rule."""

    async def scenario() -> None:
        async with rules() as room:
            room.store.create_collection("old", [VectorInfo("first", 2, "a" * 64)])
            old = await room.ingestor.open("old", named)
            assert old == Destination("old", ("first",), {"first": "a" * 64})
            await room.ingestor.ingest(old, await to_item("k", b"x", {}))
            assert room.fleet.fingerprints == {"first": "a" * 64}
            new = await room.ingestor.open("new", named)
            assert new.fingerprints == {"first": "1" * 64}
            await room.ingestor.ingest(new, await to_item("k", b"x", {}))
            assert room.fleet.fingerprints == {"first": "1" * 64}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            VectorInfo("gone", 2, "1" * 64),
            "'gone' (111111111111), this server has first, second",
        ),
        (
            VectorInfo("first", 2, "3" * 64),
            "'first' (333333333333), this server's 'first' is another (111111111111)",
        ),
    ],
)
def test_a_collection_of_another_encoder_is_refused(spec: VectorInfo, message: str) -> None:
    """By the encoder's name or by its fingerprint; vectors are never mixed."""

    async def scenario() -> None:
        async with rules() as room:
            room.store.create_collection("other", [spec])
            with pytest.raises(EncoderMismatch) as caught:
                await room.ingestor.open("other")
            assert caught.value.message == f"collection 'other' was made with encoder {message}"
            assert caught.value.metadata["encoder"] == spec.name

    asyncio.run(scenario())
