"""``shoal serve``: one service as a process of its own, over a Qdrant server.

Each service is imported by its own command: a search pod does not pay for ONNX Runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from embedder.config import EmbedderConfig
from shoal.app.cli.command import Group
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.gates import GATES
from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.app.cli.options.server import Hosting, hosting_options
from shoal.app.local import Build, ServeConfig
from shoal.app.local import serve as run_service
from shoal.app.processes import run_processes
from shoal.rpc.address import Address, parse_address
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.rpc.server import ServerConfig, Service
from shoal.store import Store, StoreConfig
from shoal.telemetry import OFF, configure_logging

_STORE: tuple[Decorator, ...] = (
    option("--store-url", required=True, metavar="URL", help="Qdrant server, http(s)://HOST:6333."),
    option("--store-api-key", metavar="KEY", help="The Qdrant server's API key."),
    option(
        "--store-grpc-port",
        type=click.IntRange(1, 65535),
        default=6334,
        metavar="PORT",
        help="The Qdrant server's gRPC port.",
    ),
)


def _serving(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a store and a server; it gets ``hosting`` and ``store``."""

    @hosting_options(default_metrics="127.0.0.1:9464", default_format="json")
    @functools.wraps(function)
    def command(
        *, store_url: str, store_api_key: str | None, store_grpc_port: int, **options: Any
    ) -> Any:
        key = SecretStr(store_api_key) if store_api_key else None
        store = StoreConfig(url=store_url, api_key=key, grpc_port=store_grpc_port)
        return function(**options, store=store)

    return decorate(command, _STORE)


def _gated(function: Callable[..., Any]) -> Callable[..., Any]:
    return decorate(function, GATES)


def _run(hosting: Hosting, store: StoreConfig, *, name: str, build: Build) -> None:
    config = ServeConfig(hosting.server, store, hosting.metrics_address)
    asyncio.run(
        run_service(
            config,
            build,
            on_ready=lambda address: hosting.announce(address, what=f"{name}, {store.url}"),
        )
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
    *, processes: int, embedder: EmbedderConfig, hosting: Hosting, store: StoreConfig
) -> None:
    """Turn images into vectors and store them.

    Example:
      shoal serve embedder --store-url http://qdrant:6333 --address 127.0.0.1:7801
    """
    if processes == 1:
        _run(hosting, store, name="embedder", build=functools.partial(_embedder, embedder))
        return
    run_processes(
        processes,
        functools.partial(
            _one_embedder, embedder=embedder.among(processes), hosting=hosting, store=store
        ),
        hosting.server,
        on_ready=lambda address: hosting.announce(
            address, what=f"embedder, {processes} processes, {store.url}"
        ),
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
    hosting: Hosting,
    store: StoreConfig,
) -> None:
    """The work of one of several embedder processes."""
    configure_logging(hosting.log_level, hosting.log_format, worker=index)
    metrics = hosting.metrics_address
    if metrics != OFF and (wanted := parse_address(metrics)).port:
        metrics = str(Address(wanted.host, wanted.port + index))
    config = ServeConfig(server, store, metrics)
    asyncio.run(run_service(config, functools.partial(_embedder, embedder), on_ready=on_ready))


@serve.command()
@option(
    "--heads",
    default="",
    metavar="DIR|URL",
    help="Where `shoal train` keeps heads, for --method scp.",
)
@option(
    "--sample-size",
    type=click.IntRange(1),
    default=50_000,
    metavar="N",
    help="Most points that a fit looks at, unless a request says otherwise.",
)
@option(
    "--max-sample-size",
    type=click.IntRange(1),
    default=1_000_000,
    metavar="N",
    help="Most points that a request may say: with --sample-size, the bound of a run's memory.",
)
@option(
    "--kept-runs",
    type=click.IntRange(1),
    default=1_000,
    metavar="N",
    help="Records of runs to keep of each clustering; older ones go, but for those in use.",
)
@option(
    "--continued-jaccard",
    type=click.FloatRange(0.5, 1),
    default=0.5,
    metavar="SHARE",
    help="Least overlap (Jaccard) with an old cluster by which a new one keeps its id.",
)
@option(
    "--related-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    metavar="SHARE",
    help="Least share of a cluster's points for which another is named in its lineage.",
)
@_gated
@_serving
def clusterer(
    *,
    heads: str,
    sample_size: int,
    max_sample_size: int,
    kept_runs: int,
    continued_jaccard: float,
    related_share: float,
    hosting: Hosting,
    store: StoreConfig,
    **gates: float | None,
) -> None:
    """Group the stored vectors; run one of these per store.

    Gates hold for runs, scheduled ones too, that bring none of their own.

    Example:
      shoal serve clusterer --store-url http://qdrant:6333 --address 127.0.0.1:7802
    """
    from clusterer.config import ClustererConfig, MatchThresholds
    from clusterer.service import ClustererService
    from shoal.values import Gates

    config = ClustererConfig(
        heads=heads,
        sample_size=sample_size,
        max_sample_size=max_sample_size,
        kept_runs=kept_runs,
        gates=Gates(**gates),
        matching=MatchThresholds(continued_jaccard, related_share),
    )

    @contextlib.asynccontextmanager
    async def build(opened: Store) -> AsyncIterator[Service]:
        yield ClustererService(config, opened)

    _run(hosting, store, name="clusterer", build=build)


@serve.command()
@option(
    "--embedder-address",
    default="localhost:7801",
    metavar="HOST:PORT",
    help="The embedder service, for queries by image and text.",
)
@option("--embedder-token", metavar="TOKEN", help="The embedder's bearer token.")
@option(
    "--embedder-tls-ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM file of the authority to verify the embedder by; without it, no TLS.",
)
@_serving
def search(
    *,
    embedder_address: str,
    embedder_token: str | None,
    embedder_tls_ca: Path | None,
    hosting: Hosting,
    store: StoreConfig,
) -> None:
    """Answer queries: nearest images, clusters, points.

    Example:
      shoal serve search --store-url http://qdrant:6333 --embedder-address embedder:7801
    """
    from search.config import SearchConfig
    from search.service import SearchService

    channel_config = ChannelConfig(
        address=embedder_address,
        token=SecretStr(embedder_token) if embedder_token else None,
        tls=embedder_tls_ca is not None,
        tls_ca=embedder_tls_ca,
    )
    channel_config.validate()

    @contextlib.asynccontextmanager
    async def build(opened: Store) -> AsyncIterator[Service]:
        async with open_aio_channel(channel_config) as channel:
            yield SearchService(SearchConfig(), opened, channel)

    _run(hosting, store, name="search", build=build)
