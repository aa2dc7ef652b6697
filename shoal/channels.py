"""The gRPC options that all channels of Shoal share: to its services and to the store. Pure."""

from __future__ import annotations

from typing import Final

ChannelOptions = list[tuple[str, str | int]]

KEEPALIVE_MS: Final = 30_000
"""The time between two pings of a client; Shoal's servers permit one every 20 s."""

PING_TIMEOUT_MS: Final = 10_000
"""The longest wait for the answer to a ping, after which the connection counts as dead."""

RECONNECT_MS: Final = 1_000
"""The longest pause between two tries to connect; gRPC adds up to a fifth at random.

A server that is ready again is found within that time. gRPC's default is two minutes.
"""


def channel_options(*, via_proxy: bool = False) -> dict[str, str | int]:
    """The options of a channel that finds a server again within 2 s, and misses one that vanished.

    With ``via_proxy`` the environment's ``https_proxy``, ``http_proxy`` and ``no_proxy`` count.
    """
    return {
        # A connection whose other end vanished without a word fails its calls.
        "grpc.keepalive_time_ms": KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": PING_TIMEOUT_MS,
        # gRPC pings with a call's data too, and keeps other pings back until the answer: 60 s.
        "grpc.http2.ping_timeout_ms": PING_TIMEOUT_MS,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,  # no limit: a silent stream must stay up
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": RECONNECT_MS,
        # The longest try. The kernel repeats a lost SYN after 1 s, then after 2 s more: a host that
        # was away is asked again in less than that by a new try.
        "grpc.min_reconnect_backoff_ms": 2_500,
        # A server may come back at another address of its name; gRPC's default is 30 s.
        "grpc.dns_min_time_between_resolutions_ms": 1_000,
        "grpc.enable_http_proxy": int(via_proxy),
    }
