"""What callers, metrics and the log see of a call that succeeds or fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import prometheus_client
import pytest

from shoal import errors
from shoal.rpc.status import from_rpc_error, status_code
from shoal.v1 import clusterer_pb2, embedder_pb2

EMBED = "/shoal.v1.EmbedderService/Embed"
INGEST = "/shoal.v1.EmbedderService/Ingest"


def all_errors() -> list[type[errors.ShoalError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, errors.ShoalError)]


def counted(method: str, code: str) -> float:
    labels = {"method": method, "code": code}
    return prometheus_client.REGISTRY.get_sample_value("shoal_rpc_requests_total", labels) or 0.0


def sample(name: str, method: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name, {"method": method}) or 0.0


def test_call_error_of_every_class_reaches_the_caller(serving: Any, fake_embedder: Any) -> None:
    """Code, reason, message, metadata and retry delay survive the wire for the whole tree."""

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder) as running:
            for cls in all_errors():
                embedder.error = cls("größer als\nerlaubt", limit="3")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await running.embedder.Embed(embedder_pb2.EmbedRequest())
                assert caught.value.code() is status_code(embedder.error)
                back = from_rpc_error(caught.value, running.address)
                assert back.reason == cls.reason
                assert back.message == "größer als\nerlaubt"
                assert back.metadata == {"limit": "3"}
            embedder.error = errors.Overloaded("full", retry_after_s=2.5)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(embedder_pb2.EmbedRequest())
            back = from_rpc_error(caught.value, running.address)
            assert isinstance(back, errors.Overloaded)
            assert back.retry_after_s == 2.5

    asyncio.run(scenario())


def test_call_longest_error_reaches_the_caller(serving: Any, fake_embedder: Any) -> None:
    """A message and metadata far past the limit of trailers are cut, not lost."""

    async def scenario() -> None:
        error = errors.InvalidArgument("ü" * 100_000, small="1", large="x" * 100_000)
        async with serving(fake_embedder(error=error)) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(embedder_pb2.EmbedRequest())
            back = from_rpc_error(caught.value, running.address)
            assert type(back) is errors.InvalidArgument
            assert back.message.startswith("üüü")
            assert back.message.endswith("...")
            assert back.metadata == {"small": "1"}

    asyncio.run(scenario())


def test_call_bug_is_internal_and_tells_the_caller_nothing(
    serving: Any, fake_embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets a request id; the traceback is in the log under the same id."""

    async def scenario() -> errors.ShoalError:
        async with serving(fake_embedder(error=KeyError("secret"))) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(
                    embedder_pb2.EmbedRequest(), metadata=[("x-request-id", "call-7")]
                )
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert dict(caught.value.trailing_metadata())["x-request-id"] == "call-7"
            return from_rpc_error(caught.value, running.address)

    error = asyncio.run(scenario())
    assert type(error) is errors.ShoalError
    assert error.message == "internal error; the server's log has it as request call-7"
    (record,) = [each for each in caplog.records if each.getMessage() == "call failed"]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    assert vars(record)["request_id"] == "call-7"
    assert vars(record)["method"] == EMBED


