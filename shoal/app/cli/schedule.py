"""``shoal schedule``: clusterings that the service makes anew by itself."""

from __future__ import annotations

import re
from typing import Any

import click

from shoal.app.cli.command import Command, Group
from shoal.app.cli.options.method import Wanted, wanted_options
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.describe import describe_drift, short
from shoal.app.cli.printing.output import print_json, say, short_time
from shoal.client import Clustering, Schedule

_MOST_S = 3650 * 86_400
"""The contract's limit."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class DurationType(click.ParamType[Any]):
    """A time such as ``90s``, ``15m``, ``6h`` or ``1d``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip())
        if found is None:
            self.fail(f"expected a number with s, m, h or d, such as 6h; got {value!r}", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2]]
        if seconds > _MOST_S:
            self.fail(f"expected at most 3650d, got {value}", param, ctx)
        return seconds


@click.group(cls=Group)
def schedule() -> None:
    """Let the service make a clustering anew by itself; show or remove that.

    Example:
      shoal schedule set --every 6h -k 20
      shoal schedule show
    """


@schedule.command("set", cls=Command)
@option("--cron", default="", metavar="EXPR", help="Minute, hour, day, month and weekday; UTC.")
@option("--every", type=DurationType(), help="Or a pause: 90s, 15m, 6h, 1d.")
@option("--if-due", is_flag=True, help="Only when the drift says that reclustering is due.")
@wanted_options(without=("plan_only", "force"))
@json_option
@target_options
def set_(
    *,
    cron: str,
    every: float | None,
    if_due: bool,
    target: Target,
    as_json: bool,
    wanted: Wanted,
) -> None:
    """Set when a clustering is made anew, and how; in place of any earlier schedule.

    Each clustering of a collection has a schedule of its own (--clustering). What was missed
    while no clusterer ran is run once.

    Example:
      shoal schedule set --cron "30 2 * * *" -k 20 --max-moved-share 0.3
      shoal schedule set --every 15m --if-due --method evoc --layer 0 --clustering fine
    """
    if bool(cron) == (every is not None):
        msg = "expected --cron or --every, one of them"
        raise click.UsageError(msg)
    with target.connect() as client:
        state = client.set_schedule(
            Schedule(cron, every or 0.0, only_if_due=if_due),
            wanted.method,
            collection=target.collection,
            clustering=target.clustering,
            options=wanted.run_options(client),
        )
    _print(state, as_json=as_json)


@schedule.command(cls=Command)
@json_option
@target_options
def show(*, target: Target, as_json: bool) -> None:
    """Show when a clustering is made anew, and what has come in since the last run.

    Example:
      shoal schedule show --clustering fine
    """
    with target.connect() as client:
        state = client.clustering(target.clustering, collection=target.collection)
    _print(state, as_json=as_json)


@schedule.command(cls=Command)
@json_option
@target_options
def remove(*, target: Target, as_json: bool) -> None:
    """Remove a clustering's schedule; its clusters stay.

    Example:
      shoal schedule remove
    """
    with target.connect() as client:
        state = client.remove_schedule(collection=target.collection, clustering=target.clustering)
    _print(state, as_json=as_json)


def _print(state: Clustering, *, as_json: bool) -> None:
    if as_json:
        print_json(state)
        return
    found = state.schedule
    if found is None:
        say(f"clustering {state.name} has no schedule")
    else:
        when = f"cron {found.cron!r} (UTC)" if found.cron else f"every {found.interval_s:g} s"
        due = ", when reclustering is due" if found.only_if_due else ""
        last = f", last run {short(found.last_run)}" if found.last_run else ""
        say(f"clustering {state.name}: {when}{due}, next at {short_time(found.next_at)}{last}")
    for line in describe_drift(state):
        say(line)
