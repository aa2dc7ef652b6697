"""``shoal bench cluster``, ``train`` and ``heads``: fits, runs and trained heads, measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.printing.output import print_json, print_table, talk
from shoal.errors import InvalidArgument

if TYPE_CHECKING:
    from clusterer.heads.objectives import ObjectiveName
    from clusterer.heads.pairs import PairKind
    from shoal.app.bench.cluster import Stage
    from shoal.app.bench.heads import Row as Quality


@click.command("cluster", cls=Command)
@option("--points", type=click.IntRange(1000), default=50_000, help="Vectors to cluster.")
@option("--dim", type=click.IntRange(2), default=512, help="Components of a vector.")
@option("-k", "--clusters", type=click.IntRange(2), default=100, help="Clusters to make.")
@option(
    "--density",
    type=click.IntRange(800),
    default=20_000,
    help="Most points for hdbscan, up to --points.",
)
@json_option
def bench_cluster(*, points: int, dim: int, clusters: int, density: int, as_json: bool) -> None:
    """Time the fit against other libraries, a whole run by stages, and the growth of hdbscan.

    Needs faiss-cpu, to compare with.

    Example:
      shoal bench cluster --points 50000 --dim 512 -k 100
    """
    from shoal.app.bench.cluster import FIT_POINTS, NEWCOMERS, ClusterBench
    from shoal.app.bench.cluster import bench_cluster as measure_cluster

    if clusters * 10 > points:
        raise InvalidArgument(f"--clusters: expected at most {points // 10}, got {clusters}")
    result = measure_cluster(ClusterBench(points, dim, clusters, density))
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    talk(f"{points:,} vectors x {dim}, {clusters} clusters; fits on {min(points, FIT_POINTS):,}")
    ours = result.engines[0]
    print_table(
        ("fit", "s", "of shoal", "inertia", "of shoal"),
        [
            (
                row.name,
                f"{row.seconds:.2f}",
                f"{row.seconds / ours.seconds:.2f}",
                f"{row.inertia:,.0f}",
                f"{row.inertia / ours.inertia:.4f}",
            )
            for row in result.engines
        ],
    )
    _print_stages(result.stages)
    talk(
        f"moved in the second run: {result.moved_share:.1%}; RSS {result.before_mib:.0f} MiB "
        f"before the first run, {result.peak_mib:.0f} at its peak, {result.fit_mib:.0f} of the "
        f"fit's process; {NEWCOMERS:,} newcomers had a cluster within {result.newcomers_s:.1f} s"
    )
    print_table(
        ("hdbscan points", "s"),
        [(f"{row.points:,}", f"{row.seconds:.1f}") for row in result.growth],
    )


@click.command("train", cls=Command)
@option("--points", type=click.IntRange(100), default=50_000, help="Vectors to train on.")
@option("--dim", type=click.IntRange(2), default=512, help="Components of a vector.")
@option("-k", "--clusters", type=click.IntRange(2), default=10, help="Clusters of the head.")
@option("--epochs", type=click.IntRange(1), default=30, help="Passes over the vectors.")
@option("--device", default="cpu", metavar="cpu|cuda", help="Where.")
@json_option
def bench_train(
    *, points: int, dim: int, clusters: int, epochs: int, device: str, as_json: bool
) -> None:
    """Time the training of a head against its matrix products alone.

    Example:
      shoal bench train --points 50000 --dim 512 -k 10
    """
    from clusterer.heads.training import check_device

    device = check_device(device)
    from shoal.app.bench.train import TrainBench
    from shoal.app.bench.train import bench_train as measure_train

    result = measure_train(TrainBench(points, dim, clusters, epochs, device=device))
    if as_json:
        print_json({**asdict(result), "ratio": result.ratio})
        return
    talk(result.machine)
    talk(
        f"{points:,} vectors x {dim}, {clusters} clusters, {epochs} epochs, {result.steps:,} steps"
    )
    print_table(
        ("row", "s", "of its products", "GFLOP/s"),
        [
            (name, f"{seconds:.2f}", f"{seconds / result.products_s:.2f}", rate)
            for name, seconds, rate in (
                ("training", result.training_s, f"{result.gflop / result.training_s:.1f}"),
                ("products alone", result.products_s, f"{result.gflop / result.products_s:.1f}"),
                ("neighbours, once", result.neighbours_s, "-"),
            )
        ],
    )


@click.command("heads", cls=Command)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@option("--seeds", type=click.IntRange(2), default=10, help="Heads of each row.")
@option(
    "--objective",
    "objectives",
    type=click.Choice(["scp", "temi"]),
    multiple=True,
    help="Only this loss; repeat. Default: all.",
)
@option(
    "--pairs",
    "kinds",
    type=click.Choice(["neighbours", "augment", "both"]),
    multiple=True,
    help="Only these pairs; repeat. Default: all for which there are views.",
)
@option("--alpha", type=click.FloatRange(min=0), help="SCP's weight of the entropy. Default: 5.")
@json_option
def bench_heads(
    *,
    file: Path,
    seeds: int,
    objectives: tuple[ObjectiveName, ...],
    kinds: tuple[PairKind, ...],
    alpha: float | None,
    as_json: bool,
) -> None:
    """Heads against k-means on vectors whose classes are known.

    FILE is an .npz with vectors (N, D), labels (N,) and perhaps views (V, N, D): the vectors of V
    augmented views. The labels are compared with, never trained on.

    Example:
      shoal bench heads cifar10.npz --seeds 10
    """
    from clusterer.heads.objectives import OBJECTIVES
    from clusterer.heads.training import check_torch

    check_torch()
    from shoal.app.bench.heads import bench_heads as measure_heads
    from shoal.app.bench.heads import load

    data = load(file)
    result = measure_heads(
        data, seeds=seeds, objectives=objectives or tuple(OBJECTIVES), kinds=kinds, alpha=alpha
    )
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    talk(f"{result.points:,} vectors x {result.dim}, {result.clusters} classes, {seeds} seeds")
    print_table(
        ("row", "ACC", "NMI", "ARI", "best by ACC", "s"),
        [(row.name, *_quality(row), f"{row.seconds:.1f}") for row in result.rows],
    )
    print_table(
        ("row", "criterion", "follows ACC"),
        [
            (
                each.row,
                each.criterion,
                "-" if each.correlation is None else f"{each.correlation:.2f}",
            )
            for each in result.judged
        ],
    )


def _quality(row: Quality) -> tuple[str, ...]:
    mean, deviation, best = row.summary()
    pairs = zip(mean, deviation, strict=True)
    shown = " / ".join(f"{value:.3f}" for value in best)
    return (*(f"{value:.3f}±{spread:.3f}" for value, spread in pairs), shown)


def _print_stages(stages: list[Stage]) -> None:
    rows = [
        (
            stage.name,
            f"{stage.first_s:.2f}",
            f"{stage.second_s:.2f}",
            "-" if stage.floor_s is None else f"{stage.floor_s:.2f}",
        )
        for stage in stages
    ]
    first, second = (sum(s.first_s for s in stages), sum(s.second_s for s in stages))
    rows.append(("all", f"{first:.2f}", f"{second:.2f} ({second / first:.0%})", "-"))
    print_table(("stage", "first run s", "second run s", "store alone s"), rows)
