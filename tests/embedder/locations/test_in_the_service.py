"""Images given by URI, over gRPC: embedded and ingested as their bytes would be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from places import allowing
from websites import Page, WebServer, web_server

from embedder.config import EmbedderConfig
from embedder.locations.config import LocationsConfig
from shoal.v1 import common_pb2, embedder_pb2


def test_service_embeds_and_ingests_by_uri(serve: Any, images: Any, tmp_path: Path) -> None:
    """A place gives the vector and the point of the bytes; wrong ones cost only themselves."""
    (tmp_path / "china.jpg").write_bytes(images.china)
    (tmp_path / "text.jpg").write_bytes(images.text)
    good, bad = ((tmp_path / name).as_uri() for name in ("china.jpg", "text.jpg"))

    async def scenario() -> None:
        config = EmbedderConfig(locations=LocationsConfig(roots=(tmp_path,)))
        async with serve(config) as served:
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
            assert list(info.uri_schemes) == ["file"]
            sources = [{"uri": good}, {"uri": bad}, {"uri": "file:///etc/passwd"}, {"uri": ""}]
            embedded = await served.stub.Embed(
                embedder_pb2.EmbedRequest(
                    images=[common_pb2.Image(**each) for each in sources]
                    + [common_pb2.Image(data=images.china)]
                )
            )
            found = [result.error.reason for result in embedded.results]
            assert found == ["", "IMAGE_UNSUPPORTED_FORMAT", "UNSUPPORTED", "INVALID_ARGUMENT", ""]
            by_uri, by_bytes = embedded.results[0].vector, embedded.results[4].vector
            assert by_uri.values == by_bytes.values

            requests = [
                embedder_pb2.IngestRequest(
                    sequence=number,
                    collection="photos",
                    image=common_pb2.Image(uri=uri),
                    key=key,
                )
                for number, (uri, key) in enumerate([(good, ""), (good, "k"), (bad, "b")])
            ]
            answers = {a.sequence: a async for a in served.stub.Ingest(iter(requests))}
            assert answers[0].key.startswith("sha256:")
            assert answers[1].key == "k"
            assert answers[2].error.reason == "IMAGE_UNSUPPORTED_FORMAT"
            (record,) = served.store.retrieve("photos", [answers[1].result.id])
            assert record.payload["uri"] == good
            again = [a async for a in served.stub.Ingest(iter(requests[:2]))]
            assert {a.result.status for a in again} == {embedder_pb2.INGEST_STATUS_UNCHANGED}

    asyncio.run(scenario())


def test_service_keeps_the_order_of_two_places_with_one_key(serve: Any, images: Any) -> None:
    """The later one wins, also when the earlier one takes longer to read."""
    pages = {"/slow": Page(images.china, pause_s=0.7), "/fast": Page(images.flower)}

    async def scenario(web: WebServer) -> None:
        locations = allowing(web, allow_http=True)
        async with serve(EmbedderConfig(locations=locations)) as served:
            requests = [
                embedder_pb2.IngestRequest(
                    sequence=number,
                    collection="photos",
                    image=common_pb2.Image(uri=web.url(path)),
                    key="one",
                )
                for number, path in enumerate(("/slow", "/fast"))
            ]
            answers = [a async for a in served.stub.Ingest(iter(requests))]
            assert [a.sequence for a in answers] == [0, 1]
            (record,) = served.store.retrieve("photos", [answers[0].result.id])
            assert record.payload["uri"] == web.url("/fast")

    with web_server(pages) as web:
        asyncio.run(scenario(web))


def test_service_is_not_held_up_by_places_that_take_long(
    serve: Any, images: Any, tmp_path: Path
) -> None:
    """Images that are yet to be read count as slow ones: those that were sent go past them."""

    async def scenario() -> None:
        config = EmbedderConfig(
            max_call_images=1,
            max_stream_images=1,
            locations=LocationsConfig(roots=(tmp_path,)),
        )
        async with serve(config) as served:
            reading, held = [], asyncio.Event()

            @asynccontextmanager
            async def read(uri: str, **_: Any) -> AsyncIterator[bytes]:
                reading.append(uri)
                await held.wait()
                yield images.china

            served.service._running.locations.read = read
            place = common_pb2.Image(uri=(tmp_path / "a.jpg").as_uri())
            call = asyncio.ensure_future(
                served.stub.Embed(embedder_pb2.EmbedRequest(images=[place] * 2))
            )
            request = embedder_pb2.IngestRequest(collection="photos", image=place, key="far")
            stream = asyncio.ensure_future(anext(aiter(served.stub.Ingest(iter([request])))))
            async with asyncio.timeout(20):
                while len(reading) < 3:  # noqa: ASYNC110 - nothing tells when all are read
                    await asyncio.sleep(0.001)
            assert served.service._slow_calls.items == 100
            assert served.service._slow_streams.items == 50
            assert len((await served.embed(images.digits[0])).results) == 1
            (near,) = await served.ingest(served.request(images.digits[0], key="near"))
            assert near.result.id
            held.set()
            assert all(result.HasField("vector") for result in (await call).results)
            assert (await stream).result.id
            assert served.service._slow_calls.items == served.service._slow_streams.items == 0

    asyncio.run(scenario())
