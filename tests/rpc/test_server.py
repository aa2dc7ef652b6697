"""What a server refuses to be told, and what it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from pydantic import SecretStr

from shoal.errors import ConfigError, DeadlineExceeded, Unsupported
from shoal.rpc.server import RpcServer, ServerConfig
from shoal.rpc.status import from_rpc_error
from shoal.v1 import clusterer_pb2, common_pb2, embedder_pb2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ServerConfig(address="0.0.0.0:7800"), "--token or SHOAL_TOKEN"),
        (ServerConfig(address="[::]:7800"), "reachable from other machines"),
        (ServerConfig(tokens=(SecretStr(""),)), "bearer token is malformed"),
        (ServerConfig(tokens=(SecretStr("geheim ü"),)), "bearer token is malformed"),
        (ServerConfig(tls_cert=Path("c.pem")), "certificate is set without a key"),
        (ServerConfig(tls_key=Path("k.pem")), "key is set without a certificate"),
        (ServerConfig(tls_cert=Path("/nonexistent"), tls_key=Path("k")), "cannot be read: No such"),
        (ServerConfig(max_message_bytes=0), "max_message_bytes: expected at least 1, got 0"),
        (ServerConfig(grace_s=-1), "grace_s: expected at least 0 s, got -1"),
        (ServerConfig(grace_s=float("nan")), "grace_s: expected at least 0 s, got nan"),
        (ServerConfig(health_interval_s=0), "health_interval_s: expected more than 0 s, got 0"),
    ],
)
def test_server_config_wrong_is_refused_before_a_port_opens(
    config: ServerConfig, says: str
) -> None:
    """Each mistake is a ConfigError that names the setting, and never shows a token."""

    async def scenario() -> None:
        with pytest.raises(ConfigError) as caught:
            await RpcServer(config, []).bind()
        assert says in caught.value.message
        assert "geheim" not in caught.value.message

    asyncio.run(scenario())


def test_server_reachable_address_with_a_token_is_accepted() -> None:
    """The rule asks for a token, not for loopback."""
    assert ServerConfig(address="0.0.0.0:0", tokens=(SecretStr("t"),)).validate().port == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_server_port_in_use_is_refused(serving: Any, fake_embedder: Any, host: str) -> None:
    """Two servers never share a port, and the second one says why it does not start."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            second = RpcServer(ServerConfig(address=f"{host}:{running.port}"), [fake_embedder()])
            with pytest.raises(ConfigError) as caught:
                await second.start()
            assert caught.value.message == (
                f"cannot listen on {host}:{running.port}: address already in use"
            )

    asyncio.run(scenario())


def test_server_reflection_lists_services_and_describes_methods(
    serving: Any, fake_embedder: Any, fake_clusterer: Any
) -> None:
    """The official reflection client finds every service and its methods."""

    async def scenario() -> None:
        async with serving(fake_embedder(), fake_clusterer()) as running:
            services, methods = await asyncio.to_thread(reflect, running.address)
        assert services == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "shoal.v1.ClustererService",
            "shoal.v1.EmbedderService",
        }
        assert methods == ["Embed", "EmbedText", "Ingest", "GetInfo"]

    asyncio.run(scenario())


def test_server_reflection_needs_a_token(serving: Any, fake_embedder: Any) -> None:
    """Only health is asked without one."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", tokens=(SecretStr("t"),))
        async with serving(fake_embedder(), server=config) as running:
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(reflect, running.address)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


def reflect(address: str) -> tuple[set[str], list[str]]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        found = database.FindFileContainingSymbol("shoal.v1.EmbedderService")
        return services, [method.name for method in found.service[0].method]


def test_server_takes_messages_past_grpc_default_and_refuses_past_its_own(
    serving: Any, fake_embedder: Any
) -> None:
    """More than 4 MB passes; more than the limit is the caller's mistake, named as such."""

    async def scenario() -> None:
        server = ServerConfig(address="127.0.0.1:0", max_message_bytes=6 * 2**20)
        async with serving(fake_embedder(), server=server) as running:
            big, bigger = (
                embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=bytes(size * 2**20))])
                for size in (5, 7)
            )
            await running.embedder.Embed(big)
            with pytest.raises(grpc.RpcError) as caught:
                await running.embedder.Embed(bigger)
            error = from_rpc_error(caught.value, running.address)
            assert error.reason == "INVALID_ARGUMENT"
            assert str(6 * 2**20) in error.message

    asyncio.run(scenario())


def test_server_deadline_of_the_caller_cancels_the_handler(
    serving: Any, fake_embedder: Any, until: Any
) -> None:
    """Expired work does not go on: the handler is cancelled, the caller gets DeadlineExceeded."""

    async def scenario() -> None:
        embedder = fake_embedder(release=asyncio.Event())
        async with serving(embedder) as running:
            with pytest.raises(grpc.RpcError) as caught:
                await running.embedder.Embed(embedder_pb2.EmbedRequest(), timeout=0.2)
            assert type(from_rpc_error(caught.value, "here")) is DeadlineExceeded
            await until(lambda: embedder.ended == ["cancelled"])

    asyncio.run(scenario())


def test_server_method_that_is_not_there_is_unsupported(serving: Any, fake_embedder: Any) -> None:
    """Whether the service is missing or only the method's implementation: Unsupported."""

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            for call in (
                running.clusterer.GetRun(clusterer_pb2.GetRunRequest()),
                running.embedder.GetInfo(embedder_pb2.GetInfoRequest()),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    await call
                assert type(from_rpc_error(caught.value, "here")) is Unsupported

    asyncio.run(scenario())


def test_server_old_connections_are_renewed_without_losing_calls(
    serving: Any, fake_embedder: Any
) -> None:
    """With a maximal age, connections are replaced while every call is answered."""

    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", max_connection_age_s=0.1, grace_s=5)
        peers: set[str] = set()

        class Embedder(fake_embedder):  # type: ignore[misc,valid-type]
            async def Embed(self, request: Any, context: Any) -> Any:
                peers.add(context.peer())
                return embedder_pb2.EmbedResponse(encoder=request.encoder)

        async with serving(Embedder(), server=config) as running, asyncio.timeout(60):
            while len(peers) < 3:
                await running.embedder.Embed(embedder_pb2.EmbedRequest())

    asyncio.run(scenario())
