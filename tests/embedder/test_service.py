"""The embedder over gRPC: a real server, a real model, real images, the embedded store."""

from __future__ import annotations

import asyncio
import gc
import io
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from prometheus_client import REGISTRY
from quick_disk import quick_directory

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.flow.batching import Lane, Patience
from embedder.images.limits import ImageLimits
from embedder.locations.config import LocationsConfig
from embedder.messages import MOST_ON_WIRE
from embedder.service import EmbedderService, _check_count
from shoal import vectors
from shoal.errors import (
    ArtefactError,
    DeadlineExceeded,
    InvalidArgument,
    OperatorError,
    Overloaded,
    SelfTestFailed,
    ServiceUnavailable,
    ShoalError,
    Unrecoverable,
)
from shoal.rpc.status import from_rpc_error
from shoal.store import EVERYWHERE, StoreConfig, VectorInfo, arrival, open_store, point_id
from shoal.v1 import common_pb2, embedder_pb2

STORED = embedder_pb2.INGEST_STATUS_STORED
UPDATED = embedder_pb2.INGEST_STATUS_UPDATED
UNCHANGED = embedder_pb2.INGEST_STATUS_UNCHANGED

Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def refused(call: Any) -> ShoalError:
    """The error that a call ends with."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as exc:
        return from_rpc_error(exc, "test")
    pytest.fail("expected the call to be refused")


def ours() -> list[str]:
    """The tasks under way for open streams."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if "answer_stream" in name or "Ingest" in name]


def vector(result: embedder_pb2.EmbedResult) -> np.ndarray:
    return vectors.decode(result.vector.values, result.vector.dim)


def test_embed_answers_good_and_bad_images_in_order(serve: Serve, images: Any) -> None:
    """Each bad image costs only itself and says why; the good ones have unit vectors."""

    async def scenario() -> None:
        async with serve() as served:
            response = await served.embed(
                images.china,
                images.truncated,
                images.empty,
                images.flower,
                images.text,
                images.huge,
                images.digits[0],
            )
            alone = await served.embed(images.flower)
        reasons = [result.error.reason for result in response.results]
        assert reasons == [
            "",
            "IMAGE_CORRUPT",
            "IMAGE_EMPTY",
            "",
            "IMAGE_UNSUPPORTED_FORMAT",
            "IMAGE_TOO_MANY_PIXELS",
            "",
        ]
        assert "at most 50000000 pixels" in response.results[5].error.message
        assert not any(result.error.retryable for result in response.results)
        artefact = load_artefact(bundled_artefact())
        for place in (0, 3, 6):
            got = response.results[place].vector
            assert (got.dim, got.fingerprint) == (artefact.dim, artefact.fingerprint)
            assert np.linalg.norm(vector(response.results[place])) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(vector(response.results[3]), vector(alone.results[0]), atol=1e-5)
        assert response.encoder == "efficientnet-lite0"

    asyncio.run(scenario())


def test_bad_images_leave_nothing_for_the_garbage_collector(serve: Serve, images: Any) -> None:
    """What a bad image took is free when it is answered: no circle keeps its error and pixels."""

    def kept() -> int:
        # By type(): isinstance would ask every object of the process for its __class__.
        kinds = (ShoalError, Image.Image)
        return sum(1 for one in gc.get_objects() if issubclass(type(one), kinds))

    async def scenario() -> None:
        async with serve() as served:
            await served.embed(images.truncated, images.text)
            gc.collect()
            before = kept()
            gc.disable()
            try:
                await served.embed(*[images.truncated] * 8, images.text, images.huge)
                requests = [
                    served.request(data, key=str(n))
                    for n, data in enumerate([images.truncated, images.empty, images.text])
                ]
                async for _ in served.stub.Ingest(iter(requests)):
                    pass
                async with asyncio.timeout(20):  # the threads let go a moment later
                    while kept() != before:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0.01)
            finally:
                gc.enable()

    asyncio.run(scenario())


def test_embed_refuses_what_no_image_can_mend(serve: Serve, images: Any) -> None:
    """No image, too many, or an unknown encoder fail the call; each error says what is expected."""

    async def scenario() -> None:
        async with serve() as served:
            empty = await refused(served.embed())
            many = await refused(served.embed(*[images.digits[0]] * 257))
            unknown = await refused(served.embed(images.china, encoder="clip"))
        assert [type(error).__name__ for error in (empty, many, unknown)] == [
            "InvalidArgument",
            "InvalidArgument",
            "NotFound",
        ]
        assert "1 to 256 of them, got 257" in many.message
        assert "efficientnet-lite0" in unknown.message

    asyncio.run(scenario())


def test_embed_refuses_images_that_are_not_bytes_one_by_one(serve: Serve, images: Any) -> None:
    """A location, and an image without a source, are item errors."""

    async def scenario() -> None:
        async with serve() as served:
            response = await served.stub.Embed(
                embedder_pb2.EmbedRequest(
                    images=[
                        common_pb2.Image(uri="file:///etc/passwd"),
                        common_pb2.Image(),
                        common_pb2.Image(data=images.digits[0]),
                    ]
                )
            )
        reasons = [result.error.reason for result in response.results]
        assert reasons == ["UNSUPPORTED", "INVALID_ARGUMENT", ""]

    asyncio.run(scenario())


