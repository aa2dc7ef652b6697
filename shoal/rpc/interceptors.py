"""The interceptors around every handler.

Outermost first, as ``server_interceptors`` lists them:

1. ``CallInterceptor`` counts and times the call, reads its requests within their bounds, turns the
   handler's error into a status, and writes one log line for a call that failed.
2. ``TokenInterceptor`` refuses calls without a bearer token.
3. ``StartedInterceptor`` refuses calls to a service that has not started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from pydantic import SecretStr

from shoal.errors import ServiceUnavailable, ShoalError, Unauthenticated
from shoal.rpc.calls import Behaviour, observe
from shoal.rpc.health import HEALTH_SERVICE
from shoal.rpc.load import Load
from shoal.rpc.requests import Messages, RequestReader, encoded
from shoal.rpc.tokens import is_authorized

# Generic in the type stubs only, in messages that an interceptor never looks into.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Observes each call, translates its errors (``shoal.rpc.calls``), and bounds its messages."""

    def __init__(self, load: Load, *, max_bytes: int) -> None:
        """Prepares; ``load`` counts the calls, ``max_bytes`` bounds a message in each direction."""
        self._load = load
        self._max_bytes = max_bytes
        self._readers: dict[str, RequestReader[Any]] = {}

    async def intercept_service(  # type: ignore[override]  # the stub forgets unknown methods
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The method's handler, observed; None for a method that does not exist."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._wrap(handler, handler_call_details.method)

    def _wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler, observed, that takes and gives bytes."""
        # Only the behaviour of the method's own kind is set.
        kinds: tuple[tuple[Behaviour | None, Callable[..., Handler]], ...] = (
            (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        )
        behaviour, make = next((found, make) for found, make in kinds if found is not None)
        if handler.request_deserializer is not None:
            reader = self._reader(method, handler.request_deserializer)
            behaviour = _reading(behaviour, reader, streaming=handler.request_streaming)
        serialize = partial(
            encoded, serialize=handler.response_serializer, max_bytes=self._max_bytes
        )
        observed = observe(
            behaviour,
            method,
            streaming=handler.response_streaming,
            serialize=serialize,
            load=self._load,
        )
        return make(observed)

    def _reader(self, method: str, parse: Callable[[bytes], Any]) -> RequestReader[Any]:
        """The reader of the method's requests, which is made with its first call."""
        if method not in self._readers:
            self._readers[method] = RequestReader(
                method, parse, max_bytes=self._max_bytes, large=self._load.note_large
            )
        return self._readers[method]


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Demands one of the tokens, except for health checks: a kubelet has none."""

    def __init__(self, tokens: Sequence[SecretStr]) -> None:
        self._tokens = tuple(tokens)

    async def intercept_service(  # type: ignore[override]  # the stub forgets unknown methods
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The method's handler, or one that raises Unauthenticated."""
        handler = await continuation(handler_call_details)
        if handler is None or _service(handler_call_details) == HEALTH_SERVICE:
            return handler
        if is_authorized(handler_call_details.invocation_metadata or (), self._tokens):
            return handler
        msg = (
            "no valid bearer token: expected --token or SHOAL_TOKEN at the prompt, the metadata "
            "`authorization: Bearer TOKEN` in a call"
        )
        return _refusal(Unauthenticated(msg))


class StartedInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls to the services in ``waiting``, a set that the server keeps up to date."""

    def __init__(self, waiting: set[str]) -> None:
        self._waiting = waiting

    async def intercept_service(  # type: ignore[override]  # the stub forgets unknown methods
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The method's handler, or one that raises ServiceUnavailable."""
        handler = await continuation(handler_call_details)
        service = _service(handler_call_details)
        if handler is None or service not in self._waiting:
            return handler
        return _refusal(ServiceUnavailable(f"{service} is still starting; try again"))


def server_interceptors(
    tokens: Sequence[SecretStr], waiting: set[str], load: Load, *, max_bytes: int
) -> list[grpc.aio.ServerInterceptor[Any, Any]]:
    """All interceptors of a server, outermost first. Without tokens every caller is let in.

    ``waiting`` are the services that have not started. ``load`` counts the calls, and ``max_bytes``
    bounds one message in either direction.
    """
    guard = [TokenInterceptor(tokens)] if tokens else []
    return [CallInterceptor(load, max_bytes=max_bytes), *guard, StartedInterceptor(waiting)]


def _service(details: grpc.HandlerCallDetails) -> str:
    """``shoal.v1.SearchService`` of ``/shoal.v1.SearchService/Search``."""
    return details.method.rpartition("/")[0].removeprefix("/")


def _refusal(error: ShoalError) -> Handler:
    """A handler that raises ``error`` before it reads a request, whatever the method's kind."""

    async def refuse(requests: Any, context: Any) -> None:
        del requests, context
        raise error

    return grpc.stream_stream_rpc_method_handler(refuse)


def _reading(behaviour: Behaviour, reader: RequestReader[Any], *, streaming: bool) -> Behaviour:
    """``behaviour``, which takes messages, as one that takes their bytes."""
    if streaming:
        return lambda requests, context: behaviour(Messages(requests, reader), context)
    return lambda data, context: behaviour(reader.read(data), context)
