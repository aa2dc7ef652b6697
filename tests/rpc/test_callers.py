"""Whom a server takes for one caller."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.rpc.callers import CALLER, caller_of, on_behalf_of
from shoal.v1 import embedder_pb2


def test_caller_is_a_connection_or_who_it_names(serving: Any, fake_embedder: Any) -> None:
    """Calls of one connection are one caller's; a name tells them apart; an odd name is none."""
    seen: list[str] = []

    class Embedder(fake_embedder):  # type: ignore[misc,valid-type]
        async def Embed(self, request: Any, context: Any) -> Any:
            seen.append(caller_of(context))
            return embedder_pb2.EmbedResponse()

    async def scenario() -> None:
        async with serving(Embedder()) as running:
            for name in ("", "", "a", "a", "b", "no name", "x" * 65, "x" * 64):
                metadata = ((CALLER, name),) if name else ()
                await running.embedder.Embed(embedder_pb2.EmbedRequest(), metadata=metadata)

    asyncio.run(scenario())
    plain = seen[0]
    assert plain.startswith("ipv4:127.0.0.1:")
    assert seen == [
        plain,
        plain,
        f"{plain} a",
        f"{plain} a",
        f"{plain} b",
        plain,
        plain,
        f"{plain} {'x' * 64}",
    ]


class Context:
    """The context of a call from this address, with these metadata."""

    def __init__(self, peer: str, *metadata: tuple[str, str]) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


def test_caller_of_a_caller_is_told_on() -> None:
    """A service that calls another for its own callers names them, whatever their addresses."""
    server = "ipv4:10.0.0.9:7"
    told = [
        caller_of(Context(server, *on_behalf_of(caller)))  # type: ignore[arg-type]
        for caller in (
            Context("ipv4:10.0.0.1:1"),
            Context("ipv6:%5B::1%5D:1"),
            Context("ipv4:10.0.0.1:1", (CALLER, "me")),
            Context("x" * 100),
        )
    ]
    assert told == [
        f"{server} ipv4:10.0.0.1:1",
        f"{server} ipv6:-5B::1-5D:1",
        f"{server} ipv4:10.0.0.1:1-me",
        f"{server} {'x' * 64}",
    ]
