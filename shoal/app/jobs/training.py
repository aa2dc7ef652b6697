"""``shoal train``: a sample from the server, pairs, a trained head, kept.

The files of a killed training are found again: their names are made of the sample and the options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from clusterer.fits.count.asked import AskedCount, Auto, count_clusters
from clusterer.heads.options import HeadOptions
from clusterer.heads.pairs import PairKind, Pairs, Rows, nearest_neighbours
from clusterer.heads.store import HeadManifest, HeadStore, check_name
from clusterer.heads.training import (
    HeadReport,
    TrainedHead,
    check_clusters,
    check_device,
    train_head,
    training_key,
)
from clusterer.heads.views import ViewCache, drop_oldest, with_views
from shoal.app.jobs.pictures_of_points import Pictures
from shoal.client import Client, VectorSample
from shoal.errors import InvalidArgument
from shoal.ownership import remove_directory
from shoal.store.model import JOINT
from shoal.values import VectorInfo
from shoal.vectors import Vectors, joined

LEAST_READABLE: Final = 0.5
"""The share of the pictures that must be readable; a head of fewer would be of another set."""

_FILES_PER_CALL: Final = 32

Progress: TypeAlias = Callable[[int, int], None]
"""A listener that gets the number done and the total."""


@dataclass(frozen=True, slots=True)
class Console:
    """A person's view of the training: ``talk`` shows a line, ``bar`` a bar with title and unit."""

    talk: Callable[[str], None]
    bar: Callable[[str, str], AbstractContextManager[Progress]]


@dataclass(frozen=True, slots=True)
class Request:
    """The head to train.

    Attributes:
        collection: The collection that holds the vectors.
        name: The head's name.
        clusters: The number of clusters, or the range in which estimators vote on it.
        options: How the head is trained.
        pairs: The kind of pairs that belong together.
        vector: The named vector, or several as ``A+B``; empty for the collection's first.
        sample_size: The most points to train on; 0 for the server's limit.
        views: Augmented views of a picture.
        images: The directory of the pictures; None: they are read by their URIs.
        work: The directory for views and checkpoints.
    """

    collection: str
    name: str
    clusters: AskedCount
    options: HeadOptions
    pairs: PairKind
    vector: str
    sample_size: int
    views: int
    images: Path | None
    work: Path


def train_and_keep(
    client: Client, request: Request, store: HeadStore, console: Console
) -> tuple[HeadManifest, HeadReport]:
    """Trains a head as asked and puts it into ``store``; errors are told before the work.

    Raises:
        InvalidArgument: the name, or the number of clusters; or too few pictures can be read.
        ConfigError: torch is not installed, the device or the place of heads is not there.
        ShoalError: as the server, and ``train_head``, raise it.
    """
    check_name(request.name)
    check_device(request.options.device)
    if not isinstance(request.clusters, Auto):
        check_clusters(request.clusters)
    sample = client.sample_vectors(
        collection=request.collection,
        vector=request.vector,
        size=request.sample_size,
        seed=request.options.seed,
    )
    console.talk(
        f"shoal: {len(sample.ids):,} vectors of {sample.vector}, {sample.vectors.shape[1]}-d"
    )
    clusters = _clusters(sample.vectors, request, console)
    neighbours = request.options.neighbours_among(len(sample.ids), clusters)
    options = replace(request.options, neighbours=neighbours)
    pairs = _pairs(client, sample, request, neighbours, console)
    checkpoints = request.work / f"seeds-{training_key(pairs, clusters, options)}"
    checkpoints.mkdir(parents=True, exist_ok=True)
    head = _trained(pairs, clusters, options, checkpoints, console)
    spec = VectorInfo(sample.vector, head.network.dim, sample.fingerprint)
    manifest = head.manifest(request.name, spec)
    store.put(manifest, head.graph)
    remove_directory(checkpoints, parts=[each.name for each in checkpoints.glob("seed-*.pt")])
    return manifest, head.report


