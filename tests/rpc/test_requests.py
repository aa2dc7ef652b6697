"""What a server reads of a request before anything else does, over real connections."""

from __future__ import annotations

import asyncio
import gc
import gzip
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from shoal.errors import InvalidArgument, NotFound
from shoal.rpc import requests
from shoal.rpc.bounds import bounds_of
from shoal.rpc.requests import LOOKED_AT_BYTES, Excess, RequestReader, encoded
from shoal.rpc.server import ServerConfig
from shoal.rpc.status import from_rpc_error
from shoal.rpc.wire import Malformed, TooMuch
from shoal.v1 import clusterer_pb2, common_pb2, embedder_pb2, search_pb2

MIB = 2**20
EMBED = "/shoal.v1.EmbedderService/Embed"
INGEST = "/shoal.v1.EmbedderService/Ingest"
METHODS = [
    method
    for module in (embedder_pb2, search_pb2, clusterer_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
FLOODS = {
    "images": b"\x0a\x00" * (16 * MIB),
    "text": b"\x12\x00" * (16 * MIB),
    "unknown": b"\xfa\x7f\x00" * (8 * MIB),
    "large text": embedder_pb2.EmbedRequest(encoder="x" * (16 * MIB)).SerializeToString(),
}
LARGE = embedder_pb2.EmbedRequest(images=[{"data": bytes(8 * MIB)}]).SerializeToString()


def reader(method: str = EMBED, *, max_bytes: int = 64 * MIB) -> RequestReader[Any]:
    parse = {
        EMBED: embedder_pb2.EmbedRequest.FromString,
        INGEST: embedder_pb2.IngestRequest.FromString,
    }[method]
    return RequestReader(method, parse, max_bytes=max_bytes)


async def refusal(call: Any) -> InvalidArgument:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value, "here")
    assert type(error) is InvalidArgument
    return error


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_requests_are_read_whatever_their_compression(
    serving: Any, fake_embedder: Any, compression: grpc.Compression
) -> None:
    """gzip, deflate and none, in calls and in streams: the handler gets the same messages."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            request = embedder_pb2.EmbedRequest(
                encoder="e" * 1000, images=[common_pb2.Image(data=bytes(2 * MIB))]
            )
            answer = await running.embedder.Embed(request, compression=compression)
            assert answer.encoder == request.encoder
            sent = [embedder_pb2.IngestRequest(sequence=n, key="k" * n) for n in (0, 7, 999)]
            stream = running.embedder.Ingest(iter(sent), compression=compression)
            assert [response.sequence async for response in stream] == [0, 7, 999]

    asyncio.run(scenario())


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_requests_past_a_bound_never_reach_the_handler(
    serving: Any, fake_embedder: Any, flood: str, compression: grpc.Compression
) -> None:
    """The caller is told which field has too much; the next call is answered.

    A compressed one is refused so although it would become larger than a message may be: gRPC does
    not decompress it.
    """

    async def scenario() -> None:
        embedder = fake_embedder()
        most = 64 * MIB if compression == grpc.Compression.NoCompression else MIB
        config = ServerConfig(address="127.0.0.1:0", max_message_bytes=most)
        async with serving(embedder, server=config) as running:
            call = running.channel.unary_unary(EMBED)
            error = await refusal(call(FLOODS[flood], compression=compression))
            assert "expected at most" in error.message
            assert not embedder.entered.is_set()
            await running.embedder.Embed(embedder_pb2.EmbedRequest())

    asyncio.run(scenario())


@pytest.mark.parametrize("flood", FLOODS)
def test_requests_past_a_bound_cost_little_memory(flood: str) -> None:
    """Compressed floods of 16 to 32 MiB are refused with less than 3 MiB of objects."""
    for data in (FLOODS[flood], gzip.compress(FLOODS[flood], 1)):
        tracemalloc.start()
        with pytest.raises(TooMuch):
            reader().read(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * MIB


@pytest.mark.parametrize("error", [None, NotFound("no")])
def test_requests_that_failed_are_not_kept(
    serving: Any, fake_embedder: Any, error: Exception | None
) -> None:
    """Whoever refuses one, it is gone with its call, before the garbage collector comes by."""

    async def scenario() -> None:
        async with serving(fake_embedder(error=error)) as running:
            call = running.channel.unary_unary(EMBED)
            data = FLOODS["images"] if error is None else LARGE
            await ended(call(data))
            gc.collect()
            tracemalloc.start()
            for _ in range(3):
                await ended(call(data))
            until = time.monotonic() + 10
            # The last call's handler may still be ending, and nothing tells when it has.
            while time.monotonic() < until:
                if tracemalloc.get_traced_memory()[0] < 2 * MIB:
                    break
                await asyncio.sleep(0.01)
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert kept < 2 * MIB

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


async def ended(call: Any) -> None:
    """Waits for a call that fails; not with ``pytest.raises``, which keeps the error."""
    assert await call.code() is not grpc.StatusCode.OK


def test_requests_that_are_no_messages_are_the_callers_mistake(
    serving: Any, fake_embedder: Any
) -> None:
    """Garbage, also compressed garbage, is InvalidArgument, with what is wrong."""

    async def scenario() -> None:
        squeezed = gzip.compress(bytes(1000))
        async with serving(fake_embedder()) as running:
            call = running.channel.unary_unary(EMBED)
            for data, says in (
                (b"\xff\xff", "the request cannot be read"),
                (b"\xff" * 2 * LOOKED_AT_BYTES, "the request cannot be read"),
                (b"\x1f\x8b garbage", "the request cannot be decompressed"),
                (squeezed[:-9], "the request cannot be decompressed: it is cut off"),
                (squeezed + b"x", "the request cannot be decompressed: something follows its end"),
            ):
                assert says in (await refusal(call(data))).message
            health = running.channel.unary_unary("/grpc.health.v1.Health/Check")
            error = await refusal(health(b"\x0a\x80\x80\x08" + bytes(2**17)))
            assert error.message == "request: expected at most 65536 bytes, got 131076"

    asyncio.run(scenario())


def test_requests_of_a_stream_past_a_bound_are_refused_one_by_one() -> None:
    """An item that is too large is an Excess with its number and key; others are read as ever."""
    good = embedder_pb2.IngestRequest(sequence=1, key="good", collection="c")
    bad = embedder_pb2.IngestRequest(sequence=2, key="bad", collection="c")
    bad.payload.update({"a": "x" * 320 * 2**10})
    bad.image.data = bytes(10 * LOOKED_AT_BYTES)
    ingest = reader(INGEST)
    assert ingest.read_one(good.SerializeToString()) == good
    excess = ingest.read_one(bad.SerializeToString())
    assert isinstance(excess, Excess)
    assert excess.error.message.startswith("payload: expected at most 327680 bytes on the wire")
    assert (excess.head.sequence, excess.head.key) == (2, "bad")
    assert not excess.head.HasField("image")
    assert not excess.head.HasField("payload")
    for flood in ("text", "unknown"):  # no number and no key can be told
        with pytest.raises(TooMuch):
            ingest.read_one(FLOODS[flood])
    with pytest.raises(TooMuch):
        reader().read_one(FLOODS["images"])


def test_requests_of_a_stream_are_read_one_at_a_time(serving: Any, fake_embedder: Any) -> None:
    """The first that is no message ends the stream, after those before it were answered."""

    async def scenario() -> None:
        async def sent() -> AsyncIterator[bytes]:
            yield embedder_pb2.IngestRequest(sequence=1).SerializeToString()
            await asyncio.sleep(0)
            yield b"\xff\xff"

        async with serving(fake_embedder()) as running:
            stream = running.channel.stream_stream(INGEST)(sent())
            assert embedder_pb2.IngestResponse.FromString(await stream.read()).sequence == 1
            assert "cannot be read" in (await refusal(stream.read())).message

    asyncio.run(scenario())


def test_requests_small_enough_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short request costs no walk; one byte more does, also while it is decompressed."""
    looked: list[tuple[int, bool]] = []
    embed = reader()

    def check(data: bytes, *, whole: bool) -> dict[str, int]:
        looked.append((len(data), whole))
        return {}

    monkeypatch.setattr(embed._scanner, "check", check)
    monkeypatch.setattr(requests, "_FIRST_BYTES", LOOKED_AT_BYTES + 2)
    for size in (LOOKED_AT_BYTES, LOOKED_AT_BYTES + 1):
        data = embedder_pb2.EmbedRequest(encoder="x" * (size - 3)).SerializeToString()
        assert len(data) == size
        embed.read(data)
    assert looked == [(LOOKED_AT_BYTES + 1, True)]
    looked.clear()
    data = embedder_pb2.EmbedRequest(encoder="x" * 20_000).SerializeToString()
    embed.read(zlib.compress(data))
    first = LOOKED_AT_BYTES + 2
    assert looked == [
        (first, False),
        (2 * first, False),
        (4 * first, False),
        (len(data), True),
    ]


def test_requests_of_a_method_have_at_most_its_bytes() -> None:
    """The table's number where it is smaller than the server's limit of a message; exactly."""
    assert bounds_of("shoal.v1.EmbedderService.Embed", max_bytes=10 * MIB).size == 10 * MIB
    assert bounds_of("shoal.v1.EmbedderService.GetInfo", max_bytes=10 * MIB).size == 64 * 2**10
    assert bounds_of("shoal.v1.EmbedderService.EmbedText", max_bytes=64 * MIB).size == 12 * MIB
    small = reader(max_bytes=1000)
    for squeeze in (bytes, gzip.compress):
        whole = embedder_pb2.EmbedRequest(encoder="x" * 997).SerializeToString()
        assert len(whole) == 1000
        small.read(squeeze(whole))
        more = embedder_pb2.EmbedRequest(encoder="x" * 998).SerializeToString()
        with pytest.raises(TooMuch, match="request: expected at most 1000 bytes, got 1001"):
            small.read(squeeze(more))


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("Embed", embedder_pb2.EmbedRequest(images=[{"data": b"x"}] * 257)),
        ("EmbedText", embedder_pb2.EmbedTextRequest(texts=["é" * 20_000] * 257)),
        (
            "Search",
            search_pb2.SearchRequest(
                filter={
                    "must": [{"field": "camera", "any_of": list(range(1001))}] * 7,
                    "should": [{"field": "camera", "any_of": [1, "2"]}] * 93,
                }
            ),
        ),
        ("ListClusters", search_pb2.ListClustersRequest(page_token="x" * 3_000_000)),
        (
            "CreateRun",
            clusterer_pb2.CreateRunRequest(
                naming={"vocabulary": [{"text": "word", "vector": bytes(2048)}] * 10_001}
            ),
        ),
    ],
)
def test_requests_a_little_past_the_contract_are_left_to_the_service(
    method: str, most: Any
) -> None:
    """It says how many there are; the largest requests of the contract pass all the more."""
    (found,) = (each for each in METHODS if each.name == method)
    name = f"/{found.containing_service.full_name}/{method}"
    data = most.SerializeToString()
    assert RequestReader(name, type(most).FromString, max_bytes=64 * MIB).read(data) == most


