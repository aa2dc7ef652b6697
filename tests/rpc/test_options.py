"""The gRPC options of both ends, which have to fit together."""

from __future__ import annotations

import pytest

from shoal.channels import channel_options
from shoal.rpc.address import Address
from shoal.rpc.channel import _options
from shoal.rpc.config import ChannelConfig, ServerConfig


def of_server(**settings: object) -> dict[str, str | int]:
    return dict(ServerConfig(**settings).options())  # type: ignore[arg-type]


def of_client(host: str = "embedder", **settings: object) -> dict[str, str | int]:
    return dict(_options(ChannelConfig(**settings), Address(host, 7800)))  # type: ignore[arg-type]


def test_client_pings_no_more_often_than_the_server_permits() -> None:
    """Else the server hangs up; without calls in progress, too."""
    server, client = of_server(), of_client()
    least = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert int(client["grpc.keepalive_time_ms"]) > int(least)
    for side in (server, client):
        assert side["grpc.keepalive_permit_without_calls"] == 1
        assert int(side["grpc.keepalive_timeout_ms"]) < int(side["grpc.keepalive_time_ms"])
    assert client["grpc.http2.max_pings_without_data"] == 0


@pytest.mark.parametrize("most", [1, 64 * 2**20, 2**31 - 1])
def test_messages_have_one_limit_in_both_directions(most: int) -> None:
    """Of either end, its own."""
    for side in (of_server(max_message_bytes=most), of_client(max_message_bytes=most)):
        assert side["grpc.max_send_message_length"] == most
        assert side["grpc.max_receive_message_length"] == most


@pytest.mark.parametrize("share", [False, True])
def test_port_is_shared_only_if_it_was_asked_for(*, share: bool) -> None:
    """Two servers on one port would share its connections without a word."""
    assert of_server(share_port=share)["grpc.so_reuseport"] == int(share)


@pytest.mark.parametrize(
    ("age_s", "age_ms"), [(0.0, None), (0.0001, 1), (0.5, 500), (60.0, 60_000)]
)
def test_connections_have_an_age_if_they_are_given_one(age_s: float, age_ms: int | None) -> None:
    """In milliseconds, one at least; and no grace, so that no call in progress is cut off."""
    options = of_server(max_connection_age_s=age_s)
    assert options.get("grpc.max_connection_age_ms") == age_ms
    assert "grpc.max_connection_age_grace_ms" not in options


@pytest.mark.parametrize(
    ("host", "local"), [("localhost", True), ("::1", True), ("10.0.0.1", False), ("search", False)]
)
@pytest.mark.parametrize("via_proxy", [False, True])
def test_proxy_is_for_other_machines_and_only_if_told(
    host: str, *, local: bool, via_proxy: bool
) -> None:
    """A loopback address is reached directly, whatever the environment and the caller say."""
    through = of_client(host, via_proxy=via_proxy)["grpc.enable_http_proxy"]
    assert through == int(via_proxy and not local)


def test_client_spreads_its_calls_and_finds_a_server_again() -> None:
    """All addresses of a name, a connection of its own, and the options that all channels share."""
    options = of_client()
    assert options["grpc.service_config"] == '{"loadBalancingConfig": [{"round_robin": {}}]}'
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert channel_options().items() <= options.items()