def _clusters(vectors: Vectors, request: Request, console: Console) -> int:
    """The number of clusters, estimated if asked."""
    clusters, facts = count_clusters(vectors, request.clusters, seed=request.options.seed)
    if facts:
        votes = ", ".join(f"{vote['estimator']} {vote['k']}" for vote in facts["count"]["votes"])
        doubt = "; they disagree" if facts["count"]["disagree"] else ""
        console.talk(f"shoal: {clusters} clusters (votes: {votes}{doubt})")
    return clusters


def _pairs(
    client: Client, sample: VectorSample, request: Request, count: int, console: Console
) -> Pairs:
    """The pairs of the kind that is asked for; ``count`` neighbours of each picture."""
    vectors, pictures = sample.vectors, len(sample.ids)
    if request.pairs != "neighbours":
        vectors, rows = _with_views(client, sample, request, console)
        pictures = len(rows)
    neighbours = None
    if request.pairs != "augment":
        # Fewer where pictures are few: whether they are too few is for the training to say.
        neighbours = nearest_neighbours(vectors[:pictures], max(1, min(count, pictures - 1)))
    return Pairs(vectors, pictures, neighbours)


def _with_views(
    client: Client, sample: VectorSample, request: Request, console: Console
) -> tuple[Vectors, Rows]:
    """The vectors of the pictures and their views, made by the server's own pipeline."""
    seed = request.options.seed
    cache = ViewCache(
        request.work / f"views-{_views_key(sample, request.views, seed)}",
        views=request.views,
        pictures=len(sample.ids),
        dim=sample.vectors.shape[1],
    )
    drop_oldest(list(request.work.glob("views-*")))
    pictures = Pictures(request.images)

    def embed(files: Sequence[bytes]) -> list[Vectors | None]:
        found: list[Vectors | None] = []
        for at in range(0, len(files), _FILES_PER_CALL):
            some = files[at : at + _FILES_PER_CALL]
            names = sample.vector.split(JOINT)
            fingerprint = sample.fingerprint if len(names) == 1 else ""
            each = [client.embed(some, encoder=name, fingerprint=fingerprint) for name in names]
            found += [_joined([part.vector for part in parts]) for parts in zip(*each, strict=True)]
        return found

    try:
        with console.bar("views", " pictures") as progress:
            views = cache.fill(
                lambda row: pictures.read(sample.uris[row]), embed, seed=seed, progress=progress
            )
    finally:
        pictures.close()
    readable = int(views.there.sum())
    if readable < LEAST_READABLE * len(sample.ids):
        msg = (
            f"pairs {request.pairs}: expected to read at least half of {len(sample.ids)} images, "
            f"got {readable}: --images says where they are, --pairs neighbours needs none"
        )
        raise InvalidArgument(msg, field="images")
    if readable < len(sample.ids):
        console.talk(f"shoal: {len(sample.ids) - readable} images cannot be read, and are left out")
    return with_views(sample.vectors, views)


def _joined(parts: Sequence[Vectors | None]) -> Vectors | None:
    """A picture's vectors as the one that is trained on; None if one of them failed."""
    there = [part for part in parts if part is not None]
    return joined(there) if len(there) == len(parts) else None


def _trained(
    pairs: Pairs, clusters: int, options: HeadOptions, checkpoints: Path, console: Console
) -> TrainedHead:
    with console.bar("training", " epochs") as progress:
        return train_head(
            pairs,
            clusters,
            options,
            checkpoints=checkpoints,
            progress=lambda seed, done, of: progress(seed * of + done, options.seeds * of),
        )


def _views_key(sample: VectorSample, views: int, seed: int) -> str:
    """A name for the views of ``sample``: another sample, number or seed has another."""
    made_of = {"views": views, "seed": seed}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    digest.update(sample.fingerprint.encode())
    digest.update("".join(sample.ids).encode())
    digest.update(np.ascontiguousarray(sample.vectors).data)
    return digest.hexdigest()[:16]
