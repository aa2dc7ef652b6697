"""``grpc.health.v1``, which tells whether each service says that it is ready.

A service is SERVING only while its last ``ready()`` returned True. The empty name stands for the
whole server, and is SERVING while all services are. A condition has a name of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.errors import NotFound, Unrecoverable
from shoal.rpc.metrics import READY

_LOG = logging.getLogger(__name__)

HEALTH_SERVICE = "grpc.health.v1.Health"
OVERALL = ""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Probed(Protocol):
    """A service that can be asked whether it is ready."""

    @property
    def name(self) -> str:
        """The full gRPC name, ``shoal.v1.EmbedderService``."""

    async def ready(self) -> bool:
        """True when a call would be answered now."""


@runtime_checkable
class Detailed(Protocol):
    """A service with health names of its own besides its name."""

    @property
    def details(self) -> Sequence[str]:
        """The details, known once the service has started.

        Each makes a health name, NAME/DETAIL, with the service's status. A caller that needs the
        detail probes for that name, which is unknown to a server without it.
        """


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """The health servicer and the task that keeps it current.

    After ``stop`` everything is NOT_SERVING for good, and open watches end, so that they do not
    hold up the drain.
    """

    def __init__(self, *, interval_s: float, timeout_s: float) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._services: list[Probed] = []
        self._conditions: dict[str, Callable[[], bool]] = {}
        self._ready: dict[str, bool] = {OVERALL: False}
        self._troubles: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._stopped = False
        self._given_up = asyncio.Event()
        self._lost: Unrecoverable | None = None
        self._poller: asyncio.Task[None] | None = None

    def watch_over(self, services: Sequence[Probed]) -> None:
        """Adds these services, as NOT_SERVING until they have been asked."""
        for service in services:
            self._services.append(service)
            self._ready[service.name] = False
            READY.labels(service.name).set(0)

    def add_condition(self, name: str, holds: Callable[[], bool]) -> None:
        """Adds a health name that is SERVING while ``holds()``; the whole server's ignores it."""
        self._conditions[name] = holds
        self._ready[name] = False

    async def start(self) -> None:
        """Asks every service once, then goes on asking in the background."""
        await self.refresh()
        self._poller = asyncio.create_task(self._poll(), name="shoal-health")

    async def stop(self) -> None:
        """Makes everything NOT_SERVING from now on; watches end."""
        self._stopped = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await self._publish(dict.fromkeys(self._ready, False))

    async def refresh(self) -> None:
        """Asks every service now. A service that fails to answer is not ready."""
        answers = await asyncio.gather(*(self._ask(service) for service in self._services))
        ready = {service.name: up for service, up in zip(self._services, answers, strict=True)}
        details = {
            f"{service.name}/{detail}": ready[service.name]
            for service in self._services
            if isinstance(service, Detailed)
            for detail in service.details
        }
        conditions = {name: holds() for name, holds in self._conditions.items()}
        if not self._stopped:
            await self._publish({**ready, **details, **conditions, OVERALL: all(answers)})

    async def given_up(self) -> Unrecoverable | None:
        """Why a service is lost for this process; waits until one is."""
        await self._given_up.wait()
        return self._lost

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.refresh()

    async def _ask(self, service: Probed) -> bool:
        """The service's answer; an error is logged when it is new, not at every poll."""
        trouble = ""
        up = False
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                up = await service.ready() is True
        except Unrecoverable as exc:
            trouble = exc.message
            self._lost = exc
            self._given_up.set()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the service is not ready
            late = limit.expired()
            trouble = (
                f"no answer in {self._timeout_s} s" if late else f"{type(exc).__name__}: {exc}"
            )
        if trouble and trouble != self._troubles.get(service.name):
            _LOG.warning(
                "readiness check failed", extra={"service": service.name, "error": trouble}
            )
        self._troubles[service.name] = trouble
        return up

    async def _publish(self, ready: dict[str, bool]) -> None:
        services = {service.name for service in self._services}
        async with self._changed:
            for name, up in ready.items():
                if name in services and up != self._ready[name]:
                    _LOG.info(
                        "service is %s", "ready" if up else "not ready", extra={"service": name}
                    )
                    READY.labels(name).set(int(up))
                self._ready[name] = up
            self._changed.notify_all()

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._ready:
            return _UNKNOWN
        return _SERVING if self._ready[name] else _NOT_SERVING

    async def Check(  # noqa: N802 - named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service; NOT_FOUND for a name that this server does not have."""
        del context
        if request.service not in self._ready:
            known = ", ".join(sorted(name for name in self._ready if name))
            msg = f"no service {request.service!r}: expected one of {known}"
            raise NotFound(msg)
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(  # noqa: N802 - named by the protocol
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        del request, context
        statuses = {
            name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._ready
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802 - named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and after each change, until the server stops."""
        del context
        sent: int | None = None
        while True:
            async with self._changed:
                while (status := self._status(request.service)) == sent and not self._stopped:
                    await self._changed.wait()
                last = self._stopped
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
            sent = status
            if last:
                return


def add_health(health: Health, server: grpc.aio.Server) -> None:
    """Registers the health service."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
