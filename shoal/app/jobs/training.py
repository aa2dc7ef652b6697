"""What ``shoal train`` does: a sample from the server, pairs, a trained head, kept.

Everything that a killed training left is found again by what it was made of: the sample, the
options, the seed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from clusterer.fits.count.asked import DEFAULT_LEAST, DEFAULT_MOST, Count, decide
from clusterer.heads.graph import to_onnx
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.store import HeadManifest, HeadSeed, HeadStore, check_name, manifest_of
from clusterer.heads.training import (
    HeadOptions,
    HeadReport,
    ObjectiveName,
    Schedule,
    check_device,
    default_neighbours,
    train_head,
)
from clusterer.heads.views import ViewCache, drop_oldest, with_views
from shoal.app.cli.printing.output import talk
from shoal.app.cli.root import DomainError
from shoal.app.jobs.pictures_of_points import Pictures
from shoal.client import Client, VectorSample
from shoal.store.model import JOINT
from shoal.values import VectorInfo
from shoal.vectors import joined

LEAST_READABLE: Final = 0.5
"""Share of the pictures that must be readable, or the head would be of something else."""
_FILES_A_CALL: Final = 32


@dataclass(frozen=True, slots=True)
class Request:
    """What to train; the command's options."""

    collection: str
    k: int | Literal["auto"]
    overcluster: int
    pairs: Literal["neighbours", "augment", "both"]
    objective: ObjectiveName
    name: str
    vector: str
    encoders: str
    sample_size: int
    neighbours: int
    views: int
    images: Path | None
    alpha: float | None
    learning_rate: float
    schedule: Schedule
    epochs: int
    batch: int
    seed: int
    seeds: int
    keep: int
    device: str
    amp: bool
    work: Path


def train_and_keep(
    client: Client, request: Request, store: HeadStore
) -> tuple[HeadManifest, HeadReport]:
    """Trains a head as asked and puts it into ``store``; what is wrong is said before the work."""
    check_name(request.name)
    check_device(request.device)
    sample = client.sample_vectors(
        collection=request.collection,
        vector=JOINT.join(request.encoders.split(",")) if request.encoders else request.vector,
        size=request.sample_size,
        seed=request.seed,
    )
    talk(f"shoal: {len(sample.ids):,} vectors of {sample.vector}, {sample.vectors.shape[1]}-d")
    options = _options(sample, request)
    pairs = _pairs(client, sample, request, options)
    checkpoints = request.work / _key("seeds", sample, _made_of(options, pairs))
    checkpoints.mkdir(parents=True, exist_ok=True)
    network, report = _trained(pairs, options, checkpoints)
    graph = to_onnx(network)
    manifest = manifest_of(
        request.name,
        graph,
        clusters=network.clusters,
        vector=VectorInfo(sample.vector, network.dim, sample.fingerprint),
        objective=options.objective,
        pairs=request.pairs,
        options=report.options,
        metrics={**asdict(report.quality), "pictures": report.pictures, "views": report.views},
        curves=(
            report.terms,
            {str(each.seed): [list(row) for row in each.curve] for each in report.seeds},
        ),
        seeds=[
            HeadSeed(seed=each.seed, kept=each.seed in report.kept, **asdict(each.quality))
            for each in report.seeds
        ],
    )
    store.put(manifest, graph)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return manifest, report


def _options(sample: VectorSample, request: Request) -> HeadOptions:
    """The training's options, with the number of clusters estimated if asked."""
    if request.overcluster:
        return _head_options(request, request.overcluster, len(sample.ids))
    count = Count(0, DEFAULT_LEAST, DEFAULT_MOST) if request.k == "auto" else Count(request.k)
    clusters, facts = decide(sample.vectors, count, seed=request.seed)
    if facts:
        votes = ", ".join(f"{vote['estimator']} {vote['k']}" for vote in facts["count"]["votes"])
        doubt = "; they disagree" if facts["count"]["disagree"] else ""
        talk(f"shoal: {clusters} clusters (votes: {votes}{doubt})")
    return _head_options(request, clusters, len(sample.ids))