def test_requests_of_ours_never_begin_like_compressed_ones() -> None:
    """No request has a field 15, whose tag is zlib's first byte; gzip's is no field at all."""
    for method in METHODS:
        assert 15 not in method.input_type.fields_by_number
    for begin in (b"\x1f\x8b", b"\x1f\x8b\x08\x00"):
        with pytest.raises(Malformed):
            reader().read(begin)


def test_request_of_a_method_without_description_is_parsed() -> None:
    """A service that protobuf does not know is bounded by its bytes only."""
    other = RequestReader("/other.Service/Call", bytes, max_bytes=64 * MIB)
    assert other.read(b"\x0a\x00" * 1000) == b"\x0a\x00" * 1000
    with pytest.raises(TooMuch):
        other.read(bytes(64 * 2**10 + 1))


def test_answer_too_large_for_a_message_says_what_to_ask_for(
    serving: Any, fake_embedder: Any
) -> None:
    """Not gRPC's own words, which leave the caller alone; in calls and in streams."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", max_message_bytes=10_000)

        class Echo(fake_embedder):  # type: ignore[misc,valid-type]
            async def Embed(self, request: Any, context: Any) -> Any:
                return embedder_pb2.EmbedResponse(encoder="x" * int(request.encoder))

            async def Ingest(self, requests: Any, context: Any) -> AsyncIterator[Any]:
                async for request in requests:
                    yield embedder_pb2.IngestResponse(key="x" * request.sequence)

        async with serving(Echo(), server=config) as running:
            embed, ingest = running.embedder.Embed, running.embedder.Ingest
            await embed(embedder_pb2.EmbedRequest(encoder="9997"))
            error = await refusal(embed(embedder_pb2.EmbedRequest(encoder="9998")))
            assert "the answer has 10001 bytes, expected at most 10000" in error.message
            assert "a smaller limit or page_size" in error.message
            assert error.metadata == {"bytes": "10001", "max_bytes": "10000"}
            stream = ingest(iter([embedder_pb2.IngestRequest(sequence=9998)]))
            assert "the answer has 10001 bytes" in (await refusal(stream.read())).message

    asyncio.run(scenario())
    assert encoded(b"ab", None, max_bytes=2) == b"ab"
