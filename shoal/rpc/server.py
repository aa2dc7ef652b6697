"""A gRPC server and its services, from the start to the end of the drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from shoal.errors import ConfigError, Unrecoverable
from shoal.rpc.address import Address, cannot_listen, require_free
from shoal.rpc.certificates import server_credentials
from shoal.rpc.config import ServerConfig
from shoal.rpc.health import HEALTH_SERVICE, Health, add_health
from shoal.rpc.interceptors import server_interceptors
from shoal.rpc.load import Load, give_back_regularly

__all__ = ["RpcServer", "ServerConfig", "Service", "run_until"]

_LOG = logging.getLogger(__name__)


class Service(Protocol):
    """A service as the server needs it. Its handlers raise ShoalError; the server translates."""

    @property
    def name(self) -> str:
        """The full gRPC name, ``shoal.v1.EmbedderService``."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to ``server``."""

    async def start(self) -> None:
        """Loads models and starts tasks, as needed. Until it returns, calls are refused."""

    async def ready(self) -> bool:
        """True when a call would be answered now. Asked about once a second.

        Unrecoverable ends the server; any other error only says why the service is not ready.
        """

    def drain(self) -> None:
        """Brings long calls to their end: no new work is wanted. Must not wait."""

    async def stop(self, grace_s: float) -> None:
        """Gives up tasks and resources within ``grace_s``. No call is in progress any more."""


class RpcServer:
    """Services on one port, with health, reflection, tokens, metrics and error translation.

    Call ``bind`` (optional: it takes the port, so that a service can be told it), ``add``
    (optional), ``start`` and ``stop`` once each, in this order, in one event loop.
    """

    def __init__(self, config: ServerConfig, services: Sequence[Service]) -> None:
        self._config = config
        self._services = list(services)
        self._waiting: set[str] = set()
        self._started: list[Service] = []
        self._health = Health(
            interval_s=config.health_interval_s, timeout_s=config.health_timeout_s
        )
        self._load = Load()
        self._giving_back: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self._answering = False
        self._address: Address | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @property
    def address(self) -> str:
        """``HOST:PORT`` as bound; before that, as configured."""
        return str(self._address) if self._address is not None else self._config.address

    async def bind(self) -> int:
        """Takes the port, without answering yet; a second call changes nothing.

        Returns:
            The port, which is a free one if the configuration says 0.

        Raises:
            ConfigError: as ``ServerConfig.validate``, or the port cannot be listened on.
        """
        if self._address is not None:
            return self._address.port
        wanted = self._config.validate()
        if not self._config.share_port:
            require_free(wanted)
        interceptors = server_interceptors(
            self._config.tokens,
            self._waiting,
            self._load,
            max_bytes=self._config.max_message_bytes,
        )
        server = grpc.aio.server(interceptors=interceptors, options=self._config.options())
        self._address = Address(wanted.host, _listen(server, self._config, wanted))
        self._server = server
        return self._address.port

    def add(self, service: Service) -> None:
        """Adds a service; only before ``start``."""
        self._services.append(service)

    def add_condition(self, name: str, holds: Callable[[], bool]) -> None:
        """Adds a health name that tells whether ``holds()``, and makes no service unready."""
        self._health.add_condition(name, holds)

    async def start(self) -> int:
        """Starts to answer: first health, then each service once it has started, in order.

        Returns:
            The port.

        Raises:
            ConfigError: as ``bind``.
            Exception: a service's ``start`` raised it; everything is stopped again.
        """
        port = await self.bind()
        server = self._server
        if server is None:
            msg = f"the server at {self.address} has been stopped: expected a new RpcServer"
            raise ConfigError(msg)
        self._waiting.update(service.name for service in self._services)
        for service in self._services:
            service.register(server)
        add_health(self._health, server)
        names = [service.name for service in self._services]
        reflection.enable_server_reflection(
            [*names, HEALTH_SERVICE, reflection.SERVICE_NAME], server
        )
        self._health.watch_over(self._services)
        await server.start()
        self._answering = True
        self._giving_back = asyncio.create_task(give_back_regularly(self._load), name="give-back")
        try:
            for service in self._services:
                self._started.append(service)
                await service.start()
                self._waiting.discard(service.name)
            await self._health.start()
        except BaseException:
            await self.stop()
            raise
        _LOG.info("listening", extra={"address": self.address, "services": names})
        return port

    async def wait(self) -> None:
        """Waits until the server has stopped."""
        # Not grpc's wait_for_termination: cancelling that one breaks the stop that follows.
        await self._stopped.wait()

    async def given_up(self) -> Unrecoverable | None:
        """The error of a service that will not be ready again; waits until there is one."""
        return await self._health.given_up()

    async def stop(self) -> None:
        """Stops: NOT_SERVING, drain, no new calls, a wait of ``grace_s``, then the services.

        Calls that outlast the grace are cancelled. Services stop in the reverse order of their
        start. A second call waits for the first.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="shoal-stop")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        try:
            await self._drain()
        finally:
            self._stopped.set()

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._config.grace_s
        if self._giving_back is not None:
            self._giving_back.cancel()
            await asyncio.gather(self._giving_back, return_exceptions=True)
        await self._health.stop()
        server, self._server = self._server, None
        if server is not None:
            if not self._answering:
                await server.start()  # gRPC gives a port back only from a server that ran
            for service in self._started:
                service.drain()
            await server.stop(self._config.grace_s)
        failures: list[Exception] = []
        for service in reversed(self._started):
            try:
                await service.stop(max(0.0, deadline - time.monotonic()))
            except Exception as exc:  # noqa: BLE001 - the others must be stopped too
                _LOG.exception("service did not stop cleanly", extra={"service": service.name})
                failures.append(exc)
        self._started.clear()
        _LOG.info("stopped", extra={"address": self.address})
        if failures:
            raise failures[0]


async def run_until(
    server: RpcServer,
    signalled: asyncio.Event,
    *,
    on_given_up: Callable[[], object] = lambda: None,
) -> None:
    """Waits until ``signalled`` is set or the started ``server`` ends; then stops it.

    ``on_given_up`` is called before the stop if a service has given up.

    Raises:
        Unrecoverable: a service will not be ready again. An error of the stop is only logged.
    """
    lost: Unrecoverable | None = None
    given_up = asyncio.create_task(server.given_up())
    ends = [asyncio.create_task(signalled.wait()), asyncio.create_task(server.wait()), given_up]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        lost = given_up.result() if given_up.done() else None
    finally:
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        if lost is not None:
            _LOG.error("giving up: %s", lost)
            on_given_up()
        try:
            await server.stop()
        except Exception:
            if lost is None:
                raise
            _LOG.exception("not stopped cleanly")
    if lost is not None:
        raise lost


def _listen(server: grpc.aio.Server, config: ServerConfig, wanted: Address) -> int:
    """The bound port."""
    target = str(Address(wanted.bind_host, wanted.port))
    credentials = _credentials(config)
    try:
        if credentials is None:
            port = server.add_insecure_port(target)
        else:
            port = server.add_secure_port(target, credentials)
    except RuntimeError as exc:
        raise cannot_listen(wanted, str(exc)) from exc
    if port == 0:
        raise cannot_listen(wanted, "address already in use")
    return port


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Certificate and key for gRPC; None without TLS.

    Raises:
        ConfigError: the files cannot be used.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    return server_credentials(config.tls_cert, config.tls_key)
