"""The options that all channels share, and a connection whose other end vanishes."""

from __future__ import annotations

import pytest

from shoal.channels import channel_options

LONGEST_MS = 2_000
"""How late a server that is ready again may be found."""


def test_server_that_comes_back_is_found_within_two_seconds() -> None:
    """The pause between two tries, a fifth of it that gRPC adds, and the look-up of the name."""
    options = channel_options()
    longest = int(options["grpc.max_reconnect_backoff_ms"])
    assert 1.2 * longest <= LONGEST_MS
    assert int(options["grpc.initial_reconnect_backoff_ms"]) < longest
    assert int(options["grpc.dns_min_time_between_resolutions_ms"]) <= LONGEST_MS


def test_host_that_comes_back_is_asked_again_within_two_seconds() -> None:
    """A try that nobody answers sends its SYN after 0, 1, 3 and 7 s, and then another begins."""
    longest = int(channel_options()["grpc.min_reconnect_backoff_ms"])
    sent = [at for at in (0, 1_000, 3_000, 7_000, 15_000) if at < longest]
    gaps = [later - at for at, later in zip(sent, [*sent[1:], longest], strict=True)]
    assert max(gaps) < LONGEST_MS
    assert longest > 2_000  # a loaded server needs a moment for TLS


def test_connection_that_died_without_a_word_is_noticed() -> None:
    """Pings go on in silence and without calls, and their answers are awaited for seconds."""
    options = channel_options()
    assert int(options["grpc.keepalive_time_ms"]) <= 30_000
    for ping in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
        assert int(options[ping]) <= 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_pings_without_data"] == 0


@pytest.mark.parametrize("via_proxy", [False, True])
def test_proxy_of_the_environment_counts_only_if_told(*, via_proxy: bool) -> None:
    """Unasked, gRPC would go by ``http_proxy``."""
    assert channel_options(via_proxy=via_proxy)["grpc.enable_http_proxy"] == int(via_proxy)
    assert channel_options()["grpc.enable_http_proxy"] == 0
