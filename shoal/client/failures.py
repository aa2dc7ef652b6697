"""Failures of calls as errors of Shoal's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from shoal.client.calls import Service
from shoal.client.settings import Channels
from shoal.errors import InvalidArgument, ServiceUnavailable
from shoal.rpc.status import from_rpc_error


class Closing:
    """Whether a client was closed."""

    def __init__(self) -> None:
        self.closed = False

    def check_open(self) -> None:
        """Raises InvalidArgument after the client was closed."""
        if self.closed:
            raise InvalidArgument("the client is closed: expected calls before close()")


@contextlib.contextmanager
def answering(channels: Channels, service: Service) -> Iterator[None]:
    """Raises the failure of a call to ``service`` as an error of Shoal's."""
    try:
        yield
    except grpc.RpcError as exc:
        config = channels[service]
        error = from_rpc_error(exc, config.address, service=service)
        if config.via_proxy and isinstance(error, ServiceUnavailable):
            error.message += " (the way there is by the proxy of the environment)"
            error.args = (error.message,)
        raise error from exc


@contextlib.contextmanager
def asking(closing: Closing) -> Iterator[None]:
    """Raises an error in making a request as an error of Shoal's."""
    try:
        yield
    except ValueError as exc:
        closing.check_open()  # gRPC raises ValueError too, after the channel was closed
        # Protobuf raises it for a number that is out of range and a text that is not Unicode.
        raise InvalidArgument(f"request: {exc}") from exc
