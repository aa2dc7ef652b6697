"""Whom a server takes for one caller."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.rpc.callers import CALLER, caller_of
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
