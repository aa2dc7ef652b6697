"""``shoal bench``: measure Shoal on this machine, against its own parts in the same run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedder.encoding.config import PROVIDERS, Provider
from shoal.app.cli.bench_fits import bench_cluster, bench_heads, bench_train
from shoal.app.cli.command import Group
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.printing.output import print_json, print_table, say, talk
from shoal.errors import ImageInvalid, InvalidArgument

if TYPE_CHECKING:
    from shoal.app.bench.rounds import Row


_images_option = option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="JPEG files to use. Default: 400x533 crops of scikit-learn's two photographs.",
)
_count_option = option(
    "--count", type=click.IntRange(1), default=256, help="How many images per round."
)
_rounds_option = option("--rounds", type=click.IntRange(1), default=3, help="Rounds that count.")


@click.group(cls=Group)
def bench() -> None:
    """Measure Shoal on this machine, against its own parts.

    What needs a server starts one of its own in a temporary directory. Rows are run in turn,
    most of them several times over, with the medians printed. Close other programs first.

    Example:
      shoal bench embed
    """


bench.add_command(bench_cluster)
bench.add_command(bench_train)
bench.add_command(bench_heads)


@bench.command("embed")
@_images_option
@option(
    "--model",
    "encoder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Encoder artefact to measure. Default: the one that ships with Shoal.",
)
@option("--provider", type=click.Choice(PROVIDERS), default="cpu", help="What runs the model.")
@option(
    "--processes",
    type=click.IntRange(2),
    metavar="N",
    help="Measure a server of this many processes too, with as many clients.",
)
@option(
    "--store-url",
    metavar="URL",
    help="Qdrant server that they ingest into. Default: none; they only embed.",
)
@option(
    "--store-grpc-port",
    type=click.IntRange(1, 65535),
    default=6334,
    metavar="PORT",
    help="The Qdrant server's gRPC port.",
)
@_count_option
@_rounds_option
@json_option
def bench_embed(
    *,
    images: Path | None,
    encoder: Path | None,
    provider: Provider,
    processes: int | None,
    store_url: str | None,
    store_grpc_port: int,
    count: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Images per second from JPEG bytes, layer by layer, up to gRPC.

    Example:
      shoal bench embed --count 256 --rounds 3
    """
    from shoal.app.bench.embed import SeveralProcesses
    from shoal.app.bench.embed import bench_embed as measure_embed
    from shoal.app.bench.photos import photos
    from shoal.store import StoreConfig

    store = StoreConfig(url=store_url, grpc_port=store_grpc_port) if store_url else None
    files = photos(count) if images is None else _read(images, count)
    result = measure_embed(
        files,
        rounds=rounds,
        encoder_directory=encoder,
        provider=provider,
        several=SeveralProcesses(processes, store) if processes else None,
    )
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    talk(f"{result.encoder}; {len(files)} JPEG files a round, {rounds} rounds")
    print_table(
        ("row", "images/s", "of bare", "of ceiling", "p50 ms", "p95 ms", "p99 ms"),
        [
            (
                row.name,
                f"{row.rate:.1f}",
                f"{row.rate / result.bare.rate:.2f}",
                f"{row.rate / result.ceiling:.2f}",
                *_percentiles(row),
            )
            for row in result.rows
        ]
        + [("ceiling", f"{result.ceiling:.1f}", *_share(result.ceiling / result.bare.rate))],
    )
    how = "1 / (1/bare + 1/decode)" if provider == "cpu" else "the lower of bare and decode"
    talk(f"ceiling = {how}; server RSS {result.resident_mib:.0f} MiB")


@bench.command("decode")
@_images_option
@_count_option
@_rounds_option
@json_option
def bench_decode(*, images: Path | None, count: int, rounds: int, as_json: bool) -> None:
    """Time what serving does to a JPEG before the model, on one core, and other decoders.

    OpenCV (opencv-python-headless) and simplejpeg are compared where they are installed.

    Example:
      shoal bench decode --count 256
    """
    from shoal.app.bench.decode import bench_decode as measure_decode
    from shoal.app.bench.photos import photos

    files = photos(count) if images is None else _read(images, count)
    result = measure_decode(files, rounds=rounds)
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    served = result.rows[0]
    print_table(
        ("row", "ms per image", "of served"),
        [
            (row.name, f"{1e3 / row.rate:.3f}", f"{served.rate / row.rate:.2f}")
            for row in result.rows
        ],
    )
    if result.missing:
        talk(f"not installed, and not compared: {', '.join(result.missing)}")


