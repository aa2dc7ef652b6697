"""Clustering: the fit against other libraries, a whole run by its stages, and how density grows.

All on synthetic vectors around directions whose sizes fall off as 1/rank, as real ones do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from clusterer.fits.hdbscan import default_cluster_size, hdbscan_labels
from clusterer.fits.kmeans import KMeansOptions, fit
from clusterer.fits.reduction import principal_components
from clusterer.nearest import nearest
from shoal.app.bench import machine
from shoal.app.bench.process import UpProcess
from shoal.client import Client, KMeans, Run, RunOptions, RunState
from shoal.errors import ConfigError, OperatorError
from shoal.store import Store, StoreConfig, open_store
from shoal.store.clusterings import cluster_of
from shoal.store.model import Filter, IdIn, Point, VectorScan, point_id, slot_field
from shoal.values import VectorInfo
from shoal.vectors import Vectors, unit

COLLECTION, VECTOR = "bench", "synthetic"
_CHUNK = 2_000
_DIRECTIONS_PER_CLUSTER = 3
"""More groups than clusters: with as many, every start would find the same optimum."""
_SPREAD = 0.045
"""Standard deviation of each component: at 512-d, members have a cosine of about .7 to their
direction."""
FIT_POINTS = 50_000
"""Vectors of the fits: the sample that a run fits by default."""
NEWCOMERS = 1_000
"""Points that come in after the runs."""
_MOVED = 0.02
_MOST_REDO = 16


@dataclass(frozen=True, slots=True)
class ClusterBench:
    """``points`` vectors of ``dim`` in ``clusters`` clusters; density up to ``density`` points."""

    points: int = 50_000
    dim: int = 512
    clusters: int = 100
    density: int = 20_000


@dataclass(frozen=True, slots=True)
class Engine:
    """One fit: seconds, and the sum of squared distances of all vectors to their centroids."""

    name: str
    seconds: float
    inertia: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds of one stage of the first run and of the second, and of what it cannot beat."""

    name: str
    first_s: float
    second_s: float
    floor_s: float | None = None


@dataclass(frozen=True, slots=True)
class Growth:
    """PCA and HDBSCAN of ``points``."""

    points: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ClusterResult:
    """The three tables. ``moved_share`` is that of the second run.

    ``before_mib`` and ``peak_mib`` are the server's resident memory before the first run and its
    highest during it, ``fit_mib`` the highest of the fit's child process. ``newcomers_s`` is how
    long NEWCOMERS points waited for their cluster, beside all the others.
    """

    machine: str
    config: ClusterBench
    engines: list[Engine]
    stages: list[Stage]
    moved_share: float
    before_mib: float
    peak_mib: float
    fit_mib: float
    newcomers_s: float
    growth: list[Growth]


def bench_cluster(config: ClusterBench) -> ClusterResult:
    """Measures the three tables, one after the other."""
    vectors = synthetic(config.points, config.dim, config.clusters)
    engines = list(_engines(vectors[:FIT_POINTS], config.clusters))
    with TemporaryDirectory(prefix="shoal-bench-") as directory:
        runs = _runs(Path(directory) / "data", vectors, config)
    growth = list(_growth(vectors, config.density))
    return ClusterResult(machine.describe(), config, engines, *runs, growth)


def synthetic(points: int, dim: int, clusters: int, seed: int = 0) -> Vectors:
    """Unit vectors (points, dim) around three times ``clusters`` directions, sizes by 1/rank."""
    rng = np.random.default_rng(seed)
    groups = _DIRECTIONS_PER_CLUSTER * clusters
    directions = unit(rng.normal(size=(groups, dim)))
    shares = 1 / np.arange(1, groups + 1)
    made = np.empty((points, dim), np.float32)
    for at in range(0, points, _CHUNK):  # in blocks: a million in float64 would be 4 GB
        some = made[at : at + _CHUNK]
        picked = directions[rng.choice(groups, len(some), p=shares / shares.sum())]
        some[:] = unit(picked + rng.normal(size=some.shape) * _SPREAD)
    return made


