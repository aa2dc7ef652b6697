"""``shoal ingest``: stores images, and reports what became of each."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Never

import click
from tqdm import tqdm

from embedder.config import EmbedderConfig
from shoal.app.cli.command import Command
from shoal.app.cli.options.derive import Options, configured
from shoal.app.cli.options.fields import check_fields, parse_fields
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.spark import refuse_given, spark_options
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.output import print_json, say, talk
from shoal.app.cli.root import DomainError, Interrupted, one_line
from shoal.app.config import SparkChoice
from shoal.app.jobs.backfill import Backfill, Done, ingest_in_spark
from shoal.client import WINDOW, IngestOutcome, IngestStatus, Json
from shoal.errors import ShoalError, TransientError
from shoal.rpc.signals import interrupted_by_signals
from shoal.sources import (
    LeftOut,
    SourceConfig,
    check_paths,
    count_items,
    open_stdin,
    read_items,
)

RESUME = "run the same command again to resume"
RETRY = "run the same command again to retry"
_EXECUTORS = Options(
    EmbedderConfig, only=("encoders", "hosts", "prefixes"), prefix="With --engine spark: "
)
"""The options of the embedders that Spark's executors have."""
MAX_REPORTED = 1000
"""Failures that ``--json`` repeats one by one; all of them are on stderr, and counted."""


@dataclass(slots=True)
class Report:
    """What has become of the items so far."""

    counts: Counter[IngestStatus] = field(default_factory=Counter)
    errors: list[dict[str, str]] = field(default_factory=list)
    retryable: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    started: float = field(default_factory=time.monotonic)

    @property
    def acknowledged(self) -> int:
        """Items that the server has safely."""
        return self.counts.total() - self.counts[IngestStatus.FAILED]

    @property
    def failed(self) -> int:
        """Items that were refused or could not be read."""
        return self.counts[IngestStatus.FAILED]

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    def add(self, outcome: IngestOutcome) -> None:
        """Count ``outcome``."""
        self.counts[outcome.status] += 1
        self.retryable += outcome.failure is not None and outcome.failure.retryable
        self.note(outcome)

    def note(self, outcome: IngestOutcome) -> None:
        """Keep what ``--json`` says of a failure."""
        if outcome.failure is not None and len(self.errors) < MAX_REPORTED:
            reason, message = outcome.failure.reason, outcome.failure.message
            self.errors.append({"name": outcome.name, "reason": reason, "message": message})

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        counts = {status.value: self.counts[status] for status in IngestStatus}
        return {
            **counts,
            "left_out": dict(self.left_out.counts),
            "seconds": round(self.seconds, 3),
            "errors": self.errors,
        }

    def __str__(self) -> str:
        """The report in one line."""
        parts = ", ".join(f"{status} {self.counts[status]:,}" for status in IngestStatus)
        rate = self.counts.total() / max(self.seconds, 1e-9)
        return f"{parts} in {self.seconds:.1f} s ({rate:,.0f} images/s)"


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@configured(SourceConfig, as_="shared", only=("source", "keys", "merge_fields"))
@option(
    "--field",
    "fields",
    multiple=True,
    callback=parse_fields,
    metavar="NAME=VALUE",
    help="A field to store with every image; repeatable. JSON values are read as JSON.",
)
@option(
    "--with-encoder",
    "encoders",
    multiple=True,
    metavar="NAME",
    help="An encoder that fills the collection; repeatable, each into the vector of its name, from "
    "one decode. Default: the server's first for a new collection, else those that it has.",
)
@option(
    "--strict",
    is_flag=True,
    help="Exit with status 1 also if a file of a directory or tar was left out.",
)
@option(
    "--window",
    type=click.IntRange(1, 10_000),
    default=WINDOW,
    help="Images in flight.",
)
@option(
    "--streams",
    type=click.IntRange(1, 256),
    default=1,
    help="Connections that share the images in flight. For an embedder of several processes: "
    "a few for each process.",
)
@option(
    "--progress/--no-progress",
    default=None,
    show_default=False,
    help="Show a progress bar. Default: on a terminal.",
)
@_EXECUTORS.give
@spark_options
@json_option
@target_options
def ingest(
    *,
    paths: tuple[str, ...],
    shared: SourceConfig,
    fields: dict[str, Json],
    encoders: tuple[str, ...],
    strict: bool,
    window: int,
    streams: int,
    progress: bool | None,
    as_json: bool,
    target: Target,
    spark: SparkChoice | None,
    **executors: Any,
) -> None:
    """Store images: files, directories, tars, manifests.

    PATH is an image, a directory (searched for images), a tar (.tar, .tar.gz, ...), a JSONL
    manifest with lines {"path" or "uri", "key", "source", "payload"}, - for a manifest on stdin,
    or a URI that the server is allowed to read (https://..., s3://...). Running it again changes
    nothing and resumes what was interrupted; with fewer fields it removes the others, unless
    --merge-fields keeps them. Images that cannot be stored are named on stderr,
    and the exit status is then 1; the others are stored. A file of a directory or tar is an image
    by its suffix or by its content; the others, and hidden ones, are left out and counted.

    Example:
      shoal ingest photos/ holiday.tar --source holiday --field year=2024
      shoal ingest images.jsonl --engine spark --store-url http://qdrant:6333
    """
    check_paths(paths)
    check_fields(fields)
    shown = sys.stderr.isatty() if progress is None else progress
    if spark is not None:
        config = replace(shared, payload=fields, left_out=LeftOut())
        embedder = _EXECUTORS.take(executors)
        backfill = Backfill(spark.store, target.collection, encoders, embedder, config)
        report = _in_spark(spark, paths, backfill, shown=shown)
        _finish(report, paths, strict=strict, as_json=as_json)
        return
    refuse_given(*(leaf.parameter for leaf in _EXECUTORS.leaves))
    with interrupted_by_signals(), target.connect() as client:
        limit = client.info().max_image_bytes or None
        config = replace(shared, payload=fields, max_bytes=limit, left_out=LeftOut())
        items = read_items(paths, config, stdin=open_stdin())
        report = Report(left_out=config.left_out)
        with tqdm(
            total=count_items(paths) if shown else None,
            disable=not shown,
            unit=" images",
            file=sys.stderr,
        ) as bar:
            outcomes = client.ingest(
                items,
                collection=target.collection,
                encoders=encoders,
                window=window,
                streams=streams,
            )
            try:
                follow(outcomes, report, bar)
            except (ShoalError, KeyboardInterrupt) as exc:
                bar.close()
                if as_json:
                    print_json(report.as_json())
                raise _stopped(exc, report) from exc
    _finish(report, paths, strict=strict, as_json=as_json)


