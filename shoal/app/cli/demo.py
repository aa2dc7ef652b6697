"""``shoal demo``: all of Shoal at work on real images, offline, in under a minute."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from tqdm import tqdm

from shoal.app.cli.cluster import StageProgress
from shoal.app.cli.command import Command
from shoal.app.cli.ingest import Report, follow
from shoal.app.cli.options.option import option
from shoal.app.cli.pictures import Digits, Folder, Pictures
from shoal.app.cli.printing.contact_sheet import Row, draw_contact_sheet
from shoal.app.cli.printing.describe import describe_run
from shoal.app.cli.printing.hits import place, print_hits
from shoal.app.cli.printing.output import print_table, say, talk
from shoal.app.cli.root import DomainError
from shoal.app.config import LocalConfig
from shoal.app.local import background
from shoal.client import Client, Cluster, KMeans, RunState, StoredId
from shoal.rpc.server import ServerConfig
from shoal.telemetry import configure_logging

EXEMPLARS = 10
MAX_MEMBERS = 10_000
"""The most hits of one search; clusters of more are judged by those."""


@click.command(cls=Command)
@option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Directory of images. Default: the 1,797 digits that scikit-learn ships.",
)
@option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory to keep the store and the contact sheet in. Default: the store is "
    "temporary and the sheet goes to shoal-demo/.",
)
@option("-k", "k", type=click.IntRange(min=1), default=10, help="Number of clusters.")
@option("--port", type=click.IntRange(0, 65535), default=0, help="Loopback port; 0: a free one.")
def demo(*, images: Path | None, data: Path | None, k: int, port: int) -> None:
    """See Shoal work, offline: ingest, cluster, search.

    Starts the whole of Shoal in this process, on a loopback port, stores the images, clusters
    them, lists the clusters, searches inside one, and writes a contact sheet with a row of
    exemplars per cluster.

    Example:
      shoal demo
      shoal demo --images photos/ -k 20 --data ./demo
    """
    configure_logging("warning", "text")
    pictures: Pictures = Digits() if images is None else Folder(images)
    sheet = (data or Path("shoal-demo")) / "contact-sheet.png"
    with _directory(data) as directory:
        server = ServerConfig(address=f"127.0.0.1:{port}", grace_s=2.0)
        talk("shoal: starting embedder, clusterer and search in this process")
        with (
            background(LocalConfig(data=directory, server=server)) as address,
            Client(address) as client,
        ):
            talk(f"shoal: serving on {address}, data in {directory}")
            _show(client, pictures, k=k, sheet=sheet)


@contextlib.contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as temporary:
        yield Path(temporary)


def _show(client: Client, pictures: Pictures, *, k: int, sheet: Path) -> None:
    _ingest(client, pictures)
    progress = StageProgress(bars=sys.stderr.isatty())
    run = client.cluster(KMeans(k=k), on_change=progress.update)
    progress.close()
    if run.state is not RunState.SUCCEEDED:
        msg = f"the run {run.state}: {run.error_message}"
        raise DomainError(msg)
    for line in describe_run(run):
        say(line)
    clusters = client.clusters(exemplars=EXEMPLARS).clusters
    _print_clusters(client, pictures, clusters)
    _search(client, pictures, clusters[0])
    rows = [
        Row(
            (f"cluster {cluster.id}", f"{cluster.size:,} images", cluster.name),
            tuple(pictures.data(hit.payload) for hit in cluster.exemplars),
        )
        for cluster in clusters
    ]
    draw_contact_sheet(rows, path=sheet)
    say()
    say(f"contact sheet: {sheet}")


def _ingest(client: Client, pictures: Pictures) -> None:
    report = Report()
    with tqdm(
        total=pictures.total,
        desc="ingest",
        unit=" images",
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    ) as bar:
        follow(client.ingest(pictures.items()), report, bar)
    say(f"{pictures.title}: {report}")
    if not report.acknowledged:
        msg = f"{pictures.title}: no image could be stored"
        raise DomainError(msg)


def _print_clusters(client: Client, pictures: Pictures, clusters: tuple[Cluster, ...]) -> None:
    members = {each.id: _labels(client, pictures, each) for each in clusters}
    rows = []
    for each in clusters:
        labels = members[each.id]
        common = max(set(labels), key=labels.count) if labels else ""
        share = f"{labels.count(common) / len(labels):.0%} {common}" if labels else "-"
        rows.append((str(each.id), f"{each.size:,}", f"{each.cohesion:.3f}", share))
    say()
    print_table(("cluster", "size", "cohesion", "mostly"), rows)
    if pictures.labelled:
        from sklearn.metrics import normalized_mutual_info_score

        truth = [label for labels in members.values() for label in labels]
        found = [id_ for id_, labels in members.items() for _ in labels]
        pure = sum(max(map(labels.count, set(labels))) for labels in members.values() if labels)
        nmi = normalized_mutual_info_score(truth, found)
        say(
            f"against the true labels: purity {pure / max(1, len(truth)):.2f}, NMI {nmi:.2f} "
            "(the encoder was made for photographs; nothing was trained here)"
        )


def _labels(client: Client, pictures: Pictures, cluster: Cluster) -> list[str]:
    """The true labels of a cluster's members, where they are known."""
    if not (pictures.labelled and cluster.exemplars):
        return []
    medoid = cluster.exemplars[0]
    rest = client.search(StoredId(medoid.id), within=cluster.id, limit=MAX_MEMBERS).hits
    return [str(hit.payload["label"]) for hit in (medoid, *rest)]


def _search(client: Client, pictures: Pictures, cluster: Cluster) -> None:
    query = cluster.exemplars[-1]
    result = client.search(StoredId(query.id), within="auto", limit=5)
    label = f" (label {query.payload['label']})" if pictures.labelled else ""
    say()
    say(
        f"the {len(result.hits)} images of cluster {result.cluster} nearest to "
        f"{place(query)}{label}:"
    )
    print_hits(result.hits, fields=["label"] if pictures.labelled else [])
