"""Servers in this process: a loop in a thread, real gRPC on a free loopback port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from shoal.rpc.server import RpcServer, ServerConfig, Service


class Served(NamedTuple):
    """A running server: a channel to it, and HOST:PORT."""

    channel: grpc.Channel
    address: str


@contextmanager
def serving(make: Callable[[], list[Service]]) -> Iterator[Served]:
    """A running server with the services that ``make`` builds inside the server's loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def begin() -> RpcServer:
        server = RpcServer(ServerConfig(address="127.0.0.1:0"), make())
        await server.start()
        return server

    try:
        server: RpcServer = run(begin())
        try:
            with grpc.insecure_channel(server.address) as channel:
                yield Served(channel, server.address)
        finally:
            run(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
