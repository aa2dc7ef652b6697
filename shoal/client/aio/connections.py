"""The connections of one asynchronous client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from shoal.client.calls import Asked, Service
from shoal.client.connections import STUBS
from shoal.client.failures import Closing, answering, asking
from shoal.client.settings import Channels, missing
from shoal.errors import Cancelled
from shoal.rpc.channel import open_aio_channel


class AsyncConnections(Closing):
    """As ``Connections``, of one event loop: the loop that runs when the first call is made."""

    def __init__(self, channels: Channels) -> None:
        """Opens nothing yet: that needs a running loop.

        Raises:
            ConfigError: a value is out of range.
        """
        super().__init__()
        for config in channels.values():
            config.validate()
        self._configs = channels
        self._channels: dict[str, list[grpc.aio.Channel]] = {}

    def call(self, asked: Asked) -> Any:
        """What the stub gives back: one answer to await, or a stream of them.

        Raises:
            ServiceMissing: the service has no address.
        """
        (channel,) = self._several(asked.service, 1)
        method: Callable[[object], Any] = getattr(STUBS[asked.service](channel), asked.method)
        return method(asked.request)

    def several(self, count: int) -> list[grpc.aio.Channel]:
        """``count`` channels to the embedder, which stay until ``close``.

        Raises:
            InvalidArgument: as ``check_open``.
            ServiceMissing: the embedder has no address.
            ConfigError: the file of the authority cannot be read.
        """
        return self._several("embedder", count)

    def _several(self, service: Service, count: int) -> list[grpc.aio.Channel]:
        self.check_open()
        if service not in self._configs:
            raise missing(service)
        config = self._configs[service]
        found = self._channels.setdefault(config.address, [])
        while len(found) < count:
            found.append(open_aio_channel(config))
        return found[:count]

    async def close(self) -> None:
        """Closes all channels; calls under way are cancelled."""
        self.closed = True
        channels, self._channels = self._channels, {}
        for channel in itertools.chain.from_iterable(channels.values()):
            await channel.close(None)

    @asynccontextmanager
    async def translating(self, asked: Asked) -> AsyncIterator[None]:
        """Raises what the call ``asked`` raises as an error of Shoal's."""
        async with self.answering(asked.service):
            with asking(self):
                yield

    @asynccontextmanager
    async def answering(self, service: Service) -> AsyncIterator[None]:
        """Raises the failure of a call to ``service`` as an error of Shoal's.

        gRPC cancels whoever awaits a call when its channel is closed. That is an error of the
        call, and not a cancelling of the task.
        """
        try:
            with answering(self._configs, service):
                yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                address = self._configs[service].address
                msg = f"the call to {address} was cancelled: the client was closed"
                raise Cancelled(msg, address=address) from exc
            raise
