"""``shoal serve``: one service as a process of its own, over a Qdrant server.

Each service is imported by its own command: a search pod does not pay for ONNX Runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from clusterer.config import ClustererConfig
from embedder.config import EmbedderConfig
from search.config import EmbedderAddress, SearchConfig
from shoal.app.cli.command import Group
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.option import option
from shoal.app.cli.options.reporting import Reporting
from shoal.app.config import ServeConfig
from shoal.rpc.address import Address, parse_address
from shoal.telemetry import OFF

if TYPE_CHECKING:
    from shoal.app.local import Build
    from shoal.rpc.config import ServerConfig
    from shoal.rpc.server import Service
    from shoal.store import Store


def _serving(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of a process that serves, as ``config`` and ``reporting``."""

    @configured(ServeConfig, as_="config", required={"url"})
    @configured(Reporting, as_="reporting")
    @functools.wraps(function)
    def command(*, config: ServeConfig, reporting: Reporting, **values: Any) -> Any:
        reporting.begin(config.server)
        return function(config=config, reporting=reporting, **values)

    return command


def _run(config: ServeConfig, reporting: Reporting, *, name: str, build: Build) -> None:
    from shoal.app.local import serve as run_service

    what = f"{name}, {config.store.url}"
    asyncio.run(
        run_service(config, build, on_ready=lambda address: reporting.announce(address, what=what))
    )


@click.group(cls=Group)
def serve() -> None:
    """Run one service over a Qdrant server.

    Example:
      shoal serve embedder --store-url http://qdrant:6333 --address 127.0.0.1:7801
    """


@serve.command()
@option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Processes that share the port, each with its own copy of the models. For small models "
    "on a GPU, where one Python process is slower than they are. Metrics of the next process are "
    "on the next port.",
)
@configured(EmbedderConfig, as_="embedder")
@_serving
def embedder(
    *, processes: int, embedder: EmbedderConfig, config: ServeConfig, reporting: Reporting
) -> None:
    """Turn images into vectors and store them.

    Example:
      shoal serve embedder --store-url http://qdrant:6333 --address 127.0.0.1:7801
    """
    if processes == 1:
        _run(config, reporting, name="embedder", build=functools.partial(_embedder, embedder))
        return
    from shoal.app.processes import run_processes

    work = functools.partial(
        _one_embedder, embedder=embedder.among(processes), config=config, reporting=reporting
    )
    what = f"embedder, {processes} processes, {config.store.url}"
    run_processes(
        processes,
        work,
        config.server,
        on_ready=lambda address: reporting.announce(address, what=what),
    )


@contextlib.asynccontextmanager
async def _embedder(config: EmbedderConfig, opened: Store) -> AsyncIterator[Service]:
    from embedder.service import EmbedderService

    yield EmbedderService(config, opened)


def _one_embedder(
    index: int,
    server: ServerConfig,
    on_ready: Callable[[str], object],
    *,
    embedder: EmbedderConfig,
    config: ServeConfig,
    reporting: Reporting,
) -> None:
    """The work of one of several embedder processes."""
    from shoal.app.local import serve as run_service

    reporting.log(worker=index)
    metrics = config.metrics_address
    if metrics != OFF and (wanted := parse_address(metrics)).port:
        metrics = str(Address(wanted.host, wanted.port + index))
    config = replace(config, server=server, metrics_address=metrics)
    asyncio.run(run_service(config, functools.partial(_embedder, embedder), on_ready=on_ready))


@serve.command()
@configured(ClustererConfig, as_="clusterer")
@_serving
def clusterer(*, clusterer: ClustererConfig, config: ServeConfig, reporting: Reporting) -> None:
    """Group the stored vectors; run one of these per store.

    Gates hold for runs, scheduled ones too, that bring none of their own.

    Example:
      shoal serve clusterer --store-url http://qdrant:6333 --address 127.0.0.1:7802
    """

    @contextlib.asynccontextmanager
    async def build(opened: Store) -> AsyncIterator[Service]:
        from clusterer.service import ClustererService

        yield ClustererService(clusterer, opened)

    _run(config, reporting, name="clusterer", build=build)


@serve.command()
@configured(EmbedderAddress, as_="embedder")
@configured(SearchConfig, as_="search")
@_serving
def search(
    *, search: SearchConfig, embedder: EmbedderAddress, config: ServeConfig, reporting: Reporting
) -> None:
    """Answer queries: nearest images, clusters, points.

    Example:
      shoal serve search --store-url http://qdrant:6333 --embedder-address embedder:7801
    """
    channel_config = embedder.channel()
    channel_config.validate()

    @contextlib.asynccontextmanager
    async def build(opened: Store) -> AsyncIterator[Service]:
        from search.service import SearchService
        from shoal.rpc.channel import open_aio_channel

        async with open_aio_channel(channel_config) as channel:
            yield SearchService(search, opened, channel)

    _run(config, reporting, name="search", build=build)
