"""The connections of one asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from shoal.client.calls import Asked
from shoal.client.failures import Closing, answering, asking
from shoal.errors import Cancelled
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.v1 import clusterer_pb2_grpc, embedder_pb2_grpc, search_pb2_grpc

_STUBS: dict[str, Callable[[grpc.aio.Channel], object]] = {
    "embedder": embedder_pb2_grpc.EmbedderServiceStub,
    "clusterer": clusterer_pb2_grpc.ClustererServiceStub,
    "search": search_pb2_grpc.SearchServiceStub,
}


class AsyncConnections(Closing):
    """As ``Connections``, of one event loop: the loop that runs when the first call is made."""

    def __init__(self, config: ChannelConfig) -> None:
        """Opens nothing yet: that needs a running loop.

        Raises:
            ConfigError: a value is out of range.
        """
        super().__init__()
        config.validate()
        self._config = config
        self._channels: list[grpc.aio.Channel] = []

    def call(self, asked: Asked) -> Any:
        """What the stub gives back: one answer to await, or a stream of them."""
        (channel,) = self.several(1)
        method: Callable[[object], Any] = getattr(_STUBS[asked.service](channel), asked.method)
        return method(asked.request)

    def several(self, count: int) -> list[grpc.aio.Channel]:
        """``count`` channels, which stay until ``close``.

        Raises:
            InvalidArgument: as ``check_open``.
            ConfigError: the file of the authority cannot be read.
        """
        self.check_open()
        while len(self._channels) < count:
            self._channels.append(open_aio_channel(self._config))
        return self._channels[:count]

    async def close(self) -> None:
        """Closes all channels; calls under way are cancelled."""
        self.closed = True
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close(None)

    @asynccontextmanager
    async def translating(self) -> AsyncIterator[None]:
        """Raises what a call, or the making of its request, raises as an error of Shoal's."""
        async with self.answering():
            with asking(self):
                yield

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Raises the failure of a call as an error of Shoal's.

        gRPC cancels whoever awaits a call when its channel is closed. That is an error of the
        call, and not a cancelling of the task.
        """
        try:
            with answering(self._config.address):
                yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                address = self._config.address
                msg = f"the call to {address} was cancelled: the client was closed"
                raise Cancelled(msg, address=address) from exc
            raise
