"""The connections of one blocking client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.client.calls import Asked
from shoal.client.failures import Closing
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.v1 import clusterer_pb2_grpc, embedder_pb2_grpc, search_pb2_grpc

if TYPE_CHECKING:
    import grpc


class Connections(Closing):
    """One channel for all calls, and more where an ingestion is to reach several processes.

    A channel holds one connection to each address of its server; the system hands each new
    connection to one of the processes behind an address. Connects with the first call.
    Thread-safe.
    """

    def __init__(self, config: ChannelConfig) -> None:
        """Opens the first channel.

        Raises:
            ConfigError: as ``open_channel``.
        """
        super().__init__()
        self._config = config
        self._lock = threading.Lock()
        channel = open_channel(
            config,
            embedder_pb2_grpc.EmbedderServiceStub,
            clusterer_pb2_grpc.ClustererServiceStub,
            search_pb2_grpc.SearchServiceStub,
        )
        self._channels = [channel]
        self._stubs: dict[str, object] = {
            "embedder": embedder_pb2_grpc.EmbedderServiceStub(channel),
            "clusterer": clusterer_pb2_grpc.ClustererServiceStub(channel),
            "search": search_pb2_grpc.SearchServiceStub(channel),
        }

    def call(self, asked: Asked) -> Any:
        """What the stub gives back: one answer, or a stream of them."""
        method: Callable[[object], Any] = getattr(self._stubs[asked.service], asked.method)
        return method(asked.request)

    def several(self, count: int) -> list[grpc.Channel]:
        """``count`` channels to the embedder, the first among them; they stay until ``close``.

        Raises:
            InvalidArgument: as ``check_open``.
        """
        with self._lock:
            self.check_open()
            while len(self._channels) < count:
                self._channels.append(
                    open_channel(self._config, embedder_pb2_grpc.EmbedderServiceStub)
                )
            return self._channels[:count]

    def close(self) -> None:
        """Closes all channels; calls under way are cancelled."""
        with self._lock:
            self.closed = True
            for channel in self._channels:
                channel.close()
