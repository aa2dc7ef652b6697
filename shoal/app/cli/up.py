"""``shoal up``: all of Shoal in one process, over a directory."""

from __future__ import annotations

import asyncio

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.reporting import Reporting
from shoal.app.config import LocalConfig


@click.command(cls=Command)
@configured(LocalConfig, as_="config")
@configured(Reporting, as_="reporting", default=Reporting(log_format="text"))
def up(*, config: LocalConfig, reporting: Reporting) -> None:
    """Run all of Shoal in one process, over a directory.

    Embedder, clusterer and search listen on one port, over the embedded store in DIR/store. A
    line on stderr says when it answers. SIGTERM or Ctrl-C stops it after the calls in progress;
    being killed loses nothing that was acknowledged.

    Example:
      shoal up --data ./data --address 127.0.0.1:7800
    """
    from shoal.app.local import run_local

    reporting.begin(config.server)
    what = f"store {config.store}"
    asyncio.run(run_local(config, on_ready=lambda address: reporting.announce(address, what=what)))
