"""The settings of the clients' channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.client import Client
from shoal.client import client as blocking
from shoal.client.aio import AsyncClient
from shoal.client.aio import client as asynchronous
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
    made: list[ChannelConfig] = []
    monkeypatch.setattr(blocking, "Connections", made.append)
    monkeypatch.setattr(asynchronous, "AsyncConnections", made.append)
    Client("a:1", **given)
    AsyncClient("a:1", **given)
    assert made == [ChannelConfig("a:1", **expected)] * 2
