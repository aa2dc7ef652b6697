"""``shoal cluster``: starts a run and follows it."""

from __future__ import annotations

import sys
from typing import Any, Literal

import click
from tqdm import tqdm

from shoal.cli.command import Command
from shoal.cli.describe import describe_run, short
from shoal.cli.options import Target, json_option, option, target_options
from shoal.cli.output import print_json, talk
from shoal.cli.root import DomainError, Interrupted
from shoal.client import (
    COLLECTION,
    Client,
    EmbeddingVectors,
    Gates,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    Run,
    RunOptions,
    RunState,
    ScpHead,
    TextCentroids,
)

_UINT32 = 2**32 - 1
MAX_CLUSTERS = 100_000
"""The contract's limit."""
METHODS = ("kmeans", "hdbscan", "gmm", "scp", "text", "evoc")


class CountType(click.ParamType[Any]):
    """A number of clusters, or ``auto``."""

    name = "number|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """The number, at least 1, or ``"auto"``."""
        if value == "auto":
            return "auto"
        return int(click.IntRange(1, MAX_CLUSTERS).convert(value, param, ctx))


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
@option(
    "--method",
    type=click.Choice(METHODS),
    default="kmeans",
    help="How clusters are found. This version has kmeans; a server says what it has.",
)
@option(
    "-k",
    "k",
    type=CountType(),
    help="Number of clusters, which kmeans needs. (auto: not in this version.)",
)
@option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Seed of everything random.")
@option(
    "--vector",
    default="",
    metavar="NAME",
    help="Which of the collection's named vectors to cluster. Default: its first.",
)
@option("--plan", "plan_only", is_flag=True, help="Stop after the plan; change nothing.")
@option("--force", is_flag=True, help="Cut over even if the plan is past a gate.")
@option(
    "--sample-size",
    type=click.IntRange(0, _UINT32),
    default=0,
    help="Most points that the fit looks at. 0: the server's limit.",
)
@option(
    "--n-init",
    type=click.IntRange(0, _UINT32),
    default=0,
    help="Starts of k-means, of which the best is kept. 0: by size.",
)
@option("--cold-start", is_flag=True, help="Do not start from the active clusters.")
@option("--head", default="", metavar="NAME", help="The trained head of --method scp.")
@option("--text", "texts", multiple=True, help="A cluster's text for --method text; repeatable.")
@option(
    "--max-moved-share",
    type=click.FloatRange(0, 1),
    help="Gate: largest share of points that change cluster.",
)
@option("--max-noise-share", type=click.FloatRange(0, 1), help="Gate: largest share of noise.")
@option(
    "--min-agreement",
    type=click.FloatRange(-1, 1),
    help="Gate: least adjusted Rand index against the active run.",
)
@option(
    "--max-cluster-share",
    type=click.FloatRange(0, 1),
    help="Gate: largest share of points in one cluster.",
)
@option("--wait/--no-wait", default=True, help="Follow the run to its end, or only start it.")
@json_option
@target_options
def cluster(*, target: Target, wait: bool, as_json: bool, **options: Any) -> None:
    """Group the stored images; ids stay stable.

    A cluster that continues keeps its id. Readers see the old clustering until the new one is
    complete, and then the new one at once; `shoal rollback` goes back. Exit status 1 if the
    run fails or its plan is refused.

    Example:
      shoal cluster -k 10
      shoal cluster -k 12 --plan
    """
    method = _method(options)
    run_options = RunOptions(
        seed=options["seed"],
        sample_size=options["sample_size"],
        vector=options["vector"],
        cold_start=options["cold_start"],
        plan_only=options["plan_only"],
        force=options["force"],
        gates=_gates(options),
    )
    with target.connect() as client:
        try:
            run = client.start_run(
                method,
                collection=target.collection,
                clustering=target.clustering,
                options=run_options,
            )
        except KeyboardInterrupt as exc:
            message = "interrupted; a run may have been started and go on: see shoal runs"
            raise Interrupted(message) from exc
        if wait:
            run = _follow(client, run)
    if as_json:
        print_json(run)
    else:
        for line in describe_run(run):
            click.echo(line)
    if run.state not in {RunState.SUCCEEDED, RunState.PLANNED, RunState.RUNNING}:
        raise DomainError(_why(run))


def _follow(client: Client, run: Run) -> Run:
    """The run at its end."""
    progress = StageProgress(bars=sys.stderr.isatty())
    try:
        for run in client.watch(run.id, collection=run.collection):  # noqa: B020, PLR1704 -- the newest
            progress.update(run)
    except KeyboardInterrupt as exc:
        name = short(run.id)
        where = "" if run.collection == COLLECTION else f" --collection {run.collection}"
        message = f"interrupted; run {name} goes on: shoal runs cancel {name}{where} stops it"
        raise Interrupted(message) from exc
    finally:
        progress.close()
    return run


def _method(options: dict[str, Any]) -> Method:
    name, k = options["method"], options["k"]
    if name in {"kmeans", "gmm"} and k is None:
        message = f"--method {name} needs -k: a number of clusters"
        raise click.UsageError(message)
    for option_name, given, method in (
        ("--text", options["texts"], "text"),
        ("--head", options["head"], "scp"),
        ("--n-init", options["n_init"], "kmeans"),
    ):
        if given and name != method:
            message = f"{option_name} is for --method {method}, not {name}"
            raise click.UsageError(message)
    methods: dict[str, Method] = {
        "kmeans": KMeans(k=k, n_init=options["n_init"]),
        "gmm": GaussianMixture(k=k),
        "hdbscan": Hdbscan(),
        "scp": ScpHead(head=options["head"]),
        "text": TextCentroids(texts=options["texts"]),
        "evoc": EmbeddingVectors(),
    }
    return methods[name]


def _gates(options: dict[str, Any]) -> Gates | None:
    names = ("max_moved_share", "max_noise_share", "min_agreement", "max_cluster_share")
    given = {name: options[name] for name in names}
    return None if all(value is None for value in given.values()) else Gates(**given)


def _why(run: Run) -> str:
    name = f"run {short(run.id)}"
    if run.state is RunState.REFUSED:
        objections = "; ".join(run.plan.objections) if run.plan else ""
        return f"{name} was refused: {objections or run.error_message} (--force overrides)"
    return f"{name} {run.state}: {run.error_message or 'no reason given'}"
