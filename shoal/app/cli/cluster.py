"""``shoal cluster``: starts a run and follows it."""

from __future__ import annotations

import sys
from typing import Any

import click
from tqdm import tqdm

from shoal.app.cli.command import Command
from shoal.app.cli.options.method import Wanted, wanted_options
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.spark import refuse_given, spark_options
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.describe import describe_run, short
from shoal.app.cli.printing.output import print_json, say, talk
from shoal.app.cli.root import DomainError, Interrupted
from shoal.app.config import SparkChoice
from shoal.client import COLLECTION, Client, Run, RunState
from shoal.errors import LeaseHeld


class Refused(DomainError):
    """The plan is past a gate: the same run would be again."""

    exit_code = 3


class Busy(DomainError):
    """Another run is under way."""

    exit_code = 4


class StageProgress:
    """A run's stages on stderr: a bar each on a terminal, else a line each."""

    def __init__(self, *, bars: bool) -> None:
        self._bars = bars
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def update(self, run: Run) -> None:
        """Show what ``run`` is doing now; nothing before its first stage."""
        if run.state is not RunState.RUNNING:
            self.close()
            return
        if run.stage not in (self._stage, "unspecified"):
            self.close()
            self._stage = run.stage
            if self._bars:
                self._bar = tqdm(desc=run.stage, unit=" points", file=sys.stderr, leave=True)
            else:
                talk(f"shoal: {run.stage}")
        if self._bar is not None:
            self._bar.total = run.stage_total or None
            self._bar.n = run.stage_done
            self._bar.refresh()

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@click.command(cls=Command)
@wanted_options()
@option("--wait/--no-wait", default=True, help="Follow the run to its end, or only start it.")
@option(
    "--bisecting",
    is_flag=True,
    help="With --engine spark: k-means by splitting the largest cluster again and again.",
)
@spark_options
@json_option
@target_options
def cluster(
    *,
    target: Target,
    wait: bool,
    as_json: bool,
    spark: SparkChoice | None,
    bisecting: bool,
    wanted: Wanted,
) -> None:
    """Group the stored images; ids stay stable.

    A cluster that continues keeps its id. Readers see the old clustering until the new one is
    complete, and then the new one at once; `shoal rollback` goes back.

    Exit status 1 if the run fails, 3 if its plan is refused by a gate, 4 if another run is under
    way: of these only 1 is worth another try.

    Example:
      shoal cluster -k 10
      shoal cluster -k auto --plan
      shoal cluster --method evoc --layer coarsest --clustering coarse
      shoal cluster --method hdbscan --noise-only
      shoal cluster -k 1000 --engine spark --store-url http://qdrant:6333
    """
    if spark is not None:
        if not wait:
            msg = "--engine spark is driven by this command, which has to wait: no --no-wait"
            raise click.UsageError(msg)
        run = _in_spark(spark, target, wanted, bisecting=bisecting)
        _tell(run, as_json=as_json)
        return
    refuse_given("bisecting")
    with target.connect() as client:
        try:
            run = client.start_run(
                wanted.method,
                collection=target.collection,
                clustering=target.clustering,
                options=wanted.run_options(client),
            )
        except LeaseHeld as exc:
            raise Busy(exc.message) from exc
        except KeyboardInterrupt as exc:
            msg = "interrupted; a run may have been started and go on: see shoal runs"
            raise Interrupted(msg) from exc
        if wait:
            run = _follow(client, run)
    _tell(run, as_json=as_json)


def _in_spark(spark: SparkChoice, target: Target, wanted: Wanted, *, bisecting: bool) -> Run:
    from shoal.app.jobs.recluster import RunInterrupted, recluster_in_spark
    from shoal.client.messages_runs import to_request

    with target.connect() as client:  # asked only for the vectors of a vocabulary
        options = wanted.run_options(client)
    request = to_request(wanted.method, target.collection, target.clustering, options)
    progress = StageProgress(bars=sys.stderr.isatty())
    try:
        return recluster_in_spark(spark, request, bisecting=bisecting, on_change=progress.update)
    except LeaseHeld as exc:
        raise Busy(exc.message) from exc
    except RunInterrupted as exc:
        msg = f"interrupted; run {short(exc.run)} is told to stop, the active clustering is whole"
        raise Interrupted(msg) from exc
    finally:
        progress.close()


def _tell(run: Run, *, as_json: bool) -> None:
    """Prints ``run``; raises for one that did not succeed."""
    if as_json:
        print_json(run)
    else:
        for line in describe_run(run):
            say(line)
    if run.state not in {RunState.SUCCEEDED, RunState.PLANNED, RunState.RUNNING}:
        raise (Refused if run.state is RunState.REFUSED else DomainError)(_why(run))


def _follow(client: Client, run: Run) -> Run:
    """The run at its end."""
    progress = StageProgress(bars=sys.stderr.isatty())
    try:
        for run in client.watch(run.id, collection=run.collection):  # noqa: B020, PLR1704 - the newest
            progress.update(run)
    except KeyboardInterrupt as exc:
        name = short(run.id)
        where = "" if run.collection == COLLECTION else f" --collection {run.collection}"
        msg = f"interrupted; run {name} goes on: shoal runs cancel {name}{where} stops it"
        raise Interrupted(msg) from exc
    finally:
        progress.close()
    return run


def _why(run: Run) -> str:
    name = f"run {short(run.id)}"
    if run.state is RunState.REFUSED:
        objections = "; ".join(run.plan.objections) if run.plan else ""
        return f"{name} was refused: {objections or run.error_message} (--force overrides)"
    return f"{name} {run.state}: {run.error_message or 'no reason given'}"
