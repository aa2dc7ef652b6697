"""Search inside a cluster over gRPC, against the engine's own call on the same vectors.

The floor is the engine: a request cannot be faster than the call that it ends in.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.app.bench import machine
from shoal.app.bench.process import UpProcess
from shoal.app.bench.rounds import Row, Workload, measure
from shoal.client import Client, KMeans, RunOptions, RunState
from shoal.errors import OperatorError
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.store import StoreConfig, open_store
from shoal.store.model import Equals, Filter, Point, Query, point_id, slot_field
from shoal.store.raw import raw_engine
from shoal.values import VectorInfo
from shoal.vectors import Vectors, unit

COLLECTION, VECTOR = "bench", "synthetic"
LIMIT = 10
_CHUNK = 2_000


@dataclass(frozen=True, slots=True)
class SearchBench:
    """``points`` vectors of ``dim`` around ``clusters`` directions, asked ``queries`` times."""

    points: int = 50_000
    dim: int = 512
    clusters: int = 50
    queries: int = 500
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The rows, the rate of storing in points/s, and the share of hits that brute force has too."""

    machine: str
    config: SearchBench
    rows: list[Row]
    stored_per_s: float
    recall: float


def bench_search(config: SearchBench) -> SearchResult:
    """Stores, clusters and searches synthetic vectors in a fresh embedded store."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(config.clusters, config.dim))
    vectors = _around(directions, config.points, rng)
    queries = _around(directions, config.queries, rng)
    with TemporaryDirectory(prefix="shoal-bench-") as directory:
        data = Path(directory) / "data"
        stored_per_s = _fill(data / "store", vectors)
        with (
            UpProcess(data) as up,
            Client(up.address) as client,
            _empty_call(up.address, len(queries)) as empty,
        ):
            _cluster(client, config)
            served = measure([empty, *_served(client, queries)], config.rounds)
            clusters, recall = _check(client, vectors, queries)
        with open_store(StoreConfig(path=data / "store")) as store:
            inside = _inside(queries, clusters)
            calls = [functools.partial(store.search, COLLECTION, query) for query in inside]
            gateway = measure(
                [Workload("store, in its cluster", len(queries), _timed(calls))], config.rounds
            )
        with raw_engine(data / "store", COLLECTION) as prepare:
            prepared = [prepare(query) for query in _inside(queries, clusters)]
            raw = measure(
                [Workload("engine, in its cluster", len(queries), _timed(prepared))],
                config.rounds,
            )
    return SearchResult(machine.describe(), config, [*raw, *gateway, *served], stored_per_s, recall)


def _around(directions: np.ndarray, count: int, rng: np.random.Generator) -> Vectors:
    """``count`` unit vectors (count, D), in cones around ``directions`` (K, D)."""
    picked = directions[rng.integers(0, len(directions), count)]
    return unit(picked + rng.normal(size=picked.shape) * 1.5)


def _fill(path: Path, vectors: Vectors) -> float:
    path.mkdir(parents=True)
    with open_store(StoreConfig(path=path)) as store:
        store.create_collection(COLLECTION, [VectorInfo(VECTOR, vectors.shape[1], "0" * 64)])
        began = time.perf_counter()
        for at in range(0, len(vectors), _CHUNK):
            store.upsert(
                COLLECTION,
                [
                    Point(point_id(str(at + i)), {VECTOR: vector}, {"n": at + i})
                    for i, vector in enumerate(vectors[at : at + _CHUNK])
                ],
            )
        return len(vectors) / (time.perf_counter() - began)


def _cluster(client: Client, config: SearchBench) -> None:
    # The quality of the fit is not what is measured: a small sample and one start will do.
    options = RunOptions(sample_size=min(config.points, 10_000))
    run = client.cluster(KMeans(config.clusters, n_init=1), collection=COLLECTION, options=options)
    if run.state is not RunState.SUCCEEDED:
        raise OperatorError(f"the run ended as {run.state}: {run.error_message}")


def _timed(calls: Sequence[Callable[[], object]]) -> Callable[[], Sequence[float]]:
    """What runs ``calls`` one after another and returns the seconds of each."""

    def run() -> Sequence[float]:
        seconds = []
        for call in calls:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run


def _served(client: Client, queries: Vectors) -> list[Workload]:
    def search(query: Vectors, within: str) -> Callable[[], object]:
        return lambda: client.search(query, collection=COLLECTION, within=within, limit=LIMIT)

    return [
        Workload(
            f"gRPC, within {within}", len(queries), _timed([search(q, within) for q in queries])
        )
        for within in ("auto", "any")
    ]


@contextmanager
def _empty_call(address: str, count: int) -> Iterator[Workload]:
    """What a call costs that does nothing: the floor of everything over gRPC."""
    with open_channel(ChannelConfig(address=address)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        calls = [functools.partial(stub.Check, request)] * count
        yield Workload("gRPC, no work at all", count, _timed(calls))


def _check(client: Client, vectors: Vectors, queries: Vectors) -> tuple[list[int], float]:
    """The cluster of each query, and recall@10 inside it against brute force in NumPy."""
    found = [client.search(q, collection=COLLECTION, within="auto", limit=LIMIT) for q in queries]
    labels = np.empty(len(vectors), np.int64)
    for cluster in client.clusters(collection=COLLECTION, exemplars=0).clusters:
        labels[_members(client, cluster.id, cluster.size, vectors.shape[1])] = cluster.id
    shared = 0
    for query, result in zip(queries, found, strict=True):
        inside = np.nonzero(labels == result.cluster)[0]
        nearest = inside[np.argsort(-(vectors[inside] @ query))[:LIMIT]]
        shared += len(set(nearest.tolist()) & {int(hit.payload["n"]) for hit in result.hits})  # type: ignore[arg-type]
    clusters = [result.cluster for result in found if result.cluster is not None]
    return clusters, shared / (LIMIT * len(queries))


def _members(client: Client, cluster: int, size: int, dim: int) -> list[int]:
    query = np.eye(dim, dtype=np.float32)[0]
    hits = client.search(query, collection=COLLECTION, within=cluster, limit=size).hits
    return [int(hit.payload["n"]) for hit in hits]  # type: ignore[arg-type]


def _inside(queries: Vectors, clusters: Sequence[int]) -> list[Query]:
    """The queries as the gateway takes them; after one run the readers' slot is b."""
    return [
        Query(query, VECTOR, LIMIT, where=Filter((Equals(slot_field("default", "b"), cluster),)))
        for query, cluster in zip(queries, clusters, strict=True)
    ]