def test_embed_is_refused_at_once_when_too_much_is_in_process(serve: Serve, images: Any) -> None:
    """Past the limit a call gets RESOURCE_EXHAUSTED with a delay; the service stays ready."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, max_call_images=2, max_call_mib=1)
        async with serve(config) as served:
            before = REGISTRY.get_sample_value("shoal_embedder_calls_refused_total") or 0.0
            with served.service._calls.admit(2, 0):
                error = await refused(served.embed(images.digits[0]))
                assert await served.service.ready()
            with served.service._calls.admit(1, 2**20 - len(images.digits[0]) + 1):
                assert isinstance(await refused(served.embed(images.digits[0])), Overloaded)
            count = REGISTRY.get_sample_value("shoal_embedder_calls_refused_total")
            assert count == before + 2
            assert isinstance(error, Overloaded)
            assert error.retry_after_s > 0
            assert len((await served.embed(images.digits[0])).results) == 1

    asyncio.run(scenario())


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other tasks do."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells when it comes true
            await asyncio.sleep(0.001)


def slow_webp() -> bytes:
    """38 bytes that are 12 megapixels: slow to decode, by their header."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


def test_embed_refuses_slow_images_past_the_calls_allowance(serve: Serve, images: Any) -> None:
    """They are refused one by one, with the numbers; the others of the call are embedded."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(run_size=1, max_call_decode_s=0.2)) as served:
            slow = slow_webp()
            response = await served.embed(slow, images.digits[0], slow, images.digits[1])
            reasons = [result.error.reason for result in response.results]
            assert reasons == ["", "", "OVERLOADED", ""]
            error = response.results[2].error
            assert error.retryable
            assert error.metadata["max_call_decode_ms"] == "200"
            assert "may take 0.2 s of a core to decode" in error.message
            assert (served.service._slow_calls.items, served.service._calls.items) == (0, 0)

    asyncio.run(scenario())


def test_embed_slow_images_hold_up_only_slow_ones(serve: Serve, images: Any) -> None:
    """A quick call is answered while slow images are in process; a slow one is refused then."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, max_call_images=2, max_call_decode_s=0.25)
        async with serve(config) as served:
            slow, held = slow_webp(), asyncio.Event()
            apart = served.service._running.fleet._decoder._apart
            decode = apart.decode

            async def holding(*given: Any) -> Any:
                callers.append(given[1].caller)
                await held.wait()
                return await decode(*given)

            callers: list[str] = []
            apart.decode = holding
            busy = asyncio.create_task(served.embed(*[slow] * 3))
            await until(lambda: len(callers) == 1)
            assert served.service._calls.items == 0
            assert served.service._slow_calls.items == 250
            assert len((await served.embed(*images.digits[:2])).results) == 2
            second = asyncio.create_task(served.embed(slow))
            await until(lambda: len(callers) == 2)
            before = REGISTRY.get_sample_value("shoal_embedder_calls_refused_total") or 0.0
            error = await refused(served.embed(slow, slow))
            assert isinstance(error, Overloaded)
            assert "ms of slow decoding" in error.message
            assert error.retry_after_s == 10
            count = REGISTRY.get_sample_value("shoal_embedder_calls_refused_total")
            assert count == before + 1
            held.set()
            await asyncio.gather(busy, second)
            assert len(set(callers)) == 1
            assert callers[0].startswith("ipv4:")

    asyncio.run(scenario())


def test_ingest_slow_images_hold_up_only_streams_of_slow_ones(serve: Serve, images: Any) -> None:
    """They have room of their own, by their time; a stream without them goes on beside."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, max_stream_images=2, max_call_decode_s=0.1)
        async with serve(config) as served:
            held = asyncio.Event()
            apart = served.service._running.fleet._decoder._apart
            decode = apart.decode
            callers: list[str] = []

            async def holding(*given: Any) -> Any:
                callers.append(given[1].caller)
                await held.wait()
                return await decode(*given)

            apart.decode = holding
            requests = [served.request(slow_webp(), key=f"slow {n}") for n in range(4)]
            stream = asyncio.create_task(served.ingest(*requests))
            await until(lambda: bool(callers))
            quick = [served.request(data, key=f"{n}") for n, data in enumerate(images.digits)]
            answers = await served.ingest(*quick)
            assert {answer.result.status for answer in answers} == {1}
            assert len(callers) == 1
            assert served.service._slow_streams.items > 100
            assert served.service._streams.items == 0
            held.set()
            assert {answer.result.status for answer in await stream} == {1}
            assert served.service._slow_streams.items == 0
            assert set(callers) == {callers[0]}
            assert callers[0].startswith("ipv4:")

    asyncio.run(scenario())


def test_embed_drops_images_whose_caller_has_stopped_waiting(serve: Serve, images: Any) -> None:
    """A caller's deadline goes with its images: once it has passed, none reaches the model."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, inference_workers=1, max_batch=1)
        async with serve(config) as served:
            fleet = served.service._running.fleet
            tower = fleet._encoders[fleet.default].pipeline.encoder.towers[0]
            tower._session = slow = Slow(tower._session)
            request = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=images.digits[0])])
            busy = asyncio.ensure_future(served.stub.Embed(request))
            assert await asyncio.to_thread(slow.reached.wait, 20)
            embed = fleet.embed
            given: list[Patience] = []

            async def watched(data: bytes, names: Any, patience: Patience, **rules: Any) -> Any:
                given.append(patience)
                return await embed(data, names, patience, **rules)

            fleet.embed = watched
            error = await refused(served.stub.Embed(request, timeout=0.2))
            assert isinstance(error, DeadlineExceeded)
            slow.go_on.set()
            assert len((await busy).results) == 1
            assert len((await served.stub.Embed(request, timeout=60)).results) == 1
        now = asyncio.get_running_loop().time()
        assert slow.runs == 2
        assert [patience.lane for patience in given] == [Lane.CALL] * 2
        past, future = (patience.deadline for patience in given)
        assert past is not None
        assert future is not None
        assert past < now < future < now + 61

    asyncio.run(scenario())


