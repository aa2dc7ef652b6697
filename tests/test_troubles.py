"""gRPC's words for a connection that failed."""

from __future__ import annotations

import pytest

from shoal.troubles import Trouble, http_status_in, tls_reason_in, trouble_of

NEVER_UP = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:9: "
PICK_FIRST = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:9: "
TLS = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1: OPENSSL_internal:"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (NEVER_UP + "HTTP proxy returned response code 403", Trouble.PROXY),
        ("Received http2 header with status: 404", Trouble.WEB),
        (NEVER_UP + "Failed to connect to remote host: Connection refused", Trouble.REFUSED),
        (NEVER_UP + TLS + "CERTIFICATE_VERIFY_FAILED: unable to get", Trouble.UNTRUSTED),
        (NEVER_UP + "Custom verification: Hostname Verification Check failed.", Trouble.OTHER_NAME),
        (NEVER_UP + TLS + "WRONG_VERSION_NUMBER: Invalid", Trouble.NO_TLS),
        (NEVER_UP + TLS + "TLSV1_ALERT_PROTOCOL_VERSION", Trouble.TLS_FAILED),
        (NEVER_UP + "Handshake read failed (Socket closed)", Trouble.TLS_CLOSED),
        (NEVER_UP + "Handshake read failed (recvmsg:Connection reset by", Trouble.TLS_CLOSED),
        (NEVER_UP + "Handshake read failed (Endpoint closing)", Trouble.SILENT),
        (NEVER_UP + "connection attempt timed out before receiving SETTINGS", Trouble.SILENT),
        (NEVER_UP + "Failed parsing HTTP/2 (Expected SETTINGS frame", Trouble.NO_GRPC),
        (NEVER_UP + "(Trying to connect an http1.x server (HTTP status 400))", Trouble.NO_GRPC),
        (NEVER_UP + "Socket closed", Trouble.HUNG_UP),
        (PICK_FIRST + "recvmsg:Connection reset by peer (104)", Trouble.HUNG_UP),
        ("Stream removed (ping timeout)", Trouble.VANISHED),
        ("keepalive watchdog timeout", Trouble.VANISHED),
        ("Stream removed (Socket closed)", Trouble.CLOSED),
        ("Cancelling all calls", Trouble.CLOSED),
        ("GOAWAY received; Error code: 2; Debug Text: too many pings", Trouble.CLOSED),
        ("Stream removed (recvmsg:Connection reset by peer (104))", Trouble.RESET),
        ("sendmsg:Broken pipe (32)", Trouble.RESET),
        ("errors resolving x.invalid:1: Domain name not found", Trouble.NO_NAME),
        ("DNS resolution failed for x:1", Trouble.NO_NAME),
        (NEVER_UP + "Failed to connect to remote host: No route to host", Trouble.NO_WAY),
        (NEVER_UP + "Network is unreachable", Trouble.NO_WAY),
        (NEVER_UP + "Timed out", Trouble.NO_WAY),
        ("the queue is full", None),
        ("", None),
    ],
)
def test_words_of_grpc_tell_the_trouble(said: str, expected: Trouble | None) -> None:
    """As gRPC 1.7x wrote them in trials; a connection that was up is told from one never up."""
    assert trouble_of(said) is expected


def test_facts_are_taken_out_of_the_words() -> None:
    """The status of a proxy or web server, and OpenSSL's reason."""
    assert http_status_in("HTTP proxy returned response code 407") == "407"
    assert http_status_in("Received http2 header with status: 502") == "502"
    assert http_status_in("nothing") == "?"
    assert tls_reason_in(TLS + "TLSV1_ALERT_ACCESS_DENIED: x") == "TLSV1_ALERT_ACCESS_DENIED"
    assert tls_reason_in("odd words") == "odd words"
