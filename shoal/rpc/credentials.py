"""The interceptors of a client, which add a token and a deadline to each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio
from pydantic import SecretStr

from shoal.rpc.tokens import AUTHORIZATION

# Requests and calls are Any here: gRPC has no public types for what it gives to interceptors.
_Continuation = Callable[[Any, Any], Any]


class _Details(NamedTuple):
    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _SyncDetails(_Details, grpc.ClientCallDetails):
    """Call details that can be made; gRPC's own can only be read."""


class _Additions(NamedTuple):
    token: SecretStr | None
    timeout_s: float

    def metadata(self) -> list[tuple[str, str]]:
        if self.token is None:
            return []
        return [(AUTHORIZATION, f"Bearer {self.token.get_secret_value()}")]


# These classes are generic in the type stubs only, hence the ignored type-arg below.


class _SyncInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds token and deadline to the calls of a sync channel."""

    def __init__(self, additions: _Additions) -> None:
        self._additions = additions

    def intercept_unary_unary(self, continuation: _Continuation, details: Any, request: Any) -> Any:
        timeout = self._additions.timeout_s if details.timeout is None else details.timeout
        return continuation(self._extend(details, timeout), request)

    def intercept_unary_stream(
        self, continuation: _Continuation, details: Any, request: Any
    ) -> Any:
        return continuation(self._extend(details, details.timeout), request)

    def intercept_stream_unary(
        self, continuation: _Continuation, details: Any, requests: Any
    ) -> Any:
        return continuation(self._extend(details, details.timeout), requests)

    def intercept_stream_stream(
        self, continuation: _Continuation, details: Any, requests: Any
    ) -> Any:
        return continuation(self._extend(details, details.timeout), requests)

    def _extend(self, details: Any, timeout: float | None) -> grpc.ClientCallDetails:
        return _SyncDetails(
            details.method,
            timeout,
            [*(details.metadata or ()), *self._additions.metadata()],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class _AioInterceptor:
    def __init__(self, additions: _Additions) -> None:
        self._additions = additions

    def _extend(self, details: Any, timeout: float | None) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._additions.metadata())
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


# gRPC uses an asyncio interceptor for one kind of call only, by the first base class that it
# recognises. Hence four classes here and one for sync channels.


class _AioUnaryUnary(_AioInterceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_unary(
        self, continuation: _Continuation, details: Any, request: Any
    ) -> Any:
        timeout = self._additions.timeout_s if details.timeout is None else details.timeout
        return await continuation(self._extend(details, timeout), request)


class _AioUnaryStream(_AioInterceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_stream(
        self, continuation: _Continuation, details: Any, request: Any
    ) -> Any:
        return await continuation(self._extend(details, details.timeout), request)


class _AioStreamUnary(_AioInterceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_unary(
        self, continuation: _Continuation, details: Any, requests: Any
    ) -> Any:
        return await continuation(self._extend(details, details.timeout), requests)


class _AioStreamStream(_AioInterceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_stream(
        self, continuation: _Continuation, details: Any, requests: Any
    ) -> Any:
        return await continuation(self._extend(details, details.timeout), requests)


def sync_interceptors(token: SecretStr | None, timeout_s: float) -> list[Any]:
    """The interceptors of a sync channel: the token on all calls, the deadline on unary ones."""
    return [_SyncInterceptor(_Additions(token, timeout_s))]


def aio_interceptors(token: SecretStr | None, timeout_s: float) -> list[Any]:
    """As ``sync_interceptors``, for an asyncio channel."""
    additions = _Additions(token, timeout_s)
    interceptors: list[Any] = [_AioUnaryUnary(additions)]
    if token is not None:
        interceptors += [
            _AioUnaryStream(additions),
            _AioStreamUnary(additions),
            _AioStreamStream(additions),
        ]
    return interceptors