@bench.command("soak")
@option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    help="How long.",
)
@option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the load.")
@json_option
def bench_soak(*, minutes: float, seed: int, as_json: bool) -> None:
    """Mixed load with poison, slow images and callers that go away; watch answers and memory.

    Exit status 1, and one line, if an answer is lost, doubled or wrong, the server is stuck
    or, in a soak of 20 minutes or more, its memory grows.

    Example:
      shoal bench soak --minutes 30
    """
    from shoal.app.bench.photos import photos
    from shoal.app.bench.soak import bench_soak as soak

    result = soak(photos(128), seconds=minutes * 60, seed=seed)
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    say(
        f"{result.answered:,} images answered once each in {result.seconds:.0f} s "
        f"({result.rate:.0f}/s), {result.poisoned:,} of them poison; {result.slow:,} slow ones; "
        f"{result.cancelled:,} streams left, {result.refused:,} calls refused; "
        f"RSS {result.resident_mib:.0f} MiB, {result.growth_mib_per_hour:+.0f} MiB/h once warm"
    )


@bench.command("overload")
@option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    help="How long, half of it beside the flood.",
)
@json_option
def bench_overload(*, seconds: float, as_json: bool) -> None:
    """Callers of an embedder that others flood with images of 49 megapixels.

    Exit status 1, and one line, if an image of theirs is refused or their p99 is more than 3 times
    what it is without the flood.

    Example:
      shoal bench overload --seconds 60
    """
    from shoal.app.bench.overload import bench_overload as overload
    from shoal.app.bench.photos import photos

    result = overload(photos(64), seconds=seconds)
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    print_table(
        ("row", "images/s", "p50 ms", "p95 ms", "p99 ms"),
        [(row.name, f"{row.rate:.1f}", *_percentiles(row)) for row in result.rows],
    )
    talk(
        f"p99 x {result.ratio:.2f}; {result.flooded} slow images answered, {result.refused} "
        f"refused or abandoned; RSS {result.before_mib:.0f} MiB before, {result.peak_mib:.0f} at "
        f"the peak with the decoding processes, {result.after_mib:.0f} after"
    )


@bench.command("search")
@option("--points", type=click.IntRange(100), default=50_000, help="Vectors to store.")
@option("--dim", type=click.IntRange(2), default=512, help="Components of a vector.")
@option("--clusters", type=click.IntRange(2), default=50, help="Clusters to make.")
@option("--queries", type=click.IntRange(10), default=500, help="Searches per round.")
@_rounds_option
@json_option
def bench_search(
    *, points: int, dim: int, clusters: int, queries: int, rounds: int, as_json: bool
) -> None:
    """Search inside a cluster over gRPC, against the engine's own call.

    Example:
      shoal bench search --points 50000 --dim 512
    """
    from shoal.app.bench.search import SearchBench
    from shoal.app.bench.search import bench_search as measure_search

    if clusters > points:
        raise InvalidArgument(f"--clusters: expected at most {points} (--points), got {clusters}")
    result = measure_search(SearchBench(points, dim, clusters, queries, rounds))
    if as_json:
        print_json(asdict(result))
        return
    talk(result.machine)
    talk(f"{points:,} vectors x {dim}, {clusters} clusters, {queries} searches a round, 10 hits")
    print_table(
        ("row", "searches/s", "p50 ms", "p95 ms", "p99 ms"),
        [(row.name, f"{row.rate:.0f}", *_percentiles(row)) for row in result.rows],
    )
    talk(
        f"stored {result.stored_per_s:,.0f} points/s; recall@10 in the cluster {result.recall:.4f}"
    )


def _percentiles(row: Row) -> tuple[str, str, str]:
    found = [row.percentile_ms(q) for q in (50, 95, 99)]
    p50, p95, p99 = ("-" if value is None else f"{value:.2f}" for value in found)
    return p50, p95, p99


def _share(of_bare: float) -> tuple[str, str, str, str, str]:
    return f"{of_bare:.2f}", "1.00", "-", "-", "-"


def _read(directory: Path, count: int) -> list[bytes]:
    """The first ``count`` JPEG files under ``directory``, in the order of their names.

    Each is decoded once, so that a bad one is named here, and not in the middle of a measurement.
    """
    from embedder.config import EmbedderConfig
    from embedder.encoding.encoder import Encoder
    from embedder.images.preprocess import decode

    files = sorted(p for p in directory.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    if not files:
        raise InvalidArgument(f"--images {directory}: expected JPEG files, found none")
    config = EmbedderConfig()
    spec = Encoder.open(None, config.runtime).preprocessings[0]
    images = []
    for file in files[:count]:
        try:
            data = file.read_bytes()
            decode(data, limits=config.limits, spec=spec)
        except OSError as exc:
            raise InvalidArgument(f"--images {file}: cannot be read: {exc.strerror}") from exc
        except ImageInvalid as exc:
            raise InvalidArgument(f"--images {file}: {exc.message}") from exc
        images.append(data)
    return images
