"""Ingestion without a server: the service's answers, in whatever task asks for them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from encoders import NAME
from PIL import Image
from websites import Page, web_server

from embedder.backfill import ingest_all
from embedder.config import EmbedderConfig
from embedder.locations.config import LocationsConfig
from shoal.errors import InvalidArgument, NotFound, ShoalError, StoreUnavailable
from shoal.store import Store, StoreConfig, open_store
from shoal.v1 import common_pb2
from shoal.v1 import embedder_pb2 as pb

pytestmark = pytest.mark.usefixtures("shared_sessions")

CONFIG = EmbedderConfig(run_size=1)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(StoreConfig(in_memory=True)) as opened:
        yield opened


def request(sequence: int, data: bytes, **fields: Any) -> pb.IngestRequest:
    return pb.IngestRequest(sequence=sequence, image=common_pb2.Image(data=data), **fields)


def ingest(store: Store, requests: Any, **options: Any) -> dict[int, pb.IngestResponse]:
    chosen = {"collection": "photos", "encoders": (), "config": CONFIG, **options}
    answers = ingest_all(requests, store=store, **chosen)
    assert len({answer.sequence for answer in answers}) == len(answers)
    return {answer.sequence: answer for answer in answers}


def test_backfill_answers_as_the_service_does(store: Store, images: Any) -> None:
    """Each request once, under its number: stored, unchanged, or what is wrong with it."""
    sent = [
        request(10, images.china, key="china"),
        request(11, images.digits[0]),
        request(12, images.truncated),
        request(13, images.flower, key="k" * 8193),
    ]
    first = ingest(store, sent)
    assert first.keys() == {10, 11, 12, 13}
    assert first[10].result.status == first[11].result.status == pb.INGEST_STATUS_STORED
    assert first[10].key == "china"
    assert first[11].key.startswith("sha256:")
    assert (first[12].error.reason, first[12].key[:7]) == ("IMAGE_CORRUPT", "sha256:")
    assert (first[13].error.reason, first[13].key) == ("INVALID_ARGUMENT", "k" * 8193)
    again = ingest(store, sent)
    assert again[10].result.status == again[11].result.status == pb.INGEST_STATUS_UNCHANGED
    assert [again[number] for number in (12, 13)] == [first[number] for number in (12, 13)]
    assert store.count("photos") == 2


def test_backfill_without_requests_proves_what_it_needs(store: Store) -> None:
    """The encoders are opened, the collection is made, and what cannot be is refused."""
    assert ingest(store, []) == {}
    assert [spec.name for spec in store.collection("photos").vectors] == [NAME]
    with pytest.raises(InvalidArgument):
        ingest(store, [], collection="no spaces")
    with pytest.raises(NotFound):
        ingest(store, [], encoders=("gone",))


def test_backfill_ends_when_the_store_is_away(
    store: Store, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole task is to be done again: its items are not answered one by one."""

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "upsert", away)
    with pytest.raises(StoreUnavailable):
        ingest(store, [request(n, data) for n, data in enumerate(images.digits)])


def test_backfill_survives_a_place_that_is_away(store: Store, images: Any) -> None:
    """An image that cannot be read now is that item's error, which may be tried again."""
    with web_server({"/busy": Page(status=503)}) as site:
        locations = LocationsConfig(
            hosts=(f"localhost:{site.port}",), allow_http=True, allow_private=True
        )
        config = EmbedderConfig(run_size=1, locations=locations)
        away = pb.IngestRequest(sequence=1, image=common_pb2.Image(uri=site.url("/busy")))
        answers = ingest(store, [away, request(2, images.china)], config=config)
    assert answers[1].error.reason == "LOCATION_UNAVAILABLE"
    assert answers[1].error.retryable
    assert answers[2].result.status == pb.INGEST_STATUS_STORED


def test_backfill_tells_where_a_bug_is_logged(
    store: Store, images: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug costs its item only; there is no server, and the task's log has it."""
    find = store.retrieve

    def broken(name: str, ids: list[str], **options: Any) -> Any:
        if store.count(name):
            raise ZeroDivisionError
        return find(name, ids, **options)

    monkeypatch.setattr(store, "retrieve", broken)
    config = EmbedderConfig(run_size=1, stream_images=1)
    sent = [request(number, data) for number, data in enumerate(images.digits[:2])]
    answers = ingest(store, sent, config=config)
    assert answers[0].result.status == pb.INGEST_STATUS_STORED
    assert answers[1].error.reason == "INTERNAL"
    assert answers[1].error.message == "internal error; the task's log has it"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "an item failed"
    ]


def test_backfill_takes_a_request_when_there_is_room(
    store: Store, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more are under way than the window says: their images may be large."""
    upsert = store.upsert
    stored = 0
    most = 0

    def counting(name: str, points: list[Any]) -> None:
        nonlocal stored
        upsert(name, points)
        stored += len(points)

    def requests() -> Iterator[pb.IngestRequest]:
        nonlocal most
        for number, data in enumerate(images.digits[:8]):
            most = max(most, number + 1 - stored)
            yield request(number, data)

    monkeypatch.setattr(store, "upsert", counting)
    answers = ingest(store, requests(), config=EmbedderConfig(run_size=1, stream_images=3))
    assert len(answers) == 8
    assert 1 < most <= 3


def test_backfill_leaves_nothing_for_the_garbage_collector(store: Store, images: Any) -> None:
    """What a bad image took is free when it is answered: no circle keeps its error and pixels."""

    def kept() -> int:
        kinds = (ShoalError, Image.Image)
        return sum(1 for one in gc.get_objects() if issubclass(type(one), kinds))

    ingest(store, [request(0, images.truncated)])
    gc.collect()
    before = kept()
    gc.disable()
    try:
        bad = [images.truncated, images.huge, images.text, images.truncated]
        ingest(store, [request(number, data) for number, data in enumerate(bad)])
        assert kept() == before
    finally:
        gc.enable()
