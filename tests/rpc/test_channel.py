"""Channels against real servers: tokens, TLS, deadlines, servers that are not there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from pydantic import SecretStr

from shoal.errors import ConfigError, DeadlineExceeded, ServiceUnavailable, Unauthenticated
from shoal.rpc.channel import ChannelConfig, open_aio_channel, open_channel
from shoal.rpc.server import RpcServer, ServerConfig
from shoal.rpc.status import from_rpc_error
from shoal.v1 import clusterer_pb2, embedder_pb2, embedder_pb2_grpc

TOKENS = (SecretStr("old-token"), SecretStr("new-token"))
GUARDED = ServerConfig(address="127.0.0.1:0", tokens=TOKENS, grace_s=5)


def with_token(token: str | None) -> Callable[[str], ChannelConfig]:
    secret = None if token is None else SecretStr(token)
    return lambda address: ChannelConfig(address=address, token=secret)


@pytest.mark.parametrize("token", ["old-token", "new-token"])
def test_channel_token_opens_every_kind_of_call(
    serving: Any, fake_embedder: Any, fake_clusterer: Any, token: str
) -> None:
    """Any of the server's tokens is good for unary calls and streams, sync and asyncio."""

    async def scenario() -> None:
        services = (fake_embedder(), fake_clusterer())
        async with serving(*services, server=GUARDED, client=with_token(token)) as running:
            answer = await running.embedder.Embed(embedder_pb2.EmbedRequest(encoder="e"))
            assert answer.encoder == "e"
            watch = running.clusterer.WatchRun(clusterer_pb2.WatchRunRequest())
            assert [run.id async for run in watch] == ["1", "2", "3"]
            requests = [embedder_pb2.IngestRequest(sequence=n) for n in (1, 2)]
            ingest = running.embedder.Ingest(iter(requests))
            assert [each.sequence async for each in ingest] == [1, 2]
            sync = await asyncio.to_thread(ingest_sync, with_token(token)(running.address))
            assert sync == ["e", 1, 2]

    asyncio.run(scenario())


def ingest_sync(config: ChannelConfig) -> list[Any]:
    with open_channel(config) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        name = stub.Embed(embedder_pb2.EmbedRequest(encoder="e")).encoder
        requests = [embedder_pb2.IngestRequest(sequence=n) for n in (1, 2)]
        return [name, *(each.sequence for each in stub.Ingest(iter(requests)))]


@pytest.mark.parametrize("token", [None, "wrong", "old-token-and-more", "old-toke", "Bearer"])
def test_channel_missing_or_wrong_token_is_refused_for_every_kind_of_call(
    serving: Any, fake_embedder: Any, fake_clusterer: Any, token: str | None
) -> None:
    """The handler never runs, and the caller learns what was expected but no token."""

    async def scenario() -> None:
        embedder = fake_embedder()
        services = (embedder, fake_clusterer())
        async with serving(*services, server=GUARDED, client=with_token(token)) as running:
            ingest = running.embedder.Ingest()
            watch = running.clusterer.WatchRun(clusterer_pb2.WatchRunRequest())
            for answer in (
                running.embedder.Embed(embedder_pb2.EmbedRequest()),
                watch.read(),
                ingest.read(),  # refused before a first request is sent
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await answer
                error = from_rpc_error(caught.value, running.address)
                assert type(error) is Unauthenticated
                assert "authorization: Bearer" in error.message
                assert "old-token" not in error.message
            assert not embedder.entered.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("value", "accepted"),
    [("bearer new-token", True), ("BEARER new-token", True), ("Basic new-token", False),
     ("new-token", False), ("Bearer  new-token", False), ("Bearer", False), ("", False)],
)  # fmt: skip
def test_channel_authorization_is_read_strictly(
    serving: Any, fake_embedder: Any, value: str, *, accepted: bool
) -> None:
    """The scheme's case does not matter; everything else does."""

    async def scenario() -> None:
        async with serving(fake_embedder(), server=GUARDED) as running:
            call = running.embedder.Embed(
                embedder_pb2.EmbedRequest(), metadata=[("authorization", value)]
            )
            if accepted:
                await call
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pem(tmp_path: Path, authority: trustme.CA) -> dict[str, Path]:
    """Files: the authority, a certificate for localhost with its key, and another key."""
    good, other = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("x")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "other_key")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    good.cert_chain_pems[0].write_to_path(str(paths["cert"]))
    good.private_key_pem.write_to_path(str(paths["key"]))
    other.private_key_pem.write_to_path(str(paths["other_key"]))
    return paths


