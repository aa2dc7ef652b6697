"""A collection of synthetic vectors in a real store, and runs over it in this process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clusterer.config import ClustererConfig
from clusterer.fits import Fit, FitPlan, run_fit
from clusterer.fits.child import Fitter
from clusterer.fits.kmeans import KMeansOptions
from clusterer.runs.engine import MakeEngine, Scope
from clusterer.runs.in_memory import InMemoryEngine
from clusterer.runs.lease import Holder, Lease, acquire
from clusterer.runs.run import Reclustering
from clusterer.runs.task import Outcome, RunContext, Task
from shoal.store import Store
from shoal.store.clusterings import Clusterings, State, cluster_of
from shoal.store.model import Point, Scan, arrival, point_id
from shoal.values import Gates
from shoal.vectors import Vectors

DIM = 16
CONFIG = ClustererConfig(block_size=64, write_chunk=50)
VECTOR = "toy"


def blobs(n: int, *, centres: int = 5, seed: int = 0, spread: float = 0.15) -> Vectors:
    """``n`` unit vectors (n, DIM) around ``centres`` fixed directions, in turn."""
    directions = np.random.default_rng(7).normal(size=(centres, DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    noise = np.random.default_rng(seed).normal(size=(n, DIM)) * spread
    vectors = directions[np.arange(n) % centres] + noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fit_here(
    plan: FitPlan,
    sample: Vectors,
    *,
    warm: Vectors | None,
    scratch: Path | None,
    check: Callable[[], None],
) -> Fit:
    """The fit in this process: the protocol's tests run dozens, and a child takes a second."""
    del scratch
    check()
    return run_fit(plan, sample, warm)


def after(**then: Callable[[], object]) -> MakeEngine:
    """Makes engines that call ``then[step]`` right after the step of that name."""

    class Interrupted:
        def __init__(self, scope: Scope) -> None:
            self._engine = InMemoryEngine(scope)

        def __getattr__(self, step: str) -> Callable[..., object]:
            def stepped(*arguments: object) -> object:
                result = getattr(self._engine, step)(*arguments)
                then.get(step, lambda: None)()
                return result

            return stepped

    return Interrupted  # type: ignore[return-value]


@dataclass
class Bench:
    """A collection and the means to recluster it."""

    store: Store
    collection: str = "toys"
    config: ClustererConfig = CONFIG
    fit: Fitter = fit_here
    lease: Lease = field(init=False, repr=False)
    """The lease of the run that began last."""

    def put(self, vectors: Vectors, *, first: int = 0, age_s: float = 3600.0) -> list[str]:
        """Stores vectors (N, DIM) under the keys first, first + 1, ...; returns their ids.

        They were ingested ``age_s`` seconds ago: long before any run, unless a test says now.
        """
        ingested_at = time.time() - age_s
        ids = [point_id(str(first + i)) for i in range(len(vectors))]
        self.store.upsert(
            self.collection,
            [
                Point(one, {VECTOR: vector}, {"n": first + i, **arrival(ingested_at)})
                for i, (one, vector) in enumerate(zip(ids, vectors, strict=True))
            ],
        )
        return ids

    def task(self, k: int, *, fit: FitPlan | None = None, **changes: object) -> Task:
        """A task of k-means with ``k`` clusters, or of ``fit``."""
        seed = changes.get("seed", 0)
        task = Task(
            run=str(uuid.uuid4()),
            collection=self.collection,
            clustering="default",
            vector=VECTOR,
            fit_plan=fit or FitPlan(KMeansOptions(k, seed=seed), least_points=k),  # type: ignore[arg-type]
            sample_size=10_000,
            seed=0,
            warm_start=True,
            plan_only=False,
            force=False,
            gates=Gates(),
        )
        return replace(task, **changes)  # type: ignore[arg-type]

    def start(
        self,
        task: Task,
        *,
        fit: Fitter | None = None,
        make_engine: MakeEngine = InMemoryEngine,
        changed: Callable[[], None] = lambda: None,
        cancelled: threading.Event | None = None,
    ) -> tuple[Reclustering, Callable[[], Outcome]]:
        """A run under its lease, and what executes it and gives the lease back."""
        holder = Holder("default", str(uuid.uuid4()), task.run, self.config.lease_ttl_s)
        lease, _ = acquire(self.clusterings, holder)
        self.lease = lease
        self.cancelled = cancelled or threading.Event()
        self.cutover_lock = threading.Lock()
        context = RunContext(
            store=self.store,
            config=self.config,
            cutover_lock=self.cutover_lock,
            cancelled=self.cancelled,
            changed=changed,
            fit=fit or self.fit,
        )
        run = Reclustering(task, context, lease, make_engine)

        def execute() -> Outcome:
            with lease:
                return run.execute()

        return run, execute

    def recluster(self, k: int, **changes: object) -> Reclustering:
        """A whole run, which must succeed."""
        run, execute = self.start(self.task(k, **changes))
        assert execute() == Outcome.SUCCEEDED
        return run

    @property
    def clusterings(self) -> Clusterings:
        return Clusterings(self.store, self.collection)

    @property
    def state(self) -> State:
        return self.clusterings.state("default")

    def nearest(self, vectors: Vectors, run: str = "") -> list[int]:
        """The ids of the clusters of ``run`` (default: the active one) nearest to ``vectors``."""
        clusters = self.clusterings.clusters("default", run or self.state.pointer.active_run)
        centroids = np.stack([c.centroid for c in clusters])
        return [clusters[row].cluster for row in (vectors @ centroids.T).argmax(axis=1)]

    def vectors(self, ids: Iterable[str]) -> Vectors:
        """The vectors of ``ids``, (N, DIM)."""
        found = self.store.retrieve(self.collection, list(ids), vectors=(VECTOR,))
        return np.stack([record.vectors[VECTOR] for record in found if record])

    def labels(self, slot: str | None = None) -> dict[str, int | None]:
        """What readers see: the cluster of every point; or what one slot holds."""
        slot = slot or self.state.pointer.active_slot
        return {
            one: cluster_of(payload, "default", slot)
            for block in self.store.scan(self.collection, Scan())
            for one, payload in zip(block.ids, block.payloads, strict=True)
        }
