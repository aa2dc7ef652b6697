"""The connections of one client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from shoal.errors import InvalidArgument
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.v1 import clusterer_pb2_grpc, embedder_pb2_grpc, search_pb2_grpc

if TYPE_CHECKING:
    import grpc


class Connections:
    """One channel for all calls, and more where calls are to reach several processes.

    A channel holds one connection to each address of its server; the system hands each new
    connection to one of the processes behind an address. Connects with the first call.
    """

    def __init__(self, config: ChannelConfig) -> None:
        """Open the first channel.

        Raises:
            ConfigError: as ``open_channel``.
        """
        self._config = config
        self._lock = threading.Lock()
        self._channels = [
            open_channel(
                config,
                embedder_pb2_grpc.EmbedderServiceStub,
                clusterer_pb2_grpc.ClustererServiceStub,
                search_pb2_grpc.SearchServiceStub,
            )
        ]
        self._closed = False

    @property
    def first(self) -> grpc.Channel:
        """The channel for all calls of all services."""
        return self._channels[0]

    def several(self, count: int) -> list[grpc.Channel]:
        """``count`` channels to the embedder, the first among them; kept until ``close``.

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

    def check_open(self) -> None:
        """InvalidArgument after ``close``."""
        if self._closed:
            raise InvalidArgument("the client is closed: expected calls before close()")

    def close(self) -> None:
        """Close them all; calls under way are cancelled."""
        with self._lock:
            self._closed = True
            for channel in self._channels:
                channel.close()