def test_embed_takes_1_to_256_images_or_texts() -> None:
    """Both bounds; the error names what there were too few or too many of."""
    for count in (1, 256):
        _check_count("texts", count)
    for count in (0, 257):
        with pytest.raises(InvalidArgument) as caught:
            _check_count("texts", count)
        assert caught.value.message == f"texts: expected 1 to 256 of them, got {count}"
        assert caught.value.metadata["field"] == "texts"


def test_embed_text_answers_good_and_bad_texts_in_order(serve: Serve) -> None:
    """Each bad text costs only itself; texts go through the gate of calls, and are counted."""
    given: list[tuple[str, str, Patience]] = []

    def counts() -> list[float]:
        return [
            REGISTRY.get_sample_value("shoal_embedder_texts_total", {"outcome": outcome}) or 0.0
            for outcome in ("embedded", "invalid_argument", "internal")
        ]

    async def scenario() -> None:
        async with serve(EmbedderConfig(run_size=1, max_call_images=3)) as served:

            async def embed_text(text: str, name: str, patience: Patience) -> np.ndarray:
                given.append((text, name, patience))
                assert served.service._calls.items == 3
                assert served.service._calls.bytes == len("a boat") + len("broken")
                if text == "broken":
                    raise ZeroDivisionError
                return np.array([0.6, 0.8], np.float32)

            tower = SimpleNamespace(name="words", fingerprint="f" * 64)
            fleet = SimpleNamespace(
                with_text=lambda _: tower, as_made=lambda *_: tower, embed_text=embed_text
            )
            real = served.service._running
            served.service._running = replace(real, fleet=fleet)
            before = counts()
            request = embedder_pb2.EmbedTextRequest(texts=["a boat", "", "broken"])
            response = await served.stub.EmbedText(request, timeout=60)
            with served.service._calls.admit(1, 0):
                assert isinstance(await refused(served.stub.EmbedText(request)), Overloaded)
            empty = embedder_pb2.EmbedTextRequest()
            assert isinstance(await refused(served.stub.EmbedText(empty)), InvalidArgument)
            served.service._running = real
            grown = [after - start for after, start in zip(counts(), before, strict=True)]
        assert response.encoder == "words"
        assert vector(response.results[0]).tolist() == pytest.approx([0.6, 0.8])
        assert response.results[0].vector.fingerprint == "f" * 64
        reasons = [result.error.reason for result in response.results]
        assert reasons == ["", "INVALID_ARGUMENT", "INTERNAL"]
        assert response.results[2].error.message == "internal error; the server's log has it"
        assert [call[:2] for call in given] == [("a boat", "words"), ("broken", "words")]
        assert all(patience.lane is Lane.CALL for *_, patience in given)
        assert all(patience.deadline is not None for *_, patience in given)
        assert grown == [1, 1, 1]

    asyncio.run(scenario())


def test_embed_text_is_unsupported(serve: Serve) -> None:
    """An encoder without a text tower refuses texts, and is named."""

    async def scenario() -> None:
        async with serve() as served:
            request = embedder_pb2.EmbedTextRequest(texts=["a boat"])
            error = await refused(served.stub.EmbedText(request))
        assert error.reason == "UNSUPPORTED"
        assert "efficientnet-lite0 has no text tower" in error.message

    asyncio.run(scenario())


def test_get_info_tells_encoder_and_limits(serve: Serve, tmp_path: Path) -> None:
    """The answer is what the configuration and the artefact say."""

    async def scenario() -> None:
        limits = ImageLimits(max_bytes=1000, max_pixels=2000)
        locations = LocationsConfig(roots=(tmp_path,))
        config = EmbedderConfig(run_size=1, limits=limits, locations=locations)
        async with serve(config) as served:
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
        (encoder,) = info.encoders
        assert (encoder.name, encoder.dim, encoder.has_text) == ("efficientnet-lite0", 1280, False)
        assert (encoder.provider, encoder.license) == ("CPUExecutionProvider", "Apache-2.0")
        assert (info.max_image_bytes, info.max_image_pixels) == (1000, 2000)
        assert info.max_batch_images == 256
        assert info.version == version("shoal")
        assert list(info.uri_schemes) == ["file"]
        assert encoder.loaded
        assert not encoder.parts

    asyncio.run(scenario())


