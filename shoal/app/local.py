"""The composition roots: they put services, store and server together and run them.

``local_server`` is all of Shoal in one process over an embedded store (``shoal up``);
``background`` is the same in a thread (``shoal demo``, benchmarks, tests); ``serve`` is one
service over a store of its own choice (``shoal serve``). This module knows no command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from shoal.app.config import LocalConfig, ServeConfig
from shoal.app.data_directory import check_data_directory, scratch_in
from shoal.rpc.address import Address, parse_address
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.rpc.server import RpcServer, ServerConfig, Service, run_until
from shoal.rpc.signals import catch_signals
from shoal.store import Store, StoreConfig, open_store
from shoal.telemetry import start_metrics

if TYPE_CHECKING:
    import grpc.aio

_LOG = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Pause between two flushes of the embedded store.

A flush of much new data holds everything up for 100 to 200 ms. At this pause that costs 2 to 4
percent of an ingestion, and nothing on an idle server.
"""

WRITES = "shoal.writes"
"""The health name that is SERVING while the store accepts writes."""

_END_S = 10.0
"""Time that a process which has given up gets to end, beyond the grace of its calls."""

_YOUNG_OBJECTS = 10_000
"""New objects after which the garbage collector looks at the young ones."""

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
"""Hosts that stand for all of a machine's addresses, and where the machine itself reaches them."""


@contextlib.asynccontextmanager
async def local_server(config: LocalConfig) -> AsyncIterator[RpcServer]:
    """The three services on one port, started; stopped and closed on leaving.

    Raises:
        ConfigError: a setting is wrong, or the data directory is somebody else's; no port was
            opened.
        StoreLocked: another process owns the directory.
        ArtefactError, SelfTestFailed: the encoder is damaged.
    """
    # These import the runtimes, which only a process that serves pays for.
    from clusterer.config import ClustererConfig
    from clusterer.service import ClustererService
    from embedder.service import EmbedderService
    from search.config import SearchConfig
    from search.service import SearchService

    check_data_directory(config.data)
    async with _server_and_store(
        config.server,
        StoreConfig(path=config.store, min_free_mib=config.min_free_mib),
        metrics_address=config.metrics_address,
    ) as (server, store):
        log_config(config)
        embedder = EmbedderService(config.embedder, store)
        server.add(embedder)
        # From here on the store's lock says that this process owns the data directory.
        with scratch_in(config.data, config.scratch) as scratch:
            clusterer = ClustererConfig(scratch=scratch, heads=str(config.heads))
            server.add(ClustererService(clusterer, store))
            async with _channel_to(embedder, server, config.server) as channel:
                server.add(SearchService(SearchConfig(), store, channel))
                await server.start()
                flushing = asyncio.create_task(_flush_regularly(store), name="flush")
                try:
                    yield server
                finally:
                    flushing.cancel()
                    await asyncio.gather(flushing, return_exceptions=True)
                    await server.stop()


async def _flush_regularly(store: Store) -> None:
    """Writes the store out every FLUSH_S: all that a power cut can lose. A kill loses nothing."""
    while True:
        await asyncio.sleep(FLUSH_S)
        try:
            await asyncio.to_thread(store.flush)
        except Exception:  # noqa: BLE001 - whatever it was, the next flush may work
            _LOG.exception("flush failed")


@contextlib.asynccontextmanager
async def _server_and_store(
    config: ServerConfig, store_config: StoreConfig, *, metrics_address: str
) -> AsyncIterator[tuple[RpcServer, Store]]:
    """A server that is bound but not started, and an open store; metrics are served meanwhile."""
    config.validate()
    with contextlib.ExitStack() as stack:
        store = open_store(store_config)
        stack.callback(store.close)
        metrics = start_metrics(metrics_address, tokens=config.tokens)
        if metrics is not None:
            stack.callback(metrics.close)
            _LOG.info("metrics", extra={"port": metrics.port})
        server = RpcServer(config, [])
        server.add_condition(WRITES, lambda: not store.refusal)
        await server.bind()
        try:
            yield server, store
        finally:
            await server.stop()  # a second stop changes nothing


