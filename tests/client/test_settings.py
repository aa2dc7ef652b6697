"""The settings of the clients' channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.client import Addresses, Client
from shoal.client import client as blocking
from shoal.client.aio import AsyncClient
from shoal.client.aio import client as asynchronous
from shoal.errors import ConfigError, ServiceUnavailable
from shoal.rpc.config import ChannelConfig


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"token": ""}, {}),
        ({"tls": True}, {"tls": True}),
        ({"tls_ca": Path("ca")}, {"tls": True, "tls_ca": Path("ca")}),
        ({"timeout_s": 3.0, "via_proxy": True}, {"timeout_s": 3.0, "via_proxy": True}),
    ],
)
def test_both_clients_reach_a_server_as_they_are_told(
    given: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority implies TLS; an empty token is none."""
    made: list[dict[str, ChannelConfig]] = []
    monkeypatch.setattr(blocking, "Connections", made.append)
    monkeypatch.setattr(asynchronous, "AsyncConnections", made.append)
    Client("a:1", **given)
    AsyncClient("a:1", **given)
    config = ChannelConfig("a:1", **expected)
    assert made == [{"embedder": config, "clusterer": config, "search": config}] * 2
    split = Addresses(clusterer="c:2", search="s:3")
    Client(split, **given)
    AsyncClient(split, **given)
    ours = {"clusterer": replace(config, address="c:2"), "search": replace(config, address="s:3")}
    assert made[2:] == [ours] * 2


@pytest.mark.parametrize("address", [Addresses(), "", "nowhere", Addresses(search="nowhere")])
def test_client_without_a_good_address_is_refused(make_client: Any, address: Any) -> None:
    """At once, and not by the first call."""
    with pytest.raises(ConfigError, match="address"):
        make_client(address)


def test_way_by_a_proxy_is_told(make_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection may be the proxy's: gRPC does not say."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with (
        make_client("192.0.2.1:7800", timeout_s=5, via_proxy=True) as client,
        pytest.raises(ServiceUnavailable) as caught,
    ):
        client.info()
    assert caught.value.message.endswith("(the way there is by the proxy of the environment)")
    assert str(caught.value) == caught.value.message
    with (
        make_client("127.0.0.1:9", timeout_s=5) as client,
        pytest.raises(ServiceUnavailable) as caught,
    ):
        client.info()
    assert "proxy" not in caught.value.message