def test_ingest_stores_the_vector_that_embed_gives(serve: Serve, images: Any) -> None:
    """What is stored is Embed's vector, with uri, source, key, hash, time and the own fields."""

    async def scenario() -> None:
        async with serve() as served:
            (embedded,) = (await served.embed(images.china)).results
            (answer,) = await served.ingest(
                served.request(
                    images.china,
                    key="china",
                    uri="s3://photos/china.jpg",
                    source="trip",
                    payload={"year": 2007, "tags": ["a", 1.5], "exif": {"iso": 200}, "none": None},
                )
            )
            assert (answer.key, answer.result.status) == ("china", STORED)
            assert answer.result.id == point_id("china")
            (record,) = served.store.retrieve(
                "photos", [answer.result.id], vectors=["efficientnet-lite0"]
            )
            spec = served.store.collection("photos").vector()
        np.testing.assert_allclose(
            record.vectors["efficientnet-lite0"], vector(embedded), atol=1e-6
        )
        assert spec == VectorInfo("efficientnet-lite0", 1280, embedded.vector.fingerprint)
        when = record.payload.pop("ingested_at")
        assert isinstance(when, (int, float))
        assert record.payload.pop("clusters") == arrival(when)["clusters"]
        assert len(record.payload.pop("content_hash")) == 64
        assert record.payload == {
            "key": "china",
            "uri": "s3://photos/china.jpg",
            "source": "trip",
            "year": 2007,
            "tags": ["a", 1.5],
            "exif": {"iso": 200},
        }
        assert isinstance(record.payload["year"], int)

    asyncio.run(scenario())


def test_ingest_answers_each_request_once_among_bad_ones(serve: Serve, images: Any) -> None:
    """The good images are stored, and each bad one in the stream is refused with its reason."""

    async def scenario() -> None:
        async with serve() as served:
            bad = {
                "IMAGE_CORRUPT": images.truncated,
                "IMAGE_EMPTY": images.empty,
                "IMAGE_UNSUPPORTED_FORMAT": images.text,
                "IMAGE_TOO_MANY_PIXELS": images.huge,
            }
            requests = [
                served.request(data, key=f"digit{n}") for n, data in enumerate(images.digits)
            ]
            for place, (reason, data) in enumerate(bad.items()):
                requests.insert(5 * place, served.request(data, key=reason))
            requests.append(served.request(images.china, uri="x" * 8193, key="long uri"))
            requests.append(served.request(images.china, payload={"clusters": 1}, key="reserved"))
            requests.append(served.request(images.china, payload={"a.b": 1}, key="dotted"))
            requests.append(
                served.request(images.china, payload={"big": "x" * 2**16}, key="big payload")
            )
            requests.append(served.request(images.china, payload={"n": float("nan")}, key="nan"))
            requests.append(served.request(images.china, collection="other", key="elsewhere"))
            answers = await served.ingest(*requests)
            count = served.store.count("photos")
        for request, answer in zip(requests, answers, strict=True):
            assert answer.key == request.key
            if request.key.startswith("digit"):
                assert answer.result.status == STORED
            elif request.key in bad:
                assert answer.error.reason == request.key
            else:
                assert answer.error.reason == "INVALID_ARGUMENT"
        assert count == len(images.digits)

    asyncio.run(scenario())


def test_images_larger_than_the_limit_are_refused_by_every_call(serve: Serve, images: Any) -> None:
    """The limit is the configuration's, for bytes that are sent and for those that are read."""

    async def scenario(photo: Path) -> None:
        limit = len(images.digits[0])
        locations = LocationsConfig(roots=(photo.parent,))
        limits = ImageLimits(max_bytes=limit)
        config = EmbedderConfig(run_size=1, limits=limits, locations=locations)
        async with serve(config) as served:
            embedded = await served.stub.Embed(
                embedder_pb2.EmbedRequest(
                    images=[
                        common_pb2.Image(data=images.digits[0]),
                        common_pb2.Image(data=images.digits[0] + b"x"),
                        common_pb2.Image(uri=photo.as_uri()),
                    ]
                )
            )
            remote = embedder_pb2.IngestRequest(
                sequence=100, collection="photos", image=common_pb2.Image(uri=photo.as_uri())
            )
            ingested = await served.ingest(
                served.request(images.digits[0]), served.request(images.digits[0] + b"x"), remote
            )
        expected = ["", "IMAGE_TOO_LARGE", "IMAGE_TOO_LARGE"]
        assert [result.error.reason for result in embedded.results] == expected
        assert [answer.error.reason for answer in ingested] == expected

    with quick_directory() as folder:
        (folder / "photo.jpg").write_bytes(images.china)
        asyncio.run(scenario(folder / "photo.jpg"))