def test_channel_tls_encrypts_and_verifies(
    serving: Any, fake_embedder: Any, pem: dict[str, Path], tmp_path: Path
) -> None:
    """The right authority connects; another one, and plaintext, do not."""
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    server = ServerConfig(
        address="127.0.0.1:0", tls_cert=pem["cert"], tls_key=pem["key"], tokens=TOKENS
    )

    def trusting(address: str) -> ChannelConfig:
        return ChannelConfig(address=address, tls=True, tls_ca=pem["ca"], token=TOKENS[0])

    async def scenario() -> None:
        async with serving(fake_embedder(), server=server, client=trusting) as running:
            answer = await running.embedder.Embed(embedder_pb2.EmbedRequest(encoder="e"))
            assert answer.encoder == "e"
            assert await asyncio.to_thread(ingest_sync, trusting(running.address)) == ["e", 1, 2]
            for config in (
                ChannelConfig(address=running.address, token=TOKENS[0]),
                ChannelConfig(address=running.address, tls=True, tls_ca=stranger),
                ChannelConfig(address=running.address, tls=True),
            ):
                async with open_aio_channel(config) as channel:
                    stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stub.Embed(embedder_pb2.EmbedRequest())
                    error = from_rpc_error(caught.value, running.address)
                    assert type(error) is ServiceUnavailable

    asyncio.run(scenario())


@pytest.mark.parametrize(("cert", "key"), [("cert", "other_key"), ("key", "cert"), ("ca", "key")])
def test_channel_tls_files_that_do_not_belong_together_are_refused(
    pem: dict[str, Path], cert: str, key: str
) -> None:
    """A server finds out before a port opens, and names both files."""
    config = ServerConfig(tls_cert=pem[cert], tls_key=pem[key])
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        config.validate()
    assert str(pem[cert]) in caught.value.message
    assert str(pem[key]) in caught.value.message


def test_channel_to_nobody_says_how_to_start_a_server() -> None:
    """A refused connection is ServiceUnavailable, in one sentence that helps."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with open_channel(ChannelConfig(address=address)) as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Embed(embedder_pb2.EmbedRequest())
            error = from_rpc_error(caught.value, address)
    assert type(error) is ServiceUnavailable
    assert error.message == (
        f"cannot reach a Shoal server at {address}: connection refused; start one with `shoal up`"
    )


def test_channel_loopback_ignores_a_web_proxy(
    serving: Any, fake_embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``http_proxy`` in the environment does not come between two processes of one machine."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def scenario() -> None:
        async with serving(fake_embedder()) as running:
            await running.embedder.Embed(embedder_pb2.EmbedRequest())

    asyncio.run(scenario())


def test_channel_has_a_connection_of_its_own() -> None:
    """Two channels are two connections, which may end at two processes behind one port."""
    peers: list[str] = []

    class Embedder(embedder_pb2_grpc.EmbedderServiceServicer):
        def Embed(self, _: Any, context: grpc.ServicerContext) -> embedder_pb2.EmbedResponse:
            peers.append(context.peer())
            return embedder_pb2.EmbedResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Embedder(), server)
    config = ChannelConfig(address=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    with open_channel(config) as one, open_channel(config) as other:
        for channel in (one, one, other):
            embedder_pb2_grpc.EmbedderServiceStub(channel).Embed(embedder_pb2.EmbedRequest())
    server.stop(None).wait()
    assert peers[0] == peers[1] != peers[2]


def test_channel_deadline_is_set_on_unary_calls_only(serving: Any, fake_embedder: Any) -> None:
    """A unary call without a deadline gets the channel's, sync and asyncio; a stream gets none."""

    async def scenario() -> None:
        embedder = fake_embedder(release=asyncio.Event())

        def hasty(address: str) -> ChannelConfig:
            return ChannelConfig(address=address, timeout_s=0.2)

        async with serving(embedder, client=hasty) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.embedder.Embed(embedder_pb2.EmbedRequest())
            assert type(from_rpc_error(caught.value, "here")) is DeadlineExceeded
            with pytest.raises(grpc.RpcError) as failed:
                await asyncio.to_thread(ingest_sync, hasty(running.address))
            assert type(from_rpc_error(failed.value, "here")) is DeadlineExceeded
            embedder.release.set()
            call = running.embedder.Ingest()
            await call.write(embedder_pb2.IngestRequest(sequence=1))
            await call.read()
            assert call.time_remaining() is None
            call.cancel()

    asyncio.run(scenario())


