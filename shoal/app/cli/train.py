"""``shoal train``: trains a cluster head on the vectors of a collection. Needs torch here."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from shoal.app.cli.command import Command, Group
from shoal.app.cli.options.method import CountType
from shoal.app.cli.options.option import Decorator, decorate, json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.describe import amount
from shoal.app.cli.printing.output import print_json, print_table, talk
from shoal.app.cli.root import Interrupted

if TYPE_CHECKING:
    from clusterer.heads.objectives import ObjectiveName
    from clusterer.heads.store import HeadManifest
    from clusterer.heads.training import HeadReport

DEFAULT_HEADS = "shoal-data/heads"
"""Where `shoal up` looks for them by default."""

heads_option = option(
    "--heads", default=DEFAULT_HEADS, metavar="DIR|URL", help="Where heads are kept."
)

_OPTIONS: tuple[Decorator, ...] = (
    option("-k", "k", type=CountType(), required=True, help="Number of clusters, or auto."),
    option(
        "--overcluster",
        type=click.IntRange(min=0),
        default=0,
        help="With -k auto: train so many clusters, and make one of those that neighbours "
        "confuse. 0: estimators vote on the number before the training.",
    ),
    option(
        "--pairs",
        type=click.Choice(["neighbours", "augment", "both"]),
        default="neighbours",
        help="What belongs together: nearest neighbours (no images needed), augmented views "
        "of an image, or views of neighbours.",
    ),
    option(
        "--name", default="", metavar="NAME", help="The head's name. Default: the collection's."
    ),
    option("--vector", default="", metavar="NAME", help="Which named vector. Default: the first."),
    option(
        "--encoders",
        default="",
        metavar="NAME,...",
        help="Train on several named vectors, one after the other (SCP-MIX): as --vector A+B.",
    ),
    option(
        "--sample-size",
        type=click.IntRange(min=0),
        default=0,
        help="Most points to train on. 0: the server's 50,000.",
    ),
    option(
        "--neighbours",
        type=click.IntRange(min=0),
        default=0,
        help="Nearest points that count as a point's own kind. 0: 10 for scp; a quarter "
        "of a mean cluster for temi, 10 to 50.",
    ),
    option("--views", type=click.IntRange(1, 16), default=4, help="Augmented views of an image."),
    option(
        "--images",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="Where the images are, if not where their URIs say.",
    ),
    option(
        "--learning-rate",
        type=click.FloatRange(min=0),
        default=0.0,
        help="Adam's, at first. 0: 0.001 for scp, 0.01 for temi.",
    ),
    option(
        "--schedule",
        type=click.Choice(["cosine", "constant"]),
        default="cosine",
        help="Of the learning rate: down to 0 by a cosine, or as it is.",
    ),
    option(
        "--epochs",
        type=click.IntRange(min=0),
        default=0,
        help="Passes over the points. 0: 30, or more where points are few.",
    ),
    option("--batch", type=click.IntRange(min=2), default=512, help="Pairs of a step."),
    option("--seed", type=click.IntRange(0, 2**31), default=0, help="Seed of everything random."),
    option("--seeds", type=click.IntRange(min=1), default=5, help="Heads to train."),
    option("--keep", type=click.IntRange(min=1), default=3, help="Best heads that vote together."),
    option("--device", default="auto", metavar="cpu|cuda|auto", help="Where. auto: a GPU if any."),
    option("--amp", is_flag=True, help="Half precision (bfloat16) in matrix products."),
    option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("shoal-data/train"),
        metavar="DIR",
        help="Views and checkpoints: the same command again goes on from them.",
    ),
)


@click.group(cls=Group)
def train() -> None:
    """Train cluster heads on a collection's vectors.

    Example:
      shoal train temi -k 10
    """


def _head_options(function: Any) -> Any:
    return decorate(function, _OPTIONS)


@train.command(cls=Command)
@_head_options
@option(
    "--alpha",
    type=click.FloatRange(min=0),
    help="Weight of equal sizes. Default: 5, from 100 clusters on 10; 1 or 2 suit unequal ones, "
    "and with 0 clusters stay unused.",
)
@heads_option
@json_option
@target_options
def scp(*, target: Target, heads: str, as_json: bool, **options: Any) -> None:
    """Train a head with SCP's losses: a small network that gives vectors their clusters.

    Trains several on a sample of the collection's vectors, without labels, and makes one of the
    best, by what they say of neighbours. `shoal cluster --method scp --head NAME` applies it.
    Interrupted, the same command goes on where it was.

    Example:
      shoal train scp -k 10
      shoal train scp -k 10 --pairs both --images photos/
      shoal train scp -k auto --overcluster 30 --heads s3://bucket/heads
    """
    _train("scp", target, heads, options, as_json=as_json)


@train.command(cls=Command)
@_head_options
@heads_option
@json_option
@target_options
def temi(*, target: Target, heads: str, as_json: bool, **options: Any) -> None:
    """Train a head with TEMI's loss: linear, on features only. Measured to be the best.

    All else is as with `shoal train scp`, the way it is applied too.

    Example:
      shoal train temi -k 10
    """
    _train("temi", target, heads, {**options, "alpha": None}, as_json=as_json)


def _train(
    objective: ObjectiveName, target: Target, heads: str, options: dict[str, Any], *, as_json: bool
) -> None:
    from clusterer.heads.options import HeadOptions
    from clusterer.heads.store import HeadStore
    from clusterer.heads.training import check_torch
    from shoal.app.jobs.training import Console, Request, train_and_keep
    from shoal.store.model import JOINT

    if options["encoders"] and options["vector"]:
        msg = "--encoders and --vector both name what to train on: give one"
        raise click.UsageError(msg)
    if options["overcluster"] and options["k"] != "auto":
        msg = "--overcluster is for -k auto: it finds the number by merging"
        raise click.UsageError(msg)
    check_torch()
    store = HeadStore(heads)
    names = {each.name for each in dataclasses.fields(HeadOptions)}
    request = Request(
        collection=target.collection,
        name=options["name"] or target.collection.lower(),
        clusters=options["overcluster"] or options["k"],
        options=HeadOptions(
            objective=objective,
            merge=bool(options["overcluster"]),
            **{name: value for name, value in options.items() if name in names},
        ),
        pairs=options["pairs"],
        vector=options["vector"] or options["encoders"].replace(",", JOINT),
        sample_size=options["sample_size"],
        views=options["views"],
        images=options["images"],
        work=options["work"],
    )
    try:
        with target.connect() as client:
            manifest, report = train_and_keep(client, request, store, Console(talk, bar))
    except KeyboardInterrupt as exc:
        raise Interrupted("interrupted: the same command goes on from here") from exc
    if as_json:
        print_json({"id": manifest.id, "hash": manifest.hash, **manifest.model_dump()})
        return
    _describe(manifest, report)


@contextlib.contextmanager
def bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal; it is told the number done and the total."""
    with tqdm(desc=title, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty()) as shown:

        def progress(done: int, total: int) -> None:
            shown.total, shown.n = total, min(done, total)
            shown.refresh()

        yield progress


def _describe(manifest: HeadManifest, report: HeadReport) -> None:
    kept = set(report.kept)
    print_table(
        ("seed", "loss", "agreement", "cohesion", "clusters used", "kept"),
        [
            (
                str(each.seed),
                f"{each.losses['total']:.4f}",
                f"{each.quality.agreement:.4f}",
                f"{each.quality.cohesion:.4f}",
                str(each.quality.used),
                "yes" if each.seed in kept else "no",
            )
            for each in report.seeds
        ],
    )
    click.echo(
        f"head {manifest.id}: {amount(manifest.clusters, 'cluster')}, "
        f"of {amount(report.pictures, 'point')}; agreement {report.quality.agreement:.4f}, "
        f"cohesion {report.quality.cohesion:.4f}"
    )