def test_ingest_counts_its_images_at_the_gate_of_streams(serve: Serve, images: Any) -> None:
    """Those under way, with their bytes; what was refused before it got there weighs nothing."""

    async def scenario() -> None:
        async with serve() as served:
            fleet = served.service._running.fleet
            tower = fleet._encoders[fleet.default].pipeline.encoder.towers[0]
            tower._session = slow = Slow(tower._session)
            call = served.stub.Ingest()
            for data in (images.digits[0], images.digits[1]):
                await call.write(served.request(data))
            await call.write(served.request(images.china, payload={"clusters": 1}))
            answers = [await call.read()]
            gate = served.service._streams
            assert (gate.items, gate.bytes) == (2, len(images.digits[0]) + len(images.digits[1]))
            slow.go_on.set()
            await call.write(served.request(images.text))
            await call.done_writing()
            answers += [await call.read() for _ in range(3)]
            assert await call.read() is grpc.aio.EOF
            assert (gate.items, gate.bytes) == (0, 0)
        keys = {answer.error.reason: answer.key[:7] for answer in answers}
        assert keys == {
            "INVALID_ARGUMENT": "",
            "IMAGE_UNSUPPORTED_FORMAT": "sha256:",
            "": "sha256:",
        }

    asyncio.run(scenario())


def test_ingest_again_changes_nothing(serve: Serve, images: Any) -> None:
    """The same bytes and fields again: UNCHANGED, and points, slots and all are as they were."""

    async def scenario() -> None:
        async with serve() as served:

            def requests() -> list[embedder_pb2.IngestRequest]:
                rng = random.Random(1)  # floats of 17 digits: an engine reads some imprecisely
                sent = [
                    served.request(data, uri=f"digit{n}.png", payload={"n": n, "p": rng.random()})
                    for n, data in enumerate(images.digits)
                ]
                return [*sent, served.request(images.china, key="china")]

            def snapshot() -> list[object]:
                ids = [point_id(answer.key) for answer in first]
                records = served.store.retrieve("photos", ids, vectors=["efficientnet-lite0"])
                return [
                    (record.id, record.payload, record.vectors["efficientnet-lite0"].tobytes())
                    for record in records
                ]

            first = await served.ingest(*requests())
            slots = {"clusters": {"default": {"a": 3, "b": 3}}}
            served.store.set_payload("photos", slots, where=EVERYWHERE)
            before = snapshot()
            second = await served.ingest(*requests())
            assert {answer.result.status for answer in first} == {STORED}
            assert {answer.result.status for answer in second} == {UNCHANGED}
            assert [answer.key for answer in first] == [answer.key for answer in second]
            assert all(answer.key.startswith("sha256:") for answer in first[:-1])
            assert snapshot() == before
            assert served.store.count("photos") == len(images.digits) + 1

    asyncio.run(scenario())


def test_ingest_of_other_fields_keeps_vector_and_clusters(serve: Serve, images: Any) -> None:
    """The same bytes with other fields: UPDATED, removed fields go, the rest of the point stays."""

    async def scenario() -> None:
        async with serve() as served:
            names = ["efficientnet-lite0"]
            await served.ingest(
                served.request(images.china, key="china", uri="old", payload={"a": 1, "flag": True})
            )
            slots = {"clusters": {"default": {"a": 3, "b": 4}}}
            served.store.set_payload("photos", slots, where=EVERYWHERE)
            (before,) = served.store.retrieve("photos", [point_id("china")], vectors=names)
            (answer,) = await served.ingest(
                served.request(images.china, key="china", source="s", payload={"flag": 1})
            )
            (after,) = served.store.retrieve("photos", [point_id("china")], vectors=names)
            assert answer.result.status == UPDATED
            kept = {"clusters", "key", "content_hash", "ingested_at"}
            assert after.payload == {
                **{name: before.payload[name] for name in kept},
                "source": "s",
                "flag": 1,
            }
            assert after.payload["flag"] is not True
            assert after.payload["clusters"] == slots["clusters"]
            np.testing.assert_array_equal(after.vectors[names[0]], before.vectors[names[0]])

    asyncio.run(scenario())


def test_ingest_of_other_bytes_replaces_vector_and_drops_clusters(
    serve: Serve, images: Any
) -> None:
    """Other bytes under a known key: UPDATED, with the new vector and no stale clusters."""

    async def scenario() -> None:
        async with serve() as served:
            await served.ingest(served.request(images.china, key="it", payload={"a": 1}))
            slots = {"clusters": {"default": {"a": 3, "b": 4}}}
            served.store.set_payload("photos", slots, where=EVERYWHERE)
            (answer,) = await served.ingest(served.request(images.flower, key="it"))
            (embedded,) = (await served.embed(images.flower)).results
            (record,) = served.store.retrieve(
                "photos", [point_id("it")], vectors=["efficientnet-lite0"]
            )
            assert answer.result.status == UPDATED
            np.testing.assert_allclose(
                record.vectors["efficientnet-lite0"], vector(embedded), atol=1e-6
            )
            assert set(record.payload) == {"key", "content_hash", "ingested_at", "clusters"}
            assert "default" not in record.payload["clusters"]
            assert served.store.count("photos") == 1

    asyncio.run(scenario())


