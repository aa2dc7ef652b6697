# ruff: noqa: INP001 - a script, of which the images have a copy
"""Asks a gRPC server whether it is ready, by grpc.health.v1; exits with 0 if it is.

Compose runs it as its health check. So does Kubernetes once TLS is on, because its own gRPC probes
speak plaintext only. Health asks for no token, so none is given here. Needs nothing of Shoal, only
two packages that Shoal's servers have anyway.

Example:
  python healthcheck.py 127.0.0.1:7801 --service shoal.v1.EmbedderService
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def ask(channel: grpc.Channel, service: str, *, timeout_s: float) -> str:
    """The name of the service's status: ``SERVING``, ``NOT_SERVING``. ``""`` is the whole server.

    Raises:
        grpc.RpcError: no answer in ``timeout_s``, or no such service.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def open_channel(address: str, *, tls_ca: Path | None, tls_name: str | None) -> grpc.Channel:
    """A channel to ``address``; with ``tls_ca`` encrypted, expecting a certificate of that CA.

    Args:
        address: ``HOST:PORT``.
        tls_ca: PEM file of the authority; None is plaintext.
        tls_name: The name in the certificate, where it is not the host of ``address``.

    Raises:
        OSError: ``tls_ca`` cannot be read.
    """
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if tls_ca is None:
        return grpc.insecure_channel(address, options=options)
    if tls_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_name))
    credentials = grpc.ssl_channel_credentials(root_certificates=tls_ca.read_bytes())
    return grpc.secure_channel(address, credentials, options=options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks once, and prints the answer in one line. 0: ready, 1: not ready, 2: wrong usage."""
    parser = argparse.ArgumentParser(description="Ask a gRPC server whether it is ready.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="full gRPC name; default: all of them")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="PEM file; default: plaintext")
    parser.add_argument("--tls-name", metavar="NAME", help="the name in the server's certificate")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    try:
        with open_channel(given.address, tls_ca=given.tls_ca, tls_name=given.tls_name) as channel:
            status = ask(channel, given.service, timeout_s=given.timeout)
    except grpc.RpcError as exc:
        status = f"no answer: {exc.code().name}"
    except OSError as exc:
        status = f"no answer: {exc}"
    sys.stdout.write(f"{given.address} {given.service or 'server'}: {status}\n")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