def _in_spark(
    spark: SparkChoice, paths: tuple[str, ...], backfill: Backfill, *, shown: bool
) -> Report:
    """What became of the images that Spark's tasks stored; names the failed ones on stderr."""
    report = Report(left_out=backfill.source.left_out)
    with tqdm(disable=not shown, unit=" tasks", file=sys.stderr) as bar:

        def update(done: int, of: int) -> None:
            bar.total, bar.n = of or None, done
            bar.refresh()

        try:
            tasks = ingest_in_spark(spark, paths, backfill, on_progress=update)
        except KeyboardInterrupt as exc:
            raise Interrupted(f"interrupted: what was stored stays; {RESUME}") from exc
    for task in tasks:
        _add(report, task)
    return report


def _add(report: Report, task: Done) -> None:
    report.counts.update(task.counts)
    report.retryable += task.retryable
    report.left_out.update(task.left_out)
    for outcome in task.failures:
        report.note(outcome)
        talk(one_line(_described(outcome)))


def _finish(report: Report, paths: tuple[str, ...], *, strict: bool, as_json: bool) -> None:
    """Prints the report; exits 1 if anything failed, or was left out though ``strict``."""
    if not report.counts:
        talk(f"shoal: no images in {', '.join(paths)}")
    if as_json:
        print_json(report.as_json())
    else:
        say(str(report))
    if report.retryable:
        talk(f"shoal: {report.retryable:,} of the failures may be temporary; {RETRY}")
    if report.left_out.total:
        talk(f"shoal: {report.left_out}{': --strict' if strict else ''}")
    if report.failed or (strict and report.left_out.total):
        sys.exit(1)


def follow(outcomes: Iterable[IngestOutcome], report: Report, bar: tqdm[Never]) -> None:
    """Count every outcome; name the failed ones on stderr."""
    for outcome in outcomes:
        report.add(outcome)
        bar.update()
        if outcome.failure is not None:
            with bar.external_write_mode(file=sys.stderr):
                talk(one_line(_described(outcome)))


def _described(outcome: IngestOutcome) -> str:
    """A failed outcome in one line."""
    failure = outcome.failure
    return f"{outcome.name}: {failure.reason}: {failure.message}" if failure else outcome.name


def _stopped(error: BaseException, report: Report) -> click.ClickException:
    """What to say when the stream ended before the items did."""
    so_far = f"{report.acknowledged:,} images are stored"
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"interrupted: {so_far}; {RESUME}", error)
    message = error.message if isinstance(error, ShoalError) else str(error)
    helps = isinstance(error, TransientError)  # anything else would only happen again
    return DomainError(f"{message} ({so_far}; {RESUME})" if helps else f"{message} ({so_far})")
