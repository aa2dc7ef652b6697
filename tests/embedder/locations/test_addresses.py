"""Connections to public addresses only: which addresses are, and what is connected to."""

from __future__ import annotations

import pytest
from places import PAGES, allowing, kinds, read
from websites import WebServer, web_server

from embedder.locations.addresses import is_public
from embedder.locations.config import LocationsConfig
from embedder.locations.slots import Slots
from shoal.errors import Unsupported


def test_web_host_with_a_private_address_is_refused(web: WebServer) -> None:
    """An allowed name that resolves to this machine is not connected to."""
    answers = read(allowing(web, allow_private=False), web.url("/a.png"))
    assert kinds(answers) == [Unsupported]
    assert not web.asked


def test_web_host_that_resolves_to_public_and_private_is_refused(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second, private address spoils the first: which one is connected to is no matter."""

    async def both(_names: Slots, _host: str, _port: int) -> list[str]:
        return ["93.184.215.14", "127.0.0.1"]

    monkeypatch.setattr("embedder.locations.addresses._resolve", both)
    answers = read(allowing(web, allow_private=False), web.url("/a.png"))
    assert kinds(answers) == [Unsupported]


def test_web_connects_to_the_addresses_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is not resolved again, and the next address is tried where one does not answer."""

    async def resolved(_names: Slots, _host: str, _port: int) -> list[str]:
        return ["::1", "127.0.0.1"]  # nobody listens on the first

    monkeypatch.setattr("embedder.locations.addresses._resolve", resolved)
    with web_server(PAGES) as web:
        hosts = (f"images.invalid:{web.port}",)
        config = LocationsConfig(hosts=hosts, allow_http=True, allow_private=True)
        assert read(config, web.url("/a.png", host="images.invalid")) == [b"picture"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.215.14", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("no address", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:  # noqa: FBT001
    """Only what is reachable from everywhere is public, through whatever notation."""
    assert is_public(address) is public
