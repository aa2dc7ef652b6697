"""The connections of one client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from shoal.rpc.channel import ChannelConfig, open_channel

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
        self._channels = [open_channel(config)]

    @property
    def first(self) -> grpc.Channel:
        """The channel for all calls."""
        return self._channels[0]

    def several(self, count: int) -> list[grpc.Channel]:
        """``count`` channels, the first among them; kept, once open, until ``close``."""
        with self._lock:
            while len(self._channels) < count:
                self._channels.append(open_channel(self._config))
            return self._channels[:count]

    def close(self) -> None:
        """Close them all; calls under way are cancelled."""
        with self._lock:
            for channel in self._channels:
                channel.close()
