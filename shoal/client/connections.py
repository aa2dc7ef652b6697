"""The connections of one blocking client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shoal.client.calls import SERVICES, Asked, Service
from shoal.client.failures import Closing, answering, asking
from shoal.client.settings import Channels, missing
from shoal.rpc.channel import open_channel
from shoal.v1 import clusterer_pb2_grpc, embedder_pb2_grpc, search_pb2_grpc

if TYPE_CHECKING:
    import grpc

STUBS: dict[Service, Callable[[Any], object]] = {
    "embedder": embedder_pb2_grpc.EmbedderServiceStub,
    "clusterer": clusterer_pb2_grpc.ClustererServiceStub,
    "search": search_pb2_grpc.SearchServiceStub,
}


class Connections(Closing):
    """One channel for each address, and more where an ingestion is to reach several processes.

    A channel holds one connection to each address of its server; the system hands each new
    connection to one of the processes behind an address. Connects with the first call.
    Thread-safe.
    """

    def __init__(self, channels: Channels) -> None:
        """Opens the first channels.

        Raises:
            ConfigError: as ``open_channel``.
        """
        super().__init__()
        self._configs = channels
        self._lock = threading.Lock()
        made = {each.address: open_channel(each, *STUBS.values()) for each in channels.values()}
        self._channels = list(made.values())
        self._stubs = {
            service: STUBS[service](made[channels[service].address])
            for service in SERVICES
            if service in channels
        }
        self._embedders = [made[config.address]] if (config := channels.get("embedder")) else []

    def call(self, asked: Asked) -> Any:
        """What the stub gives back: one answer, or a stream of them.

        Raises:
            ServiceMissing: the service has no address.
        """
        if asked.service not in self._stubs:
            raise missing(asked.service)
        method: Callable[[object], Any] = getattr(self._stubs[asked.service], asked.method)
        return method(asked.request)

    @contextmanager
    def translating(self, asked: Asked) -> Iterator[None]:
        """Raises what the call ``asked`` raises as an error of Shoal's."""
        with answering(self._configs, asked.service), asking(self):
            yield

    @contextmanager
    def ingesting(self) -> Iterator[None]:
        """Raises the failure of an ingestion as an error of Shoal's."""
        with answering(self._configs, "embedder"):
            yield

    def several(self, count: int) -> list[grpc.Channel]:
        """``count`` channels to the embedder, the first among them; they stay until ``close``.

        Raises:
            InvalidArgument: as ``check_open``.
            ServiceMissing: the embedder has no address.
        """
        with self._lock:
            self.check_open()
            if "embedder" not in self._configs:
                raise missing("embedder")
            while len(self._embedders) < count:
                more = open_channel(self._configs["embedder"], STUBS["embedder"])
                self._embedders.append(more)
                self._channels.append(more)
            return self._embedders[:count]

    def close(self) -> None:
        """Closes all channels; calls under way are cancelled."""
        with self._lock:
            self.closed = True
            for channel in self._channels:
                channel.close()