def test_channel_keeps_the_metadata_and_the_deadline_of_a_call(
    serving: Any, fake_embedder: Any
) -> None:
    """What a caller sets itself stands beside the token, sync and asyncio."""
    seen: list[tuple[dict[str, str], float]] = []

    class Embedder(fake_embedder):  # type: ignore[misc]
        async def Embed(self, request: Any, context: Any) -> Any:
            seen.append((dict(context.invocation_metadata()), context.time_remaining()))
            return embedder_pb2.EmbedResponse()

    def sync(address: str) -> None:
        with open_channel(with_token("old-token")(address)) as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            stub.Embed(embedder_pb2.EmbedRequest(), metadata=[("x-mine", "1")], timeout=500)

    async def scenario() -> None:
        options = {"server": GUARDED, "client": with_token("old-token")}
        async with serving(Embedder(), **options) as running:
            request = embedder_pb2.EmbedRequest()
            await running.embedder.Embed(request, metadata=[("x-mine", "1")], timeout=500)
            await asyncio.to_thread(sync, running.address)

    asyncio.run(scenario())
    assert len(seen) == 2
    for metadata, left in seen:
        assert metadata["x-mine"] == "1"
        assert metadata["authorization"] == "Bearer old-token"
        assert 60 < left < 510  # the channel would set 60; clocks differ a little


def test_channel_finds_a_server_that_came_back(fake_embedder: Any, until: Any) -> None:
    """After a restart on the same port the same channel works again within seconds."""

    async def scenario() -> None:
        first = RpcServer(ServerConfig(address="127.0.0.1:0"), [fake_embedder()])
        port = await first.start()
        async with open_aio_channel(ChannelConfig(address=f"127.0.0.1:{port}")) as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            await stub.Embed(embedder_pb2.EmbedRequest())
            await first.stop()
            second = RpcServer(ServerConfig(address=f"127.0.0.1:{port}"), [fake_embedder()])
            await second.start()

            async def answers() -> bool:
                try:
                    await stub.Embed(embedder_pb2.EmbedRequest())
                except grpc.aio.AioRpcError:
                    return False
                return True

            await until(answers)
            await second.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ChannelConfig(address="nowhere"), "HOST:PORT"),
        (ChannelConfig(address="h:0"), "port 0"),
        (ChannelConfig(token=SecretStr("two words")), "bearer token is malformed"),
        (ChannelConfig(tls_ca=Path("ca.pem")), "without TLS"),
        (ChannelConfig(tls=True, tls_ca=Path("/nonexistent")), "cannot be read"),
        (ChannelConfig(timeout_s=0), "timeout_s: expected more than 0 s, got 0"),
        (ChannelConfig(max_message_bytes=0), "max_message_bytes: expected at least 1, got 0"),
    ],
)
def test_channel_config_wrong_is_refused(config: ChannelConfig, says: str) -> None:
    """Each mistake is a ConfigError that names the setting."""
    with pytest.raises(ConfigError, match=says):
        open_channel(config)