def _head_options(request: Request, clusters: int, points: int) -> HeadOptions:
    options = HeadOptions(
        clusters=clusters,
        merge=bool(request.overcluster),
        objective=request.objective,
        neighbours=request.neighbours,
        alpha=request.alpha,
        learning_rate=request.learning_rate,
        schedule=request.schedule,
        epochs=request.epochs,
        batch=request.batch,
        seed=request.seed,
        seeds=request.seeds,
        keep=request.keep,
        device=request.device,
        amp=request.amp,
    )
    return replace(options, neighbours=request.neighbours or default_neighbours(options, points))


def _pairs(client: Client, sample: VectorSample, request: Request, options: HeadOptions) -> Pairs:
    """The pairs of the kind that is asked for."""
    vectors, pictures = sample.vectors, len(sample.ids)
    if request.pairs != "neighbours":
        vectors, rows = _with_views(client, sample, request)
        pictures = len(rows)
    neighbours = None
    if request.pairs != "augment":
        # At most, where pictures are few: how few are too few is for the training to say.
        count = max(1, min(options.neighbours, pictures - 1))
        neighbours = nearest_neighbours(vectors[:pictures], count)
    return Pairs(vectors, pictures, neighbours)


def _with_views(
    client: Client, sample: VectorSample, request: Request
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The vectors of the pictures and their views, made by the server's own pipeline."""
    made_of = {"views": request.views, "seed": request.seed}
    cache = ViewCache(
        request.work / _key("views", sample, made_of),
        views=request.views,
        pictures=len(sample.ids),
        dim=sample.vectors.shape[1],
    )
    drop_oldest(list(request.work.glob("views-*")))
    pictures = Pictures(request.images)
    bar = tqdm(desc="views", unit=" pictures", file=sys.stderr, disable=not sys.stderr.isatty())

    def embed(files: Sequence[bytes]) -> list[npt.NDArray[np.float32] | None]:
        found: list[npt.NDArray[np.float32] | None] = []
        for at in range(0, len(files), _FILES_A_CALL):
            some = files[at : at + _FILES_A_CALL]
            each = [client.embed(some, encoder=name) for name in sample.vector.split(JOINT)]
            found += [_joined([one.vector for one in parts]) for parts in zip(*each, strict=True)]
        return found

    def progress(done: int, of: int) -> None:
        bar.total, bar.n = of, min(done, of)
        bar.refresh()

    try:
        views = cache.fill(
            lambda row: pictures.read(sample.uris[row]), embed, seed=request.seed, progress=progress
        )
    finally:
        bar.close()
        pictures.close()
    there = int(views.there.sum())
    if there < LEAST_READABLE * len(sample.ids):
        msg = (
            f"pairs {request.pairs}: expected to read at least half of {len(sample.ids)} images, "
            f"got {there}: --images says where they are, --pairs neighbours needs none"
        )
        raise DomainError(msg)
    if there < len(sample.ids):
        talk(f"shoal: {len(sample.ids) - there} images cannot be read, and are left out")
    return with_views(sample.vectors, views)


def _joined(parts: Sequence[npt.NDArray[np.float32] | None]) -> npt.NDArray[np.float32] | None:
    """A picture's vectors as the one that is trained on; None if one of them failed."""
    there = [part for part in parts if part is not None]
    return joined(there) if len(there) == len(parts) else None


def _trained(pairs: Pairs, options: HeadOptions, checkpoints: Path) -> tuple[Any, HeadReport]:
    bar = tqdm(desc="training", unit=" epochs", file=sys.stderr, disable=not sys.stderr.isatty())

    def progress(seed: int, done: int, of: int) -> None:
        bar.total, bar.n = options.seeds * of, seed * of + done
        bar.refresh()

    try:
        return train_head(pairs, options, checkpoints=checkpoints, progress=progress)
    finally:
        bar.close()


def _made_of(options: HeadOptions, pairs: Pairs) -> dict[str, Any]:
    """What a training comes of, wherever it runs."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs.vectors).data)
    if pairs.neighbours is not None:
        digest.update(np.ascontiguousarray(pairs.neighbours).data)
    return {**asdict(options), "device": "", "pairs": digest.hexdigest()}


def _key(kind: str, sample: VectorSample, made_of: dict[str, Any]) -> str:
    """A name for what is made of ``sample`` in this way: another sample has another."""
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    digest.update(sample.fingerprint.encode())
    digest.update("".join(sample.ids).encode())
    digest.update(np.ascontiguousarray(sample.vectors).data)
    return f"{kind}-{digest.hexdigest()[:16]}"