def test_ingest_refuses_a_collection_of_another_encoder(serve: Serve, images: Any) -> None:
    """The stream fails as a whole, and nothing is written."""

    async def scenario() -> None:
        async with serve() as served:
            other = VectorInfo("efficientnet-lite0", 1280, "0" * 64)
            served.store.create_collection("photos", [other])
            error = await refused(served.stub.Ingest(iter([served.request(images.china)])))
            assert error.reason == "ENCODER_MISMATCH"
            assert served.store.count("photos") == 0

    asyncio.run(scenario())


def drawing(at: int) -> bytes:
    """Black on a transparent black ground: all drawings are one black to whoever drops alpha."""
    image = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (20 * at, 10, 20 * at + 60, 60 + 30 * at))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_collection_from_before_the_matte_keeps_its_vectors(serve: Serve) -> None:
    """New collections show the matte; an old one drops alpha, stored, embedded and asked again."""
    name = "efficientnet-lite0"
    old = load_artefact(bundled_artefact()).before_matte.fingerprint
    drawings = [drawing(at) for at in range(3)]

    async def scenario() -> None:
        async with serve() as served:
            served.store.create_collection("old", [VectorInfo(name, 1280, old)])
            stored = {}
            for collection in ("old", "new"):
                answers = await served.ingest(
                    *(served.request(each, collection=collection) for each in drawings)
                )
                ids = [answer.result.id for answer in answers]
                records = served.store.retrieve(collection, ids, vectors=[name])
                stored[collection] = [record.vectors[name] for record in records]
            assert all(one @ stored["old"][0] > 0.9999 for one in stored["old"])
            for at, one in enumerate(stored["new"]):
                assert all(one @ other < 0.99 for other in stored["new"][:at])
            for fingerprint, collection in ((old, "old"), ("", "new")):
                response = await served.embed(*drawings, fingerprint=fingerprint)
                for result, kept in zip(response.results, stored[collection], strict=True):
                    np.testing.assert_allclose(vector(result), kept, atol=1e-5)
                    known = served.store.collection(collection).vectors
                    assert result.vector.fingerprint == known[0].fingerprint
            error = await refused(served.embed(drawings[0], fingerprint="0" * 64))
            assert error.reason == "ENCODER_MISMATCH"
            assert "is another (" in error.message

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", "no spaces", "a--b"])
def test_ingest_refuses_a_bad_collection_name(serve: Serve, images: Any, name: str) -> None:
    """A stream that begins without a usable collection fails as a whole."""

    async def scenario() -> None:
        async with serve() as served:
            request = served.request(images.china, collection=name)
            error = await refused(served.stub.Ingest(iter([request])))
            assert error.reason == "INVALID_ARGUMENT"
            assert served.store.collections() == []

    asyncio.run(scenario())


def test_ingest_cancelled_leaves_nothing_behind(serve: Serve, images: Any) -> None:
    """A caller who goes away frees all it held; what it was told is stored, is stored."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(run_size=1, stream_images=8)) as served:

            async def endless() -> AsyncIterator[embedder_pb2.IngestRequest]:
                while True:
                    for number, data in enumerate(images.digits):
                        yield served.request(data, key=f"{number}-{served.sequence}")

            call = served.stub.Ingest(endless())
            told = [await call.read() for _ in range(5)]
            assert ours()
            call.cancel()
            async with asyncio.timeout(10):
                while served.service._streams.items or ours():  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            assert len(served.service._running.ingestor._turns) == 0
            ids = [answer.result.id for answer in told]
            assert None not in served.store.retrieve("photos", ids)
            assert len((await served.embed(images.digits[0])).results) == 1

    asyncio.run(scenario())


def test_ingest_drains_when_the_service_does(serve: Serve, images: Any) -> None:
    """Draining ends an open stream: what was read is answered, then the caller is sent away."""

    async def scenario() -> None:
        async with serve() as served:
            call = served.stub.Ingest()
            for number in range(4):
                await call.write(served.request(images.digits[number], key=str(number)))
            told = [await call.read()]
            served.service.drain()

            async def rest() -> AsyncIterator[embedder_pb2.IngestResponse]:
                while isinstance(answer := await call.read(), embedder_pb2.IngestResponse):
                    told.append(answer)
                    yield answer

            assert isinstance(await refused(rest()), ServiceUnavailable)
            assert not await served.service.ready()
            ids = [answer.result.id for answer in told]
            assert None not in served.store.retrieve("photos", ids)
            error = await refused(served.embed(images.digits[0]))
            assert isinstance(error, ServiceUnavailable)

    asyncio.run(scenario())


def test_service_counts_images_by_what_became_of_them(serve: Serve, images: Any) -> None:
    """Each image is counted once, under its call and its status or reason."""

    def counts() -> list[float]:
        return [
            REGISTRY.get_sample_value(
                "shoal_embedder_images_total", {"rpc": rpc, "outcome": outcome}
            )
            or 0.0
            for rpc, outcome in (
                ("Embed", "embedded"),
                ("Embed", "image_empty"),
                ("Ingest", "stored"),
                ("Ingest", "unchanged"),
                ("Ingest", "image_empty"),
            )
        ]

    async def scenario() -> None:
        async with serve() as served:
            before = counts()
            await served.embed(images.digits[0], images.digits[1], images.empty)
            for _ in range(2):
                same = served.request(images.empty, collection="")  # the one that it began with
                await served.ingest(served.request(images.digits[0]), same)
            grown = [after - start for after, start in zip(counts(), before, strict=True)]
        assert grown == [2, 1, 1, 1, 2]

    asyncio.run(scenario())


def test_service_is_ready_between_start_and_drain() -> None:
    """Before, it has nothing to tell and refuses; after, it refuses, and stops once and for all."""

    async def scenario() -> None:
        with open_store(StoreConfig(in_memory=True)) as store:
            service = EmbedderService(EmbedderConfig(run_size=1), store)
            assert not await service.ready()
            assert service.details == ()
            with pytest.raises(ServiceUnavailable):
                service._alive()
            await service.start()
            assert await service.ready()
            assert service.details == ("CPUExecutionProvider",)
            service.drain()
            assert not await service.ready()
            with pytest.raises(ServiceUnavailable):
                service._alive()
            await service.stop(5)
            assert service.details == ()
            await service.stop(5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_service_stops_in_time_and_says_what_it_left(
    serve: Serve, images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that hangs does not keep the process; whoever waits for it is told."""

    async def scenario() -> None:
        async with serve() as served:
            fleet = served.service._running.fleet
            tower = fleet._encoders[fleet.default].pipeline.encoder.towers[0]
            tower._session = slow = Slow(tower._session)
            waiting = asyncio.ensure_future(served.embed(images.digits[0]))
            assert await asyncio.to_thread(slow.reached.wait, 20)
            await served.service.stop(0.1)
            assert (await waiting).results[0].error.reason == "SERVICE_UNAVAILABLE"
            slow.go_on.set()

    asyncio.run(scenario())
    (record,) = [record for record in caplog.records if record.name == "embedder.service"]
    assert record.getMessage() == "stopped before all work was done"
    assert record.grace_s == 0.1