def _engines(vectors: Vectors, k: int) -> Iterator[Engine]:
    from sklearn.cluster import KMeans as SklearnKMeans
    from sklearn.cluster import MiniBatchKMeans

    def timed(name: str, run: Callable[[], Vectors]) -> Engine:
        began = time.perf_counter()
        centroids = run()
        seconds = time.perf_counter() - began
        inertia = 2 * float((1 - nearest(vectors, centroids).cosines).sum())
        return Engine(name, seconds, inertia)

    def shoal(starts: int) -> Vectors:
        with threadpool_limits(1, user_api="blas"):  # as in the child process of a run
            return fit(vectors, KMeansOptions(k, n_init=starts)).centroids

    ours = timed("shoal kmeans, 1 start", lambda: shoal(1))
    yield ours
    yield timed("shoal kmeans, 3 starts", lambda: shoal(3))
    for name, estimator in (
        ("scikit-learn KMeans, 1 start", SklearnKMeans(k, n_init=1, random_state=0)),
        (
            "scikit-learn MiniBatchKMeans, 3 starts",
            MiniBatchKMeans(k, n_init=3, batch_size=4096, random_state=0),
        ),
    ):
        yield timed(name, lambda e=estimator: unit(e.fit(vectors).cluster_centers_))  # type: ignore[misc]
    yield from _faiss(vectors, k, timed, ours.inertia)


def _faiss(
    vectors: Vectors, k: int, timed: Callable[[str, Callable[[], Vectors]], Engine], aim: float
) -> Iterator[Engine]:
    """Faiss with more and more starts, until it is within 1% of the inertia ``aim``."""
    try:
        import faiss
    except ImportError as exc:
        msg = "bench cluster compares with faiss: pip install faiss-cpu"
        raise ConfigError(msg, package="faiss-cpu") from exc

    def train(starts: int) -> Vectors:
        model = faiss.Kmeans(
            vectors.shape[1],
            k,
            niter=KMeansOptions(k).max_iterations,
            nredo=starts,
            spherical=True,
            seed=1,
            max_points_per_centroid=len(vectors),
        )
        model.train(vectors)
        return np.ascontiguousarray(model.centroids)

    starts = 1
    while True:
        found = timed(f"faiss, spherical, {starts} starts", lambda n=starts: train(n))  # type: ignore[misc]
        yield found
        if found.inertia <= aim * 1.01 or starts >= _MOST_REDO:
            return
        starts *= 4


class _Runs(NamedTuple):
    """The stages of two runs, and the rest as ``ClusterResult`` has it."""

    stages: list[Stage]
    moved_share: float
    before_mib: float
    peak_mib: float
    fit_mib: float
    newcomers_s: float


def _runs(data: Path, vectors: Vectors, config: ClusterBench) -> _Runs:
    """Two runs, the second after a few points were moved; then newcomers."""
    (data / "store").mkdir(parents=True)
    with open_store(StoreConfig(path=data / "store")) as store:
        store.create_collection(COLLECTION, [VectorInfo(VECTOR, config.dim, "0" * 64)])
        _put(store, vectors, np.arange(len(vectors)))
    _warm(data)
    with UpProcess(data) as up, Client(up.address) as client:
        before = machine.resident_mib(up.process.pid)
        with machine.children_peak_mib(up.process.pid) as fit_peak:
            first = _run(client, config, seed=0)
        peak, fit_mib = machine.peak_mib(up.process.pid), fit_peak()
    moved = np.random.default_rng(1).choice(
        len(vectors), max(1, int(_MOVED * len(vectors))), replace=False
    )
    with open_store(StoreConfig(path=data / "store")) as store:
        _move(store, [point_id(str(number)) for number in moved.tolist()])
    _warm(data)
    with UpProcess(data) as up, Client(up.address) as client:
        second = _run(client, config, seed=0)
    newcomers_s = _newcomers(data, config)
    floors = _floors(data / "store")
    stages = [
        Stage(name, seconds, second.stage_seconds.get(name, 0.0), floors.get(name))
        for name, seconds in first.stage_seconds.items()
    ]
    moved_share = second.plan.moved_share if second.plan else 0.0
    return _Runs(stages, moved_share, before, peak, fit_mib, newcomers_s)


