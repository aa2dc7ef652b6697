"""``shoal runs`` and ``shoal rollback``."""

from __future__ import annotations

import itertools

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.describe import (
    amount,
    describe_lineage,
    describe_method,
    describe_run,
    duration_s,
    short,
)
from shoal.app.cli.printing.output import print_json, print_table, say, short_time
from shoal.client import Run


@click.command(cls=Command)
@click.argument(
    "action", type=click.Choice(["list", "show", "cancel"]), default="list", metavar="[ACTION]"
)
@click.argument("run_id", default="", metavar="[ID]")
@option("-n", "--limit", type=click.IntRange(min=1), default=50, help="Most runs to list.")
@json_option
@target_options
def runs(*, action: str, run_id: str, limit: int, as_json: bool, target: Target) -> None:
    """List the clustering runs, or show or cancel one.

    ACTION is list (the default), show or cancel. ID may be the beginning of one, at least 4
    characters. The list is of the collection's runs in the clustering, newest first.

    Example:
      shoal runs
      shoal runs show 1f3a9c2e
      shoal runs cancel 1f3a9c2e
    """
    if (action == "list") == bool(run_id):
        expected = "no ID" if action == "list" else "the run's ID"
        msg = f"runs {action}: expected {expected}"
        raise click.UsageError(msg)
    with target.connect() as client:
        if action == "list":
            found = client.runs(collection=target.collection, clustering=target.clustering)
            listed = list(itertools.islice(found, limit))
            if as_json:
                print_json(listed)
            else:
                _print_runs(listed)
            return
        run = client.get_run(run_id, collection=target.collection)
        if action == "cancel":
            run = client.cancel(run.id, collection=target.collection)
    if as_json:
        print_json(run)
    else:
        _print_run(run)


def _print_runs(listed: list[Run]) -> None:
    rows = [
        (
            short(run.id),
            f"{run.state}{' *' if run.active else ''}",
            run.stage if run.stage != "unspecified" else "-",
            describe_method(run),
            f"{run.plan.clusters:,}" if run.plan else "-",
            f"{run.plan.moved_share:.1%}" if run.plan else "-",
            f"{run.points_written:,}",
            short_time(run.created_at),
            "-" if (took := duration_s(run)) is None else f"{took:.1f}",
        )
        for run in listed
    ]
    header = ("run", "state", "stage", "method", "clusters", "moved", "written", "started", "s")
    print_table(header, rows)


def _print_run(run: Run) -> None:
    for line in describe_run(run):
        say(line)
    say(f"id: {run.id}{' (active)' if run.active else ''}")
    if run.base_run:
        say(f"based on: {run.base_run}")
    if run.stage_seconds:
        stages = ", ".join(f"{stage} {took:.2f}" for stage, took in run.stage_seconds.items())
        say(f"seconds: {stages}")
    if run.plan is not None and run.plan.lineage:
        rows = [
            (str(each.cluster), f"{each.size:,}", describe_lineage(each), f"{each.overlap:.2f}")
            for each in run.plan.lineage
        ]
        print_table(("cluster", "size", "lineage", "overlap"), rows)


@click.command(cls=Command)
@json_option
@target_options
def rollback(*, as_json: bool, target: Target) -> None:
    """Go back to the clustering before the last run.

    Every image has the cluster again that it had then, exactly. The last two clusterings are
    kept: a second rollback comes back to the one that the first left.

    Example:
      shoal rollback
    """
    with target.connect() as client:
        state = client.rollback(collection=target.collection, clustering=target.clustering)
    if as_json:
        print_json(state)
    else:
        run = short(state.active_run)
        say(f"active run is {run} again: {amount(state.clusters, 'cluster')}")
