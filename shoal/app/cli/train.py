"""``shoal train``: trains a cluster head on the vectors of a collection. Needs torch here."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from tqdm import tqdm

from clusterer.heads.options import HeadOptions
from shoal.app.cli.command import Command, Group
from shoal.app.cli.options.derive import NumberOrWord, configured
from shoal.app.cli.options.option import Decorator, decorate, json_option, option
from shoal.app.cli.options.target import Target, target_options
from shoal.app.cli.printing.describe import amount
from shoal.app.cli.printing.output import print_json, print_table, say, talk
from shoal.app.cli.root import Interrupted

if TYPE_CHECKING:
    from clusterer.heads.objectives import ObjectiveName
    from clusterer.heads.pairs import PairKind
    from clusterer.heads.store import HeadManifest
    from clusterer.heads.training import HeadReport

DEFAULT_HEADS = "shoal-data/heads"
"""The place where `shoal up` looks for heads, unless told otherwise."""

heads_option = option(
    "--heads", default=DEFAULT_HEADS, metavar="DIR|URL", help="Where heads are kept."
)

_OPTIONS: tuple[Decorator, ...] = (
    option(
        "-k",
        "k",
        type=NumberOrWord(click.IntRange(1, 100_000), ("auto",)),
        required=True,
        help="Number of clusters, or auto.",
    ),
    option(
        "--overcluster",
        type=click.IntRange(min=0),
        default=0,
        help="With -k auto: train this number of clusters, then merge those that neighbours "
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
        help="The most points to train on. 0: the server's 50,000.",
    ),
    option("--views", type=click.IntRange(1, 16), default=4, help="Augmented views of an image."),
    option(
        "--images",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="The directory of the images, if their URIs no longer lead to them.",
    ),
    option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("shoal-data/train"),
        metavar="DIR",
        help="The directory of views and checkpoints: the same command again goes on from them.",
    ),
)


@click.group(cls=Group)
def train() -> None:
    """Train cluster heads on a collection's vectors.

    Example:
      shoal train temi -k 10
    """


def _options(objective: ObjectiveName, *, without: tuple[str, ...] = ()) -> Decorator:
    """The options of a training by ``objective``; HeadOptions become the keyword ``options``."""
    head = configured(
        HeadOptions, as_="options", default=HeadOptions(objective=objective), without=without
    )
    return lambda function: decorate(
        function, (*_OPTIONS, head, heads_option, json_option, target_options)
    )


@train.command(cls=Command)
@_options("scp")
def scp(**given: Any) -> None:
    """Train a head with SCP's losses: a small network that gives vectors their clusters.

    Several heads are trained on a sample of the collection's vectors, without labels. Those that
    put neighbours together best become one. `shoal cluster --method scp --head NAME` applies it.
    After an interruption the same command goes on.

    Example:
      shoal train scp -k 10
      shoal train scp -k 10 --pairs both --images photos/
      shoal train scp -k auto --overcluster 30 --heads s3://bucket/heads
    """
    _train(**given)


@train.command(cls=Command)
@_options("temi", without=("alpha",))
def temi(**given: Any) -> None:
    """Train a head with TEMI's loss: linear, on features only. It measured best.

    Everything else, also how it is applied, is as with `shoal train scp`.

    Example:
      shoal train temi -k 10
    """
    _train(**given)


def _train(
    *,
    target: Target,
    options: HeadOptions,
    k: int | Literal["auto"],
    overcluster: int,
    pairs: PairKind,
    name: str,
    vector: str,
    encoders: str,
    sample_size: int,
    views: int,
    images: Path | None,
    work: Path,
    heads: str,
    as_json: bool,
) -> None:
    from clusterer.fits.count.asked import Auto
    from clusterer.heads.store import HeadStore
    from clusterer.heads.training import check_torch
    from shoal.app.jobs.training import Console, Request, train_and_keep
    from shoal.store.model import JOINT

    if encoders and vector:
        msg = "--encoders and --vector both name what to train on: give one"
        raise click.UsageError(msg)
    if overcluster and k != "auto":
        msg = "--overcluster is for -k auto: it finds the number by merging"
        raise click.UsageError(msg)
    check_torch()
    store = HeadStore(heads)
    request = Request(
        collection=target.collection,
        name=name or target.collection.lower(),
        clusters=overcluster or (Auto() if k == "auto" else k),
        options=dataclasses.replace(options, merge=bool(overcluster)),
        pairs=pairs,
        vector=vector or encoders.replace(",", JOINT),
        sample_size=sample_size,
        views=views,
        images=images,
        work=work,
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
    """A bar on stderr, if that is a terminal; it gets the number done and the total."""
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
    say(
        f"head {manifest.id}: {amount(manifest.clusters, 'cluster')}, "
        f"of {amount(report.pictures, 'point')}; agreement {report.quality.agreement:.4f}, "
        f"cohesion {report.quality.cohesion:.4f}"
    )