def test_service_starts_only_with_a_sound_encoder(serve: Serve, tmp_path: Path) -> None:
    """A damaged encoder stops the server before it serves; nothing hangs."""

    async def scenario() -> None:
        damaged = tmp_path / "encoder"
        damaged.mkdir()
        with pytest.raises(ArtefactError):
            async with serve(EmbedderConfig(encoders=(damaged,))):
                pass

    asyncio.run(scenario())


def test_service_is_not_ready_when_the_store_is_gone(serve: Serve) -> None:
    """Readiness asks the store and the model, not only itself."""

    async def scenario() -> None:
        async with serve() as served:
            assert await served.service.ready()
            served.store.close()
            with pytest.raises(ShoalError):
                await served.service.ready()

    asyncio.run(scenario())


def test_service_is_not_ready_when_the_model_goes_wrong(serve: Serve, images: Any) -> None:
    """Memory of a GPU that rots, a driver that lies: the canary's vectors are not the reference's.

    Health says so to whoever asks by the official client, and again when it is right again. In
    between nothing is embedded, so that nothing wrong is stored.
    """

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, canary_interval_s=0.0)
        async with (
            serve(config) as served,
            grpc.aio.insecure_channel(served.server.address) as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=served.service.name)

            async def says(status: int) -> bool:
                for _ in range(100):
                    if (await stub.Check(request)).status == status:
                        return True
                    await asyncio.sleep(0.1)
                return False

            fleet = served.service._running.fleet
            tower = fleet._encoders[fleet.default].pipeline.encoder.towers[0]
            sound = tower._session
            assert await says(health_pb2.HealthCheckResponse.SERVING)
            tower._session = Rotten(sound)
            assert await says(health_pb2.HealthCheckResponse.NOT_SERVING)
            with pytest.raises(SelfTestFailed):
                await served.service.ready()
            embedding = embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=images.china)])
            (answer,) = (await served.stub.Embed(embedding)).results
            assert (answer.error.reason, answer.error.retryable) == ("SERVICE_UNAVAILABLE", True)
            assert "self-test" in answer.error.message
            tower._session = sound
            assert await says(health_pb2.HealthCheckResponse.SERVING)
            (answer,) = (await served.stub.Embed(embedding)).results
            assert answer.WhichOneof("outcome") == "vector"

    asyncio.run(scenario())


def test_health_names_the_provider_in_use(serve: Serve) -> None:
    """It is a name to probe for: one that is not in use is unknown, for the official client."""

    async def scenario() -> None:
        async with (
            serve() as served,
            grpc.aio.insecure_channel(served.server.address) as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            here = "shoal.v1.EmbedderService/CPUExecutionProvider"
            there = "shoal.v1.EmbedderService/CUDAExecutionProvider"
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=here))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            everything = await stub.List(health_pb2.HealthListRequest())
            assert set(everything.statuses) == {"", "shoal.v1.EmbedderService", here}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Check(health_pb2.HealthCheckRequest(service=there))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            assert here in refused.value.details()

    asyncio.run(scenario())