@pytest.mark.parametrize("sent", ["a", "A-z_0.9:x", "x" * 64])
def test_call_request_id_of_the_caller_is_taken_over(
    serving: Any, fake_embedder: Any, sent: str
) -> None:
    """A short plain name comes back in the trailers."""

    async def scenario() -> None:
        async with serving(fake_embedder(error=errors.NotFound("x"))) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(
                    embedder_pb2.EmbedRequest(), metadata=[("x-request-id", sent)]
                )
            assert dict(caught.value.trailing_metadata())["x-request-id"] == sent

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", ["a b", "x" * 65, "new\tline"])
def test_call_request_id_that_would_spoil_the_log_is_replaced(
    serving: Any, fake_embedder: Any, sent: str
) -> None:
    """Only short plain names are taken over."""

    async def scenario() -> None:
        async with serving(fake_embedder(error=errors.NotFound("x"))) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(
                    embedder_pb2.EmbedRequest(), metadata=[("x-request-id", sent)]
                )
            made = dict(caught.value.trailing_metadata())["x-request-id"]
            assert made != sent
            assert len(made) == 32

    # gRPC itself refuses a control character in metadata before the call is sent.
    if sent.isprintable():
        asyncio.run(scenario())
    else:
        with pytest.raises(Exception, match="etadata"):
            asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.NotFound("x"), logging.INFO),
        (errors.Cancelled("x"), logging.INFO),
        (errors.Overloaded("x"), logging.WARNING),
        (errors.StoreLocked("x"), logging.ERROR),
        (errors.DiskFull("x"), logging.WARNING),
        (errors.ShoalError("x"), logging.ERROR),
    ],
)
def test_call_failure_is_logged_once_at_the_level_of_who_must_act(
    serving: Any,
    fake_embedder: Any,
    caplog: pytest.LogCaptureFixture,
    error: errors.ShoalError,
    level: int,
) -> None:
    """Callers' mistakes are information, overload a warning, operators' matters an error."""

    async def scenario() -> None:
        async with serving(fake_embedder(error=error)) as running:
            with pytest.raises(grpc.aio.AioRpcError):
                await running.embedder.Embed(embedder_pb2.EmbedRequest())

    with caplog.at_level(logging.INFO, logger="shoal.rpc.calls"):
        asyncio.run(scenario())
    (record,) = [each for each in caplog.records if each.name == "shoal.rpc.calls"]
    facts = vars(record)
    assert record.levelno == level
    assert facts["code"] == status_code(error).name
    assert facts["reason"] == error.reason
    assert facts["error"] == "x"
    assert len(facts["request_id"]) == 32
    assert facts["method"] == EMBED
    assert bool(record.exc_info) == (level == logging.ERROR)


def test_call_stream_that_fails_keeps_what_was_sent_before(
    serving: Any, fake_clusterer: Any
) -> None:
    """The error comes after the responses before it, with its details."""

    async def scenario() -> None:
        async with serving(fake_clusterer(error=errors.LeaseLost("taken"))) as running:
            call = running.clusterer.WatchRun(clusterer_pb2.WatchRunRequest())
            assert (await call.read()).id == "1"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert type(from_rpc_error(caught.value, "here")) is errors.LeaseLost
        async with serving(fake_clusterer()) as running:
            call = running.clusterer.WatchRun(clusterer_pb2.WatchRunRequest())
            assert [run.id async for run in call] == ["1", "2", "3"]

    asyncio.run(scenario())


