"""Health follows what the services say, as the official client sees it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import prometheus_client
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from shoal.rpc.server import RpcServer, ServerConfig

EMBEDDER = "shoal.v1.EmbedderService"
CLUSTERER = "shoal.v1.ClustererService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def check(stub: Any, service: str = "") -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


def test_health_is_known_when_start_returns(serving: Any, fake_embedder: Any) -> None:
    """Every service was asked before ``start`` returned; nothing is SERVING by default."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            assert await check(health_pb2_grpc.HealthStub(running.channel), EMBEDDER) == SERVING
        async with serving(fake_embedder(is_ready=False)) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            assert await check(stub, EMBEDDER) == NOT_SERVING
            assert await check(stub) == NOT_SERVING

    asyncio.run(scenario())


def test_health_overall_is_the_and_of_the_services(
    serving: Any, fake_embedder: Any, fake_clusterer: Any, until: Any
) -> None:
    """One service that is not ready takes the server's status with it, and gives it back."""

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder, fake_clusterer()) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            assert await check(stub) == SERVING

            async def overall(expected: int) -> bool:
                return await check(stub) == expected

            embedder.is_ready = False
            await until(lambda: overall(NOT_SERVING))
            assert await check(stub, EMBEDDER) == NOT_SERVING
            assert await check(stub, CLUSTERER) == SERVING
            embedder.is_ready = True
            await until(lambda: overall(SERVING))
            everything = await stub.List(health_pb2.HealthListRequest())
            assert {name: answer.status for name, answer in everything.statuses.items()} == {
                "": SERVING,
                EMBEDDER: SERVING,
                CLUSTERER: SERVING,
            }

    asyncio.run(scenario())


def test_health_error_in_ready_is_not_serving_and_logged_once(
    serving: Any, fake_embedder: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing check never kills the poller, and does not fill the log."""

    async def scenario() -> None:
        embedder = fake_embedder(ready_error=RuntimeError("store is away"))
        async with serving(embedder) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            assert await check(stub, EMBEDDER) == NOT_SERVING
            await until(lambda: embedder.ready_calls > 5)
            embedder.ready_error = None

            async def recovered() -> bool:
                return await check(stub, EMBEDDER) == SERVING

            await until(recovered)

    with caplog.at_level(logging.WARNING, logger="shoal.rpc.health"):
        asyncio.run(scenario())
    (record,) = [each for each in caplog.records if each.name == "shoal.rpc.health"]
    assert vars(record)["error"] == "RuntimeError: store is away"
    assert vars(record)["service"] == EMBEDDER


def test_health_ready_that_hangs_is_not_serving(serving: Any, fake_embedder: Any) -> None:
    """A check that does not answer in time counts as no."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", health_timeout_s=0.05)
        async with serving(fake_embedder(ready_hangs=True), server=config) as running:
            assert await check(health_pb2_grpc.HealthStub(running.channel)) == NOT_SERVING

    asyncio.run(scenario())


def test_health_only_true_is_ready(serving: Any, fake_embedder: Any) -> None:
    """A service that answers with something else has not said that it is ready."""

    async def scenario() -> None:
        async with serving(fake_embedder(is_ready="no, not yet")) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            assert await check(stub, EMBEDDER) == NOT_SERVING

    asyncio.run(scenario())


def test_health_of_a_server_without_services_is_serving(serving: Any) -> None:
    """There is nothing that is not ready."""

    async def scenario() -> None:
        async with serving() as running:
            assert await check(health_pb2_grpc.HealthStub(running.channel)) == SERVING

    asyncio.run(scenario())


