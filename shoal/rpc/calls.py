"""One call, from arrival to end: its metrics, its error as a status, its log line.

Handlers are ``async def`` or async generators and simply raise ``ShoalError``. Anything else that
they raise is a bug: the caller gets INTERNAL and a request id, the log gets the traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never, TypeAlias

import grpc
import grpc.aio
from grpc_status import rpc_status

from shoal.errors import CallerError, Cancelled, DiskFull, OperatorError, ShoalError, Unsupported
from shoal.rpc.load import Load
from shoal.rpc.metrics import IN_FLIGHT, REQUESTS, SECONDS
from shoal.rpc.status import status_code, to_status

_LOG = logging.getLogger(__name__)

# A handler's behaviour: (request or request iterator, context) -> awaitable or async iterator.
Behaviour = Callable[[Any, Any], Any]
Serialize = Callable[[Any], bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only

REQUEST_ID = "x-request-id"
"""The metadata key of the caller's name for the call. If the caller sends none, the server makes
one up. A call that fails has it in its trailers."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,64}")  # it ends up in logs: nothing surprising

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def observe(
    behaviour: Behaviour, method: str, *, streaming: bool, serialize: Serialize, load: Load
) -> Callable[[Any, Context], Awaitable[Any]]:
    """``behaviour`` with its metrics, its errors translated, and a log line when it fails.

    Args:
        behaviour: The handler of one method.
        method: The full method name, ``/package.Service/Method``. It is a metric's label, so it
            must never be a name that a caller made up.
        streaming: True when the handler answers with a stream.
        serialize: Makes the bytes of an answer.
        load: Counts the call, or refuses it. Health checks are let in: a full server is alive.
    """
    run = _run_streaming if streaming else _run_unary

    async def observed(request: Any, context: Context) -> Any:
        began = time.perf_counter()
        in_flight = IN_FLIGHT.labels(method)
        in_flight.inc()
        code = grpc.StatusCode.UNKNOWN.name
        try:
            with contextlib.nullcontext() if method == HEALTH_CHECK else load.call(context.peer()):
                response = await run(behaviour, request, context, serialize)
            code = _code_set_by_handler(context)
        except asyncio.CancelledError:
            # The caller has gone, its deadline has passed, or the server is stopping.
            code = grpc.StatusCode.CANCELLED.name
            raise
        except grpc.aio.AbortError:
            code = _code_set_by_handler(context)
            raise
        except ShoalError as exc:
            del request  # gRPC keeps the error, and with it this frame, in a circle
            code = status_code(exc).name
            await _fail(context, method, exc)
        except NotImplementedError as exc:
            # The generated servicer raises it for a method that is missing.
            missing = Unsupported(f"this server does not implement {method}")
            del request
            code = status_code(missing).name
            missing.__cause__ = exc
            await _fail(context, method, missing)
        except Exception as exc:  # noqa: BLE001 - the edge: a bug must not leak to the caller
            del request
            code = grpc.StatusCode.INTERNAL.name
            await _fail_unexpectedly(context, method, exc)
        else:
            return response
        finally:
            in_flight.dec()
            REQUESTS.labels(method, code).inc()
            SECONDS.labels(method).observe(time.perf_counter() - began)

    return observed


async def _run_unary(
    behaviour: Behaviour, request: Any, context: Context, serialize: Serialize
) -> bytes:
    answer = behaviour(request, context)
    return serialize(await answer if inspect.isawaitable(answer) else answer)


async def _run_streaming(
    behaviour: Behaviour, request: Any, context: Context, serialize: Serialize
) -> None:
    answer = behaviour(request, context)
    if inspect.isawaitable(answer):  # a refusal: it raises
        await answer
        return
    responses: AsyncIterator[Any] = answer
    async with contextlib.AsyncExitStack() as stack:
        if inspect.isasyncgen(responses):
            # The generator's finally blocks run now, in this task, not when it is collected.
            await stack.enter_async_context(contextlib.aclosing(responses))
        async for response in responses:
            await context.write(serialize(response))


async def _fail(context: Context, method: str, error: ShoalError) -> Never:
    """Ends the call with the error's status, and logs it at a level that fits who must act."""
    request_id = _request_id(context)
    facts = {"method": method, "code": status_code(error).name, "reason": error.reason}
    level = logging.WARNING
    if isinstance(error, (CallerError, Cancelled)):
        level = logging.INFO
    elif isinstance(error, DiskFull):
        pass  # the store has told the operator, and the disk has no room for a trace of each call
    elif isinstance(error, OperatorError) or type(error) is ShoalError:
        level = logging.ERROR
    extra = {**facts, "request_id": request_id, "error": error.message}
    _LOG.log(level, "call failed", extra=extra, exc_info=error if level == logging.ERROR else None)
    await _abort(context, error, request_id, cause=error)


async def _fail_unexpectedly(context: Context, method: str, error: Exception) -> Never:
    """Ends the call with INTERNAL; the error itself is in the log and only there."""
    request_id = _request_id(context)
    hidden = ShoalError(f"internal error; the server's log has it as request {request_id}")
    facts = {"method": method, "code": status_code(hidden).name, "reason": hidden.reason}
    _LOG.error("call failed", extra={**facts, "request_id": request_id}, exc_info=error)
    await _abort(context, hidden, request_id, cause=error)


async def _abort(
    context: Context, error: ShoalError, request_id: str, *, cause: Exception
) -> Never:
    """Ends the call. ``cause`` is what was raised; the frames of its traceback hold the request."""
    cause.__traceback__ = cause.__context__ = cause.__cause__ = None
    status = rpc_status.to_status(to_status(error))
    trailers = (*status.trailing_metadata, (REQUEST_ID, request_id))
    await context.abort(status.code, status.details, trailers)
    raise error  # not reached: abort raises


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID_FORM.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _code_set_by_handler(context: Context) -> str:
    """OK, unless the handler said otherwise to the context."""
    code: Any = context.code()  # a number where the stubs say StatusCode
    number = code.value[0] if isinstance(code, grpc.StatusCode) else (code or 0)
    return _CODES.get(number, grpc.StatusCode.UNKNOWN.name)