def test_service_stays_ready_while_the_model_is_slow_but_not_for_ever(serve: Serve) -> None:
    """The canary waits behind a batch of minutes; one that never ends is a model that hangs."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, canary_interval_s=0.0, canary_timeout_s=600.0)
        async with serve(config) as served:
            fleet = served.service._running.fleet
            pipeline = fleet._encoders[fleet.default].pipeline
            tower = pipeline.encoder.towers[0]
            slow = Slow(tower._session)
            tower._session = slow
            assert await served.service.ready()
            await asyncio.to_thread(slow.reached.wait, 20)
            assert await served.service.ready()
            pipeline._canary._clock = lambda: time.monotonic() + 601
            with pytest.raises(OperatorError, match="has not answered its self-test in 600 s"):
                await served.service.ready()
            slow.go_on.set()
            for _ in range(200):
                await asyncio.sleep(0.05)
                with suppress(OperatorError):
                    assert await served.service.ready()
                    return
            pytest.fail("never ready again")

    asyncio.run(scenario())


def test_service_gives_up_a_run_that_hangs_beside_others_that_do_not(
    serve: Serve, images: Any
) -> None:
    """The self-test passes on a free thread; the callers of the hanging one would wait for ever."""

    async def scenario() -> None:
        times = {"canary_interval_s": 0.0, "give_up_s": 0.5}
        async with serve(EmbedderConfig(run_size=1, inference_workers=2, **times)) as served:
            fleet = served.service._running.fleet
            tower = fleet._encoders[fleet.default].pipeline.encoder.towers[0]
            sound = tower._session
            tower._session = slow = Slow(sound)
            image = common_pb2.Image(data=images.china)
            call = served.stub.Embed(embedder_pb2.EmbedRequest(images=[image]))
            waiting = asyncio.ensure_future(call)
            await asyncio.to_thread(slow.reached.wait, 20)
            tower._session = sound
            with pytest.raises(Unrecoverable, match=r"a run of encoder .* has not ended"):
                await ready_for(served.service, 20.0)
            slow.go_on.set()
            assert len((await waiting).results) == 1

    asyncio.run(scenario())


async def ready_for(service: Any, seconds: float) -> None:
    """Ask again and again for so long; raise why it is not ready, if it is not."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        assert await service.ready()
        await asyncio.sleep(0.02)


class Slow:
    """A session that runs nothing until told to."""

    def __init__(self, sound: Any) -> None:
        self._sound = sound
        self.runs = 0
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def run(self, feeds: dict[str, Any], output: str) -> Any:
        self.runs += 1
        self.reached.set()
        self.go_on.wait(60)
        return self._sound.run(feeds, output)


class Rotten:
    """A session whose vectors have their components in other places."""

    def __init__(self, sound: Any) -> None:
        self._sound = sound

    def run(self, feeds: dict[str, Any], output: str) -> Any:
        return np.roll(self._sound.run(feeds, output), 1, axis=1)


def test_ingest_answers_what_came_before_a_request_that_cannot_be_read(
    serve: Serve, images: Any
) -> None:
    """A payload nested past protobuf's depth ends the stream, after the answers before it."""
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}

    async def scenario() -> None:
        async with serve() as served:
            requests = [
                served.request(data, key=str(i)) for i, data in enumerate(images.digits[:3])
            ]
            requests.append(served.request(images.china, key="deep", payload=deep))
            call, got = served.stub.Ingest(iter(requests)), []

            async def answers() -> AsyncIterator[None]:
                async for response in call:
                    got.append(response.sequence)
                    yield

            assert isinstance(await refused(answers()), InvalidArgument)
            assert sorted(got) == [1, 2, 3]

    asyncio.run(scenario())


def test_ingest_refuses_a_huge_payload_and_goes_on(serve: Serve, images: Any) -> None:
    """It costs only its own item, under its key, also as the first; no more than its head is read.

    The head says the collection too.
    """

    async def scenario() -> None:
        async with serve() as served:
            huge = {"a": "x" * MOST_ON_WIRE}
            answers = await served.ingest(
                served.request(images.china, payload=huge, key="first"),
                served.request(images.flower, key="good"),
                served.request(images.china, payload=huge, key="last", collection="other"),
            )
            assert [answer.key for answer in answers] == ["first", "good", "last"]
            assert [answer.error.reason for answer in answers] == [
                "INVALID_ARGUMENT",
                "",
                "INVALID_ARGUMENT",
            ]
            for answer in (answers[0], answers[2]):
                assert answer.error.message.startswith("payload: expected at most")
                assert answer.error.metadata == {"field": "payload"}
            assert served.store.count("photos") == 1

    asyncio.run(scenario())


def test_ingest_stream_that_sends_nothing_ends_with_the_service(serve: Serve) -> None:
    """An idle stream is told to go when the service drains; it does not wait for the grace."""

    async def scenario() -> None:
        async with serve() as served:
            call = served.stub.Ingest()
            await call.wait_for_connection()
            served.service.drain()
            assert isinstance(await refused(call), ServiceUnavailable)

    asyncio.run(scenario())


def test_ingest_that_was_answered_in_full_is_not_failed_by_a_drain(
    serve: Serve, images: Any
) -> None:
    """A sender that had come to its end, and has all its answers, hears of no shutdown."""

    async def scenario() -> None:
        async with serve() as served:
            got = []
            async for response in served.stub.Ingest(iter([served.request(images.china)])):
                served.service.drain()
                got.append(response)
            assert len(got) == 1

    asyncio.run(scenario())
