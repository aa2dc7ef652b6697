"""Sentences for whoever calls a Shoal server and does not reach it, or loses it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Final

from shoal.troubles import Trouble, http_status_in, tls_reason_in, trouble_of

_NOT_REACHED: Final[Mapping[Trouble, str]] = {
    Trouble.REFUSED: "connection refused",
    Trouble.UNTRUSTED: "its certificate is not trusted; name its authority with --tls-ca",
    Trouble.OTHER_NAME: "its certificate is for another name; use the name that it was made for",
    Trouble.NO_TLS: "it does not speak TLS; leave --tls out",
    Trouble.TLS_CLOSED: (
        "it closed the connection when TLS began; if it does not speak TLS, leave --tls out"
    ),
    Trouble.NO_GRPC: (
        "what answers there does not speak gRPC; is it the port of its metrics, or of another "
        "program?"
    ),
    Trouble.SILENT: (
        "it takes the connection and does not answer; it may be stuck, or be another program"
    ),
    Trouble.HUNG_UP: (
        "it closed the connection before a first answer; if it speaks TLS, --tls is needed"
    ),
    Trouble.NO_NAME: "the name of its host cannot be resolved",
    Trouble.NO_WAY: "its host does not answer",
}
_LOST: Final[Mapping[Trouble, str]] = {
    Trouble.CLOSED: (
        "the connection was closed during the call; the server was stopped or killed, or "
        "something on the way closed it"
    ),
    Trouble.RESET: (
        "the connection was reset during the call; the server was killed or crashed, or something "
        "on the way cut it"
    ),
    Trouble.VANISHED: (
        "the other end of the connection answers no more; the server's machine or the network "
        "failed without a word"
    ),
}


def unreachable(said: str, address: str) -> str:
    """The sentence for a call to ``address`` that gRPC says failed on its connection."""
    found = trouble_of(said)
    if found is not None and found in _LOST:
        return f"lost the Shoal server at {address}: {_LOST[found]}"
    reason = _reason(found, said)
    if found is Trouble.REFUSED:
        reason += _remedy(address)
    return f"cannot reach a Shoal server at {address}: {reason}"


def _remedy(address: str) -> str:
    """What whoever was refused at ``address`` can do."""
    if other := _listener(address):
        return (
            f" at one of the addresses of localhost, and what listens at {other} does not answer "
            f"as it should; give {other} to be told why"
        )
    return "; start one with `shoal up`"


def _listener(address: str) -> str:
    """The address in numbers that takes connections to a port of ``localhost``; empty for none.

    That name has two addresses, and gRPC tells the failure of one of them only.
    """
    host, _, port = address.rpartition(":")
    if host != "localhost" or not port.isdigit():
        return ""
    for each in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError), socket.create_connection((each, int(port)), timeout=0.5):
            return f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
    return ""


def web_answer(said: str, address: str) -> str:
    """The sentence for an answer in HTTP instead of gRPC; empty if ``said`` is about none."""
    if trouble_of(said) is not Trouble.WEB:
        return ""
    return (
        f"a web server or proxy answers at {address}, with HTTP {http_status_in(said)}: expected "
        "a Shoal server, or a proxy that passes gRPC on"
    )


def reason_of(said: str) -> str:
    """Why a server was not reached, or was lost, without its name."""
    found = trouble_of(said)
    return _LOST[found] if found is not None and found in _LOST else _reason(found, said)


def _reason(found: Trouble | None, said: str) -> str:
    if found is Trouble.PROXY:
        status = http_status_in(said)
        why = "which asks for a name and a password" if status == "407" else "a refusal"
        return (
            f"the proxy that https_proxy or http_proxy names answered HTTP {status}, {why}; "
            "without --via-proxy it is left out"
        )
    if found is Trouble.TLS_FAILED:
        return f"the TLS handshake failed: {tls_reason_in(said)}"
    return said if found is None else _NOT_REACHED.get(found, said)