def test_call_bidirectional_stream_that_fails_ends_with_the_error(
    serving: Any, fake_embedder: Any
) -> None:
    """A handler that raises between two items closes its generator and reports the error."""

    async def scenario() -> None:
        embedder = fake_embedder(error=errors.StoreUnavailable("away"))
        async with serving(embedder) as running:
            call = running.embedder.Ingest()
            await call.write(embedder_pb2.IngestRequest(sequence=1))
            assert (await call.read()).sequence == 1
            await call.write(embedder_pb2.IngestRequest(sequence=2, key="bad"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert type(from_rpc_error(caught.value, "here")) is errors.StoreUnavailable
            assert embedder.ended == ["ingest"]

    asyncio.run(scenario())


def test_call_stream_cancelled_by_the_caller_closes_the_handler(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """A caller that goes away leaves no generator behind."""

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder) as running:
            call = running.embedder.Ingest()
            await call.write(embedder_pb2.IngestRequest(sequence=1))
            await call.read()
            assert sample("shoal_rpc_in_flight", INGEST) == 1
            call.cancel()
            await until(lambda: embedder.ended == ["ingest"])
            await until(lambda: sample("shoal_rpc_in_flight", INGEST) == 0)

    asyncio.run(scenario())


def test_call_cancelled_by_the_caller_cancels_the_handler(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """The cancellation passes through untranslated and is counted as CANCELLED."""

    async def scenario() -> None:
        before = counted(EMBED, "CANCELLED")
        embedder = fake_embedder(release=asyncio.Event())
        async with serving(embedder) as running:
            call = running.embedder.Embed(embedder_pb2.EmbedRequest())
            waiting = asyncio.ensure_future(embedder.entered.wait())
            await asyncio.wait(
                {waiting, asyncio.ensure_future(call.code())},
                timeout=20,
                return_when=asyncio.FIRST_COMPLETED,
            )
            call.cancel()
            await until(lambda: counted(EMBED, "CANCELLED") == before + 1)
            assert embedder.ended == ["cancelled"]

    asyncio.run(scenario())


def test_call_metrics_count_each_call_once_by_its_code(serving: Any, fake_embedder: Any) -> None:
    """One count and one duration per call, under the code that the caller saw."""

    async def scenario() -> None:
        embedder = fake_embedder()
        names = ("OK", "NOT_FOUND", "INTERNAL")
        before = {code: counted(EMBED, code) for code in names}
        timed = sample("shoal_rpc_request_seconds_count", EMBED)
        async with serving(embedder) as running:
            for error in (None, errors.NotFound("x"), None, ValueError("bug")):
                embedder.error = error
                try:
                    await running.embedder.Embed(embedder_pb2.EmbedRequest())
                except grpc.aio.AioRpcError:
                    assert error is not None
        added = {code: counted(EMBED, code) - before[code] for code in names}
        assert added == {"OK": 2, "NOT_FOUND": 1, "INTERNAL": 1}
        assert sample("shoal_rpc_request_seconds_count", EMBED) == timed + 4
        assert sample("shoal_rpc_in_flight", EMBED) == 0

    asyncio.run(scenario())


def test_call_metrics_count_the_code_that_a_handler_sets_itself(
    serving: Any, fake_embedder: Any
) -> None:
    """A handler may abort, or set a code and answer: the count says what the caller saw."""

    class Embedder(fake_embedder):  # type: ignore[misc]
        async def Embed(self, request: Any, context: Any) -> Any:
            if request.encoder == "abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "lost")
            context.set_code(grpc.StatusCode.OUT_OF_RANGE)
            return embedder_pb2.EmbedResponse()

    async def scenario() -> None:
        for sent, code in (("abort", "DATA_LOSS"), ("set", "OUT_OF_RANGE")):
            before = counted(EMBED, code)
            async with serving(Embedder()) as running:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await running.embedder.Embed(embedder_pb2.EmbedRequest(encoder=sent))
            assert caught.value.code().name == code
            assert counted(EMBED, code) == before + 1

    asyncio.run(scenario())


def test_call_metrics_time_a_stream_for_its_whole_life(serving: Any, fake_embedder: Any) -> None:
    """One count and one duration for a stream, however many messages it has."""

    async def scenario() -> None:
        before = counted(INGEST, "OK"), sample("shoal_rpc_request_seconds_count", INGEST)
        async with serving(fake_embedder()) as running:
            requests = [embedder_pb2.IngestRequest(sequence=n) for n in range(5)]
            call = running.embedder.Ingest(iter(requests))
            assert [each.sequence async for each in call] == list(range(5))
        after = counted(INGEST, "OK"), sample("shoal_rpc_request_seconds_count", INGEST)
        assert after == (before[0] + 1, before[1] + 1)

    asyncio.run(scenario())


def test_call_to_a_method_that_is_not_implemented_names_it(
    serving: Any, fake_embedder: Any
) -> None:
    """The caller learns which one, and it counts under its code."""

    async def scenario() -> None:
        method = "/shoal.v1.EmbedderService/GetInfo"
        before = counted(method, "UNIMPLEMENTED")
        async with serving(fake_embedder()) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.GetInfo(embedder_pb2.GetInfoRequest())
        assert caught.value.details() == f"this server does not implement {method}"
        assert counted(method, "UNIMPLEMENTED") == before + 1

    asyncio.run(scenario())
