"""The trouble with a connection, read from the words with which gRPC reports it. Pure."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final


class Trouble(Enum):
    """Why a call found no server, or lost it."""

    PROXY = auto()
    """A proxy on the way refused to connect."""
    WEB = auto()
    """A web server or a proxy answered in HTTP, which gRPC is not."""
    REFUSED = auto()
    """Nobody listens on the port."""
    UNTRUSTED = auto()
    """The server's certificate is of no trusted authority."""
    OTHER_NAME = auto()
    """The server's certificate is for another name."""
    NO_TLS = auto()
    """We speak TLS, and the server does not."""
    TLS_CLOSED = auto()
    """The server hung up on our first words of TLS."""
    TLS_FAILED = auto()
    """Both speak TLS, and do not agree."""
    NO_GRPC = auto()
    """Something else than a gRPC server answers on the port."""
    SILENT = auto()
    """The port is open, and nobody answers."""
    HUNG_UP = auto()
    """The server hung up on our first words, which were not TLS."""
    VANISHED = auto()
    """The connection was up, and its other end stopped to answer."""
    CLOSED = auto()
    """The connection was up, and was closed during the call."""
    RESET = auto()
    """The connection was up, and was reset during the call."""
    NO_NAME = auto()
    """The name of the host cannot be resolved."""
    NO_WAY = auto()
    """No packet reaches the host."""


_NEVER_UP = r"(?:all backends failing|connect to all addresses).*"
"""Round robin's and pick first's words for a connection that was never up."""

_SIGNS: Final = (
    (r"HTTP proxy returned response code", Trouble.PROXY),
    (r"Received http2 header with status", Trouble.WEB),
    (r"Connection refused", Trouble.REFUSED),
    (r"CERTIFICATE_VERIFY_FAILED", Trouble.UNTRUSTED),
    (r"Hostname Verification Check failed", Trouble.OTHER_NAME),
    (r"WRONG_VERSION_NUMBER", Trouble.NO_TLS),
    (r"before receiving SETTINGS|Handshake read failed \(Endpoint closing\)", Trouble.SILENT),
    (r"Handshake read failed", Trouble.TLS_CLOSED),
    (r"Tls handshake failed", Trouble.TLS_FAILED),
    (r"http1\.x server|Failed parsing HTTP/2", Trouble.NO_GRPC),
    (r"(?:ping|keepalive watchdog) timeout", Trouble.VANISHED),
    (r"errors resolving|DNS resolution failed|Domain name not found", Trouble.NO_NAME),
    (r"No route to host|[Uu]nreachable|[Tt]imed out|connection attempt timed", Trouble.NO_WAY),
    (_NEVER_UP + r"(?:Socket closed|reset by peer|Broken pipe)", Trouble.HUNG_UP),
    (r"reset by peer|Broken pipe", Trouble.RESET),
    (r"Socket closed|Cancelling all calls|GOAWAY", Trouble.CLOSED),
)
"""Patterns of gRPC's words, the most telling first: the last ones are in many texts."""


def trouble_of(said: str) -> Trouble | None:
    """The trouble that gRPC's words tell of; None for words that are not known."""
    return next((found for sign, found in _SIGNS if re.search(sign, said, re.DOTALL)), None)


def http_status_in(said: str) -> str:
    """The HTTP status in gRPC's words for ``PROXY`` and ``WEB``, as it is written there."""
    found = re.search(r"(?:response code|with status:?) (\d+)", said)
    return found[1] if found else "?"


def tls_reason_in(said: str) -> str:
    """The reason in gRPC's words for ``TLS_FAILED``: OpenSSL's, or all of the words."""
    found = re.search(r"OPENSSL_internal:(\w+)", said)
    return found[1] if found else said
