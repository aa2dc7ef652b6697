"""Reading addresses, and what may be listened on."""

from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.rpc.address import Address, parse_address, require_free, require_token


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7800", "127.0.0.1", 7800),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("embedder.shoal.svc:7800", "embedder.shoal.svc", 7800),
    ],
)
def test_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    """HOST:PORT and [IPV6]:PORT are read, and ``str`` gives the same text again."""
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7800",
        ":7800",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "::1:7800",
        "h:1²",
        "http://host:7800",
        "[]:7800",
        "host: 7800",
    ],
)
def test_address_malformed_is_refused_with_the_text(text: str) -> None:
    """What is not HOST:PORT is a ConfigError that repeats it."""
    with pytest.raises(ConfigError, match="expected") as caught:
        parse_address(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_address_loopback_needs_no_token(host: str) -> None:
    """Only this machine can reach these."""
    require_token(Address(host, 7800), ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example", "localhost.example"])
def test_address_reachable_needs_a_token(host: str) -> None:
    """Anything else, names included, is refused without a token and accepted with one."""
    address = Address(host, 7800)
    with pytest.raises(ConfigError, match="reachable from other machines: expected a bearer token"):
        require_token(address, ())
    require_token(address, [SecretStr("t")])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "example"])
def test_address_is_listened_on_as_it_is_written(host: str) -> None:
    """Only ``localhost`` means something else: 127.0.0.1, and not ::1 as well."""
    assert Address(host, 1).bind_host == host
    assert Address("localhost", 1).bind_host == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_address_taken_says_so(host: str) -> None:
    """A port that somebody listens on is refused with the system's reason, until it is free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(host, listener.getsockname()[1])
        with pytest.raises(ConfigError) as caught:
            require_free(address)
        assert caught.value.message == f"cannot listen on {address}: address already in use"
    require_free(address)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_of_another_machine_cannot_be_listened_on(host: str) -> None:
    """A host that is not this machine is a ConfigError, not a traceback."""
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: "):
        require_free(Address(host, 0))