def test_health_details_are_names_of_their_own(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """A service's details have its status, and are there once it has started."""

    class Detailed(fake_embedder):  # type: ignore[misc]
        details = ("cuda", "tensorrt")

    async def scenario() -> None:
        embedder = Detailed()
        async with serving(embedder) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            for detail in embedder.details:
                assert await check(stub, f"{EMBEDDER}/{detail}") == SERVING
            with pytest.raises(grpc.aio.AioRpcError):
                await check(stub, f"{EMBEDDER}/cpu")
            embedder.is_ready = False

            async def gone() -> bool:
                return await check(stub, f"{EMBEDDER}/cuda") == NOT_SERVING

            await until(gone)

    asyncio.run(scenario())


def test_health_condition_makes_no_service_unready(fake_embedder: Any, until: Any) -> None:
    """It has a name of its own, which follows it; the server and its services stay SERVING."""
    holding = [False]

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", health_interval_s=0.02)
        server = RpcServer(config, [fake_embedder()])
        server.add_condition("shoal.writes", lambda: holding[0])
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert await check(stub, "shoal.writes") == NOT_SERVING
            assert [await check(stub, name) for name in ("", EMBEDDER)] == [SERVING] * 2
            holding[0] = True

            async def holds() -> bool:
                return await check(stub, "shoal.writes") == SERVING

            await until(holds)
        await server.stop()

    asyncio.run(scenario())


def test_health_trouble_is_logged_when_it_changes(
    serving: Any, fake_embedder: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each trouble in a row, and again when one comes back."""

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            for error in (OSError("a"), OSError("b"), None, OSError("b")):
                embedder.ready_error, before = error, embedder.ready_calls
                await until(lambda before=before: embedder.ready_calls > before + 2)
            assert await check(stub, EMBEDDER) == NOT_SERVING

    with caplog.at_level(logging.WARNING, logger="shoal.rpc.health"):
        asyncio.run(scenario())
    told = [vars(each)["error"] for each in caplog.records if each.name == "shoal.rpc.health"]
    assert told == ["OSError: a", "OSError: b", "OSError: b"]


def test_health_is_a_metric(serving: Any, fake_embedder: Any, until: Any) -> None:
    """1 while the service is ready, else 0; 0 again once the server has stopped."""

    def ready() -> float | None:
        return prometheus_client.REGISTRY.get_sample_value("shoal_rpc_ready", {"service": EMBEDDER})

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder):
            assert ready() == 1
            embedder.is_ready = False
            await until(lambda: ready() == 0)
            embedder.is_ready = True
            await until(lambda: ready() == 1)
        assert ready() == 0

    asyncio.run(scenario())


def test_health_watch_tells_each_change_once(serving: Any, fake_embedder: Any, until: Any) -> None:
    """Between two changes, however often the service is asked, nothing is sent."""

    async def scenario() -> None:
        embedder = fake_embedder()
        async with serving(embedder) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=EMBEDDER))
            told = [(await watch.read()).status]
            for ready in (False, True):
                before = embedder.ready_calls
                await until(lambda before=before: embedder.ready_calls > before + 3)
                embedder.is_ready = ready
                told.append((await watch.read()).status)
            assert told == [SERVING, NOT_SERVING, SERVING]
            watch.cancel()

    asyncio.run(scenario())


def test_health_unknown_service_is_not_found(serving: Any, fake_embedder: Any) -> None:
    """As the protocol asks: Check answers NOT_FOUND, Watch SERVICE_UNKNOWN."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(stub, "nobody")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == (f"no service 'nobody': expected one of {EMBEDDER}")
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert (await watch.read()).status == UNKNOWN
            watch.cancel()

    asyncio.run(scenario())


def test_health_watch_sees_the_stop_and_does_not_hold_it_up(
    serving: Any, fake_embedder: Any
) -> None:
    """A watcher gets SERVING, then NOT_SERVING, then the end, long before the grace is over."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", grace_s=100)
        async with serving(fake_embedder(), server=config) as running:
            stub = health_pb2_grpc.HealthStub(running.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=EMBEDDER))
            assert (await watch.read()).status == SERVING
            async with asyncio.timeout(30):
                await running.server.stop()
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF

    asyncio.run(scenario())


def test_health_needs_no_token(serving: Any, fake_embedder: Any) -> None:
    """A kubelet has none."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", tokens=(SecretStr("t"),))
        async with serving(fake_embedder(), server=config) as running:
            assert await check(health_pb2_grpc.HealthStub(running.channel), EMBEDDER) == SERVING

    asyncio.run(scenario())