@contextlib.asynccontextmanager
async def _channel_to(
    embedder: Service, server: RpcServer, config: ServerConfig
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the embedder of this same process.

    A TLS certificate is for the name by which others call, and this process may not be able to
    resolve that name. With TLS the channel therefore goes to a listener of its own, on loopback
    only, behind a token that nobody else knows.
    """
    token = config.tokens[0] if config.tokens else None
    if config.tls_cert is None:
        async with open_aio_channel(
            ChannelConfig(address=_own_address(server.address), token=token)
        ) as channel:
            yield channel
        return
    token = SecretStr(secrets.token_urlsafe(32))
    inner = RpcServer(
        ServerConfig(address="127.0.0.1:0", tokens=(token,)), [_BorrowedService(embedder)]
    )
    await inner.start()
    try:
        async with open_aio_channel(ChannelConfig(inner.address, token)) as channel:
            yield channel
    finally:
        await inner.stop()


def _own_address(address: str) -> str:
    """Where this process reaches itself when it listens on ``address``."""
    bound = parse_address(address)
    return str(Address(_ANY_HOST.get(bound.host, bound.bind_host), bound.port))


class _BorrowedService:
    """A service that answers here too, while another server starts and stops it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def name(self) -> str:
        return self._service.name

    def register(self, server: grpc.aio.Server) -> None:
        self._service.register(server)

    async def start(self) -> None:
        """Nothing: its own server starts it."""

    async def ready(self) -> bool:
        return await self._service.ready()

    def drain(self) -> None:
        """Nothing: its own server drains it."""

    async def stop(self, grace_s: float) -> None:
        """Nothing: its own server stops it."""


async def run_local(config: LocalConfig, *, on_ready: Callable[[str], object]) -> None:
    """Runs all of Shoal until SIGTERM or SIGINT; ``on_ready`` gets the bound ``HOST:PORT``.

    Raises:
        Unrecoverable: a service has given up; the process ends soon, whatever hangs in it.
    """
    with catch_signals() as signalled:
        async with local_server(config) as server:
            await _run(server, signalled, on_ready, grace_s=config.server.grace_s)


async def _run(
    server: RpcServer,
    signalled: asyncio.Event,
    on_ready: Callable[[str], object],
    *,
    grace_s: float,
) -> None:
    """Runs a server that has started, until ``signalled``."""
    # Each point that is read makes objects that die young. By default the collector looks through
    # them after every 700, and again and again through what the start has left. That took a tenth
    # of a scan.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    if not signalled.is_set():
        on_ready(server.address)
    await run_until(server, signalled, on_given_up=lambda: _end_within(grace_s + _END_S))


def _end_within(seconds: float) -> None:
    """Ends this process after ``seconds``, even if a thread that hangs would keep it for ever."""
    end = threading.Timer(seconds, os._exit, (1,))
    end.daemon = True
    end.start()


@contextlib.contextmanager
def background(config: LocalConfig) -> Iterator[str]:
    """The ``HOST:PORT`` of all of Shoal in a thread of this process, which ends on leaving."""
    ready, leaving = threading.Event(), threading.Event()
    outcome: list[str | BaseException] = []
    wake: list[Callable[[], object]] = []

    async def scenario() -> None:
        leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        wake.append(lambda: loop.call_soon_threadsafe(leave.set))
        if leaving.is_set():  # before there was anything to wake
            return
        async with local_server(config) as server:
            outcome.append(server.address)
            ready.set()
            await leave.wait()

    def work() -> None:
        try:
            asyncio.run(scenario())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            outcome.append(exc)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="shoal-local")
    try:
        thread.start()
        ready.wait()
        first = outcome[0]
        if isinstance(first, BaseException):
            raise first
        yield first
    finally:
        # This happens also after an interrupt during the start. A thread that is left behind would
        # hold up the end of the process, or find the interpreter half gone.
        leaving.set()
        for call in wake:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has left
                call()
        if thread.is_alive():  # else it has not begun, and ends as soon as it does
            thread.join()


Build = Callable[[Store], AbstractAsyncContextManager[Service]]
"""Makes a service over a store; whatever else it opens it closes on leaving."""


async def serve(config: ServeConfig, build: Build, *, on_ready: Callable[[str], object]) -> None:
    """Runs one service until SIGTERM or SIGINT; ``on_ready`` gets the bound ``HOST:PORT``.

    Raises:
        Unrecoverable: the service has given up; the process ends soon, whatever hangs in it.
    """
    with catch_signals() as signalled:
        async with (
            _server_and_store(
                config.server, config.store, metrics_address=config.metrics_address
            ) as (server, store),
            build(store) as service,
        ):
            log_config(config)
            server.add(service)
            await server.start()
            await _run(server, signalled, on_ready, grace_s=config.server.grace_s)


def log_config(config: LocalConfig | ServeConfig) -> None:
    """Logs the configuration once; secrets are masked, since their type does not print them."""
    shown = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    _LOG.info("configuration", extra={"config": shown})
