"""``shoal up``: all of Shoal in one process, over a directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from embedder.config import EmbedderConfig
from shoal.app.cli.command import Command
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.option import option
from shoal.app.cli.options.server import Hosting, hosting_options
from shoal.app.local import LocalConfig, run_local


@click.command(cls=Command)
@option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("shoal-data"),
    metavar="DIR",
    help="Directory of the store; made if absent. One process at a time owns it.",
)
@configured(EmbedderConfig, as_="embedder")
@hosting_options(default_metrics="off", default_format="text")
def up(*, data: Path, embedder: EmbedderConfig, hosting: Hosting) -> None:
    """Run all of Shoal in one process, over a directory.

    Embedder, clusterer and search listen on one port, over the embedded store in DIR/store. A
    line on stderr says when it answers. SIGTERM or Ctrl-C stops it after the calls in progress;
    being killed loses nothing that was acknowledged.

    Example:
      shoal up --data ./data --address 127.0.0.1:7800
    """
    config = LocalConfig(
        data=data,
        server=hosting.server,
        embedder=embedder,
        metrics_address=hosting.metrics_address,
    )
    asyncio.run(
        run_local(
            config,
            on_ready=lambda address: hosting.announce(address, what=f"store {config.store}"),
        )
    )
