"""The server's life: binding, starting, draining, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any, ClassVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from shoal.errors import ConfigError, ServiceUnavailable, Unauthenticated, Unrecoverable
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.rpc.server import RpcServer, ServerConfig, run_until
from shoal.rpc.signals import catch_signals
from shoal.rpc.status import from_rpc_error
from shoal.v1 import embedder_pb2, embedder_pb2_grpc

LOCAL = ServerConfig(address="127.0.0.1:0", grace_s=5, health_interval_s=0.02)


def test_server_bind_takes_the_port_before_the_services_are_known(fake_embedder: Any) -> None:
    """``bind`` tells the port, ``add`` brings a service that needed it, ``start`` keeps it."""

    async def scenario() -> None:
        server = RpcServer(LOCAL, [])
        port = await server.bind()
        assert await server.bind() == port
        server.add(fake_embedder())
        try:
            assert await server.start() == port
            assert server.address == f"127.0.0.1:{port}"
            with open_channel(ChannelConfig(address=f"127.0.0.1:{port}")) as channel:
                stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
                request = embedder_pb2.EmbedRequest(encoder="e")
                answer = await asyncio.to_thread(stub.Embed, request)
            assert answer.encoder == "e"
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_server_refuses_calls_to_a_service_that_is_starting(fake_embedder: Any) -> None:
    """While a model loads, calls fail at once with UNAVAILABLE; then they work."""

    async def scenario() -> None:
        slow = fake_embedder(starting=asyncio.Event())
        server = RpcServer(LOCAL, [slow])
        port = await server.bind()
        start = asyncio.create_task(server.start())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                await stub.Embed(embedder_pb2.EmbedRequest(), wait_for_ready=True)
            error = from_rpc_error(caught.value, "here")
            assert type(error) is ServiceUnavailable
            assert error.message == "shoal.v1.EmbedderService is still starting; try again"
            slow.starting.set()
            await start
            assert (await stub.Embed(embedder_pb2.EmbedRequest(encoder="e"))).encoder == "e"
        await server.stop()

    asyncio.run(scenario())


def test_server_that_is_starting_tells_strangers_nothing(fake_embedder: Any) -> None:
    """Without a token nobody learns what is starting; health answers all the same."""

    async def scenario() -> None:
        slow = fake_embedder(starting=asyncio.Event())
        config = ServerConfig(address="127.0.0.1:0", tokens=(SecretStr("t"),), grace_s=5)
        server = RpcServer(config, [slow])
        port = await server.bind()
        start = asyncio.create_task(server.start())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                await stub.Embed(embedder_pb2.EmbedRequest(), wait_for_ready=True)
            assert type(from_rpc_error(caught.value, "here")) is Unauthenticated
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            slow.starting.set()
            await start
        await server.stop()

    asyncio.run(scenario())


def test_server_stop_drains_each_service_while_its_calls_go_on(
    serving: Any, fake_embedder: Any
) -> None:
    """A service hears of the stop before its calls have ended: it may end long ones itself."""

    class Draining(fake_embedder):  # type: ignore[misc]
        def drain(self) -> None:
            self.release.set()

    async def scenario() -> None:
        embedder = Draining(release=asyncio.Event())
        config = ServerConfig(address="127.0.0.1:0", grace_s=100)
        async with serving(embedder, server=config) as running, asyncio.timeout(30):
            request = embedder_pb2.EmbedRequest(encoder="e")
            call = asyncio.ensure_future(running.embedder.Embed(request))
            await embedder.entered.wait()
            await running.server.stop()
            assert (await call).encoder == "e"

    asyncio.run(scenario())


def test_server_port_may_be_shared_if_it_was_asked_for(fake_embedder: Any) -> None:
    """Several processes of one service listen on one port together."""

    async def scenario() -> None:
        first = RpcServer(ServerConfig(address="127.0.0.1:0", share_port=True), [fake_embedder()])
        port = await first.start()
        config = ServerConfig(address=f"127.0.0.1:{port}", share_port=True)
        second = RpcServer(config, [fake_embedder()])
        try:
            assert await second.start() == port
        finally:
            await second.stop()
            await first.stop()

    asyncio.run(scenario())


def test_server_start_that_fails_stops_what_was_started(
    fake_embedder: Any, fake_clusterer: Any
) -> None:
    """A service that cannot start takes the server down in order, and its error comes through."""

    async def scenario() -> None:
        events: list[str] = []
        clusterer = fake_clusterer(events=events)
        embedder = fake_embedder(events=events, start_error=ConfigError("no model"))
        server = RpcServer(LOCAL, [clusterer, embedder])
        port = await server.bind()
        with pytest.raises(ConfigError, match="no model"):
            await server.start()
        assert events == [
            "start shoal.v1.ClustererService",
            "stop shoal.v1.EmbedderService",
            "stop shoal.v1.ClustererService",
        ]
        with socket.create_server(("127.0.0.1", port)):
            pass  # the port is free again

    asyncio.run(scenario())


def test_server_stop_drains_the_call_in_flight(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """A call that began before the stop is answered; the service stops only after that."""

    async def scenario() -> None:
        embedder = fake_embedder(release=asyncio.Event())
        async with serving(embedder) as running:
            call = asyncio.ensure_future(
                running.embedder.Embed(embedder_pb2.EmbedRequest(encoder="e"))
            )
            await embedder.entered.wait()
            stop = asyncio.create_task(running.server.stop())
            await until(lambda: refuses_new_connections(running.port))
            assert not stop.done()
            assert embedder.events == ["start shoal.v1.EmbedderService"]
            embedder.release.set()
            assert (await call).encoder == "e"
            await stop
            assert embedder.events[-1] == "stop shoal.v1.EmbedderService"
            await running.server.wait()

    asyncio.run(scenario())


def refuses_new_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_server_stop_cancels_calls_that_outlast_the_grace(serving: Any, fake_embedder: Any) -> None:
    """A call that never ends cannot hold the stop up; its handler sees the cancellation."""

    async def scenario() -> None:
        embedder = fake_embedder(release=asyncio.Event())
        config = ServerConfig(address="127.0.0.1:0", grace_s=0.05)
        async with serving(embedder, server=config) as running:
            call = asyncio.ensure_future(running.embedder.Embed(embedder_pb2.EmbedRequest()))
            await embedder.entered.wait()
            await running.server.stop()
            with pytest.raises(grpc.RpcError):
                await call
            assert embedder.ended == ["cancelled"]
            assert embedder.stop_grace_s == pytest.approx(0, abs=0.05)

    asyncio.run(scenario())


def test_server_stop_reaches_every_service_though_one_fails(
    fake_embedder: Any, fake_clusterer: Any
) -> None:
    """Services stop in the reverse order of their start; a failure is raised at the end."""

    async def scenario() -> None:
        events: list[str] = []
        clusterer = fake_clusterer(events=events)
        embedder = fake_embedder(events=events, stop_error=RuntimeError("disk"))
        server = RpcServer(LOCAL, [clusterer, embedder])
        await server.start()
        with pytest.raises(RuntimeError, match="disk"):
            await server.stop()
        assert events[2:] == ["stop shoal.v1.EmbedderService", "stop shoal.v1.ClustererService"]

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_stops_on_a_signal_and_restores_the_handler(
    fake_embedder: Any, number: signal.Signals
) -> None:
    """The first signal stops gracefully; a second one finds the handler that was there before."""

    async def scenario() -> None:
        before = signal.getsignal(number)
        embedder = fake_embedder()
        server = RpcServer(LOCAL, [embedder])
        with catch_signals() as signalled:
            os.kill(os.getpid(), number)  # as early as can be: before the start
            await server.start()
            await run_until(server, signalled)
            assert signal.getsignal(number) is before
        assert embedder.events[-1] == "stop shoal.v1.EmbedderService"
        assert signal.getsignal(number) is before

    asyncio.run(scenario())


def test_server_run_until_ends_with_the_server(fake_embedder: Any) -> None:
    """A server that is stopped by other means ends the wait too."""

    async def scenario() -> None:
        server = RpcServer(LOCAL, [fake_embedder()])
        await server.start()
        running = asyncio.create_task(run_until(server, asyncio.Event()))
        await server.stop()
        await running

    asyncio.run(scenario())


def test_server_run_until_ends_once_a_service_gives_up(fake_embedder: Any) -> None:
    """It is stopped, if it can be, and who runs it hears why; other errors end nothing."""

    class Lost(fake_embedder):  # type: ignore[misc]
        answers: ClassVar[list[Exception]] = [OSError("not yet"), Unrecoverable("the GPU is gone")]

        async def ready(self) -> bool:
            raise self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def scenario(*, stops: bool) -> None:
        lost = Lost(stop_error=None if stops else RuntimeError("disk"))
        given_up: list[list[str]] = []
        server = RpcServer(LOCAL, [lost])
        await server.start()
        running = run_until(
            server, asyncio.Event(), on_given_up=lambda: given_up.append(lost.events[-1:])
        )
        with pytest.raises(Unrecoverable, match="the GPU is gone"):
            await asyncio.wait_for(running, 20)
        assert given_up == [["start shoal.v1.EmbedderService"]]
        assert lost.events[-1] == "stop shoal.v1.EmbedderService"

    asyncio.run(scenario(stops=True))
    asyncio.run(scenario(stops=False))


def test_server_stop_before_start_gives_the_port_back() -> None:
    """A composition root that fails between ``bind`` and ``start`` can clean up."""

    async def scenario() -> None:
        server = RpcServer(LOCAL, [])
        port = await server.bind()
        await server.stop()
        await server.wait()
        with socket.create_server(("127.0.0.1", port)):
            pass
        with pytest.raises(ConfigError, match="has been stopped"):
            await server.start()

    asyncio.run(scenario())