def _warm(data: Path) -> None:
    """Reads every file once: no run is to pay for a disk that another one found in the cache."""
    for file in data.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                while opened.read(2**24):
                    pass


def _newcomers(data: Path, config: ClusterBench) -> float:
    """Seconds until new points have a cluster, from the moment that the server answers."""
    with open_store(StoreConfig(path=data / "store")) as store:
        there = store.count(COLLECTION)
        vectors = synthetic(NEWCOMERS, config.dim, config.clusters, seed=1)
        _put(store, vectors, np.arange(there, there + NEWCOMERS))
    with UpProcess(data) as up, Client(up.address) as client:
        began = time.perf_counter()
        while client.clustering(collection=COLLECTION).assigned < there + NEWCOMERS:
            time.sleep(0.05)
        return time.perf_counter() - began


def _put(store: Store, vectors: Vectors, numbers: np.ndarray) -> None:
    for at in range(0, len(vectors), _CHUNK):
        store.upsert(
            COLLECTION,
            [
                Point(point_id(str(number)), {VECTOR: vector}, {"ingested_at": 0.0})
                for number, vector in zip(
                    numbers[at : at + _CHUNK].tolist(), vectors[at : at + _CHUNK], strict=True
                )
            ],
        )


def _run(client: Client, config: ClusterBench, seed: int) -> Run:
    run = client.cluster(
        KMeans(config.clusters), collection=COLLECTION, options=RunOptions(seed=seed)
    )
    if run.state is not RunState.SUCCEEDED:
        raise OperatorError(f"the run ended as {run.state}: {run.error_message}")
    return run


def _move(store: Store, ids: list[str]) -> None:
    """Puts ``ids`` into the first cluster, in both slots: the next run will move nearly all."""
    for at in range(0, len(ids), 1000):
        where = Filter((IdIn(ids[at : at + 1000]),))
        store.set_payload(COLLECTION, {"a": 0, "b": 0}, where=where, key="clusters.default")


def _floors(path: Path) -> dict[str, float]:
    """Seconds of the store alone: a scan with vectors; a write of both slots of every point.

    As a run writes: a cluster at a time, a thousand points in an operation, values that change.
    """
    with open_store(StoreConfig(path=path)) as store:
        slot = slot_field("default", "a")
        members: defaultdict[int | None, list[str]] = defaultdict(list)
        began = time.perf_counter()
        for block in store.scan(COLLECTION, VectorScan(vector=VECTOR, fields=(slot,))):
            for point, payload in zip(block.ids, block.payloads, strict=True):
                members[cluster_of(payload, "default", "a")].append(point)
        scan_s = time.perf_counter() - began
        began = time.perf_counter()
        for label, ids in members.items():
            values = dict.fromkeys(("a", "b"), (label or 0) + 1)
            for at in range(0, len(ids), 1000):
                where = Filter((IdIn(ids[at : at + 1000]),))
                store.set_payload(COLLECTION, dict(values), where=where, key="clusters.default")
        return {"assign": scan_s, "write": time.perf_counter() - began}


def _growth(vectors: Vectors, most: int) -> Iterator[Growth]:
    sizes = sorted({min(most, len(vectors)) // part for part in (8, 4, 2, 1)})
    for size in sizes:
        began = time.perf_counter()
        with threadpool_limits(1, user_api="blas"):
            reduced = principal_components(vectors[:size], 50, seed=0).points
            hdbscan_labels(reduced, default_cluster_size(size), min_samples=5)
        yield Growth(size, time.perf_counter() - began)
