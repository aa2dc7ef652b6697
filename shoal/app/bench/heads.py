"""Trained heads against k-means on labelled vectors, and how well labelless criteria judge them.

Only this module reads the labels: training, choice and vote never get them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from clusterer.fits import kmeans
from clusterer.heads.ensemble import CRITERIA, best
from clusterer.heads.objectives import ObjectiveName
from clusterer.heads.options import HeadOptions
from clusterer.heads.pairs import PairKind, Pairs, nearest_neighbours
from clusterer.heads.training import one_head, train_seeds
from shoal.app.bench import machine
from shoal.errors import InvalidArgument
from shoal.vectors import Vectors, unit

Labels = npt.NDArray[np.int64]

KINDS: Final[tuple[PairKind, ...]] = get_args(PairKind)
_GROUPS: Final = 20
"""The number of choices of seeds over which the vote of the best is averaged."""


class Scores(NamedTuple):
    """Accuracy after the best matching, normalised mutual information, adjusted Rand index."""

    accuracy: float
    nmi: float
    ari: float


@dataclass(frozen=True, slots=True)
class Row:
    """One way of clustering: the scores of each seed, and the mean seconds of a seed."""

    name: str
    scores: tuple[Scores, ...]
    seconds: float

    def summary(self) -> tuple[Scores, Scores, Scores]:
        """Mean, standard deviation, and the seed whose accuracy, by labels, is the best."""
        every = np.array(self.scores)
        mean, deviation = every.mean(axis=0), every.std(axis=0)
        return Scores(*mean), Scores(*deviation), max(self.scores)


@dataclass(frozen=True, slots=True)
class Judged:
    """How well a criterion that sees no label follows accuracy over the seeds (Spearman's rho).

    ``correlation`` is None if the criterion or the accuracy is the same for all seeds.
    """

    row: str
    criterion: str
    correlation: float | None


@dataclass(frozen=True, slots=True)
class HeadsResult:
    """All that was measured."""

    machine: str
    points: int
    dim: int
    clusters: int
    rows: tuple[Row, ...]
    judged: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """``vectors`` (N, D) of unit length, their ``labels`` (N,), ``views`` (V, N, D); V may be 0."""

    vectors: Vectors
    labels: Labels
    views: Vectors


def load(file: Path) -> Labelled:
    """The labelled vectors in ``file``.

    Raises:
        InvalidArgument: ``file`` is no .npz with ``vectors`` (N, D), ``labels`` (N,) and perhaps
            ``views`` (V, N, D).
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            vectors, labels = arrays["vectors"], arrays["labels"]
            views = arrays.get("views", np.empty((0, *vectors.shape)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        msg = f"{file}: expected an .npz file with vectors and labels: {exc}"
        raise InvalidArgument(msg, field="file") from exc
    flat = vectors.ndim == 2  # noqa: PLR2004 - (N, D)
    if not flat or labels.shape != vectors.shape[:1] or views.shape[1:] != vectors.shape:
        msg = (
            f"{file}: expected vectors (N, D), labels (N,) and views (V, N, D), "
            f"got {vectors.shape}, {labels.shape} and {views.shape}"
        )
        raise InvalidArgument(msg, field="file")
    classes = np.unique(labels, return_inverse=True)[1]
    return Labelled(unit(vectors), classes.astype(np.int64), unit(views))


def scores(truth: Labels, labels: npt.NDArray[np.integer[Any]]) -> Scores:
    """The scores of ``labels`` (N,) for the classes ``truth`` (N,)."""
    counts = np.zeros((int(labels.max()) + 1, int(truth.max()) + 1), np.int64)
    np.add.at(counts, (labels, truth), 1)
    rows, columns = linear_sum_assignment(-counts)
    return Scores(
        float(counts[rows, columns].sum() / len(truth)),
        float(normalized_mutual_info_score(truth, labels)),
        float(adjusted_rand_score(truth, labels)),
    )


def bench_heads(
    data: Labelled,
    *,
    seeds: int,
    objectives: Sequence[ObjectiveName],
    kinds: Sequence[PairKind] = (),
    alpha: float | None = None,
) -> HeadsResult:
    """Every row, with as many clusters as there are classes.

    Args:
        data: the labelled vectors.
        seeds: the number of seeds of every row.
        objectives: ``scp``, ``temi``.
        kinds: the kinds of pairs; empty for all that the data has vectors for.
        alpha: SCP's weight of the entropy; None for its default.

    Raises:
        InvalidArgument: pairs of views are asked for, and there are none.
    """
    clusters = int(data.labels.max()) + 1
    possible = KINDS if len(data.views) else KINDS[:1]
    if missing := sorted(set(kinds) - set(possible)):
        msg = f"pairs {', '.join(missing)}: expected views (V, N, D) in the file, got none"
        raise InvalidArgument(msg, field="pairs")
    rows = list(_kmeans_rows(data, clusters, seeds))
    judged: list[Judged] = []
    for objective, kind in itertools.product(objectives, kinds or possible):
        options = HeadOptions(objective=objective, seeds=seeds, alpha=alpha)
        found, told = _head_rows(data, clusters, options, kind)
        rows += found
        judged += told
    return HeadsResult(
        machine=machine.describe(),
        points=len(data.vectors),
        dim=data.vectors.shape[1],
        clusters=clusters,
        rows=tuple(rows),
        judged=tuple(judged),
    )


def _kmeans_rows(data: Labelled, clusters: int, seeds: int) -> Iterator[Row]:
    """k-means, the best of 10 starts by inertia, on the vectors unchanged and centred.

    scikit-learn's centroids are means, and ours are directions.
    """

    def means(vectors: Vectors, seed: int) -> Labels:
        found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(vectors)
        return np.asarray(found, dtype=np.int64)

    def directions(vectors: Vectors, seed: int) -> Labels:
        options = kmeans.KMeansOptions(clusters, n_init=10, seed=seed)
        return np.asarray((vectors @ kmeans.fit(vectors, options).centroids.T).argmax(axis=1))

    centred = unit(data.vectors - data.vectors.mean(axis=0))
    for which, fit in (("scikit-learn", means), ("shoal", directions)):
        for name, vectors in ((which, data.vectors), (f"{which}, centred", centred)):
            began = time.perf_counter()
            found = tuple(scores(data.labels, fit(vectors, seed)) for seed in range(seeds))
            yield Row(f"k-means, {name}", found, (time.perf_counter() - began) / seeds)


def _head_rows(
    data: Labelled, clusters: int, options: HeadOptions, kind: PairKind
) -> tuple[list[Row], list[Judged]]:
    name = f"{options.objective}, {kind}"
    began = time.perf_counter()
    heads = train_seeds(_pairs(data, clusters, options, kind), clusters, options)
    seconds = (time.perf_counter() - began) / len(heads)
    single = tuple(scores(data.labels, head.votes.argmax(axis=1)) for head in heads)
    qualities = [head.report.quality for head in heads]
    criteria = {
        "loss": [-head.report.losses["total"] for head in heads],
        "agreement": [each.agreement for each in qualities],
        "cohesion": [each.cohesion for each in qualities],
    }
    accuracy = [each.accuracy for each in single]
    judged = [
        Judged(name, criterion, _follows(values, accuracy))
        for criterion, values in criteria.items()
    ]
    size = min(HeadOptions().seeds, len(heads))
    rng = np.random.default_rng(0)
    groups = [rng.choice(len(heads), size, replace=False) for _ in range(_GROUPS)]
    rows = [Row(name, single, seconds)]
    for criterion in CRITERIA:
        together = []
        for group in groups:
            kept = best([qualities[i] for i in group], options.keep, criterion)
            network = one_head([heads[group[i]] for i in kept])
            labels = network.probabilities(data.vectors).argmax(axis=1)
            together.append(scores(data.labels, labels))
        title = f"{name}: best {min(options.keep, size)} of {size} by {criterion}"
        rows.append(Row(title, tuple(together), seconds * size))
    return rows, judged


def _follows(values: Sequence[float], accuracy: Sequence[float]) -> float | None:
    if len(set(values)) == 1 or len(set(accuracy)) == 1:
        return None
    return float(spearmanr(values, accuracy).statistic)


def _pairs(data: Labelled, clusters: int, options: HeadOptions, kind: PairKind) -> Pairs:
    neighbours = None
    if kind != "augment":
        count = options.neighbours_among(len(data.labels), clusters)
        neighbours = nearest_neighbours(data.vectors, count)
    vectors = data.vectors
    if kind != "neighbours":
        vectors = np.concatenate([vectors[None], data.views]).reshape(-1, vectors.shape[1])
    return Pairs(np.ascontiguousarray(vectors), len(data.labels), neighbours)
