"""The metrics that every Shoal server exports about its calls.

They live in the default registry of ``prometheus_client``, once per process: several servers in
one process add up.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter(
    "shoal_rpc_requests_total",
    "Calls that have ended, by method and gRPC status code.",
    ["method", "code"],
)
SECONDS: Final = Histogram(
    "shoal_rpc_request_seconds",
    "Time from the call's arrival to its end; for a stream, its whole life.",
    ["method"],
    # From a search inside a cluster (under a millisecond) to the deadline of a client (60 s).
    buckets=(
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1,
        2.5,
        5,
        10,
        30,
        60,
    ),
)
IN_FLIGHT: Final = Gauge("shoal_rpc_in_flight", "Calls that have begun and not ended.", ["method"])
READY: Final = Gauge(
    "shoal_rpc_ready", "1 while the service says that it can answer, else 0.", ["service"]
)
