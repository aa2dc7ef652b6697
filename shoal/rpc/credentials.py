"""What a client adds to each call (token, deadline), and how a server checks the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio
from pydantic import SecretStr

from shoal.rpc.tokens import AUTHORIZATION

# What gRPC passes through interceptors has no public types: requests and calls are Any here.
_Continuation = Callable[[Any, Any], Any]


class _Details(NamedTuple):
    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _SyncDetails(_Details, grpc.ClientCallDetails):
    """Call details that can be made; gRPC offers only ones that can be read."""


class _Additions(NamedTuple):
    token: SecretStr | None
    timeout_s: float

    def metadata(self) -> list[tuple[str, str]]:
        if self.token is None:
            return []
        return [(AUTHORIZATION, f"Bearer {self.token.get_secret_value()}")]


# The stubs make these classes generic; the real ones are not, hence the ignored type-arg below.


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


# gRPC files an asyncio interceptor under one kind of call only: the first base class that it
# recognises. Hence four classes where the sync side needs one.


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
    """What a sync channel is wrapped in: the token on all calls, the deadline on unary ones."""
    return [_SyncInterceptor(_Additions(token, timeout_s))]


def aio_interceptors(token: SecretStr | None, timeout_s: float) -> list[Any]:
    """What an asyncio channel is given: the token on all calls, the deadline on unary ones."""
    additions = _Additions(token, timeout_s)
    interceptors: list[Any] = [_AioUnaryUnary(additions)]
    if token is not None:
        interceptors += [
            _AioUnaryStream(additions),
            _AioStreamUnary(additions),
            _AioStreamStream(additions),
        ]
    return interceptors
