"""MLlib's fits, on a data frame of unit vectors, as models that the clusterer knows.

k-means is MLlib's with cosine distance: k-means|| seeds, then Lloyd on the sphere. Bisecting
k-means leaves its leaves' centres, and points go to the nearest. A Gaussian mixture is fitted on
principal components, as in one process; MLlib's has full covariances, and their diagonals are
what the stored model keeps: given MLlib's posteriors they are the maximum-likelihood variances of
a mixture with diagonal covariances, so the model is one step of EM away from MLlib's own.

Near-duplicates are not found here: a pass over pairs of a distributed sample is no part of
MLlib. Vectors that are equal bit for bit count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from clusterer.fits.gmm import GmmOptions
from clusterer.fits.kmeans import WARM_TOLERANCE, KMeansOptions
from clusterer.fits.models import Centroids, Mixture
from clusterer.fits.values import NO_DUPLICATES, Fit, FitPlan
from clusterer.nearest import directions
from clusterer.spark.passes import read_vectors
from shoal.errors import FitFailed, NotEnoughPoints, Unsupported
from shoal.spark.cluster import SparkCluster
from shoal.spark.slices import Slice
from shoal.store import StoreConfig, VectorScan
from shoal.vectors import Vectors

METHODS: Final = ("kmeans", "gmm")
"""The methods of the clusterer that MLlib has."""
STARTS: Final = 3
"""Starts of a fit, of which the best is kept. They are few: k-means|| leaves less to chance than
one seed per cluster, and every start is a dozen passes over the sample."""
_BISECTIONS: Final = 20
"""Iterations of each level of bisections, MLlib's default. MLlib does them all, settled or not."""
_ROWS_PER_BATCH: Final = 4096
_COLUMN: Final = "features"
_VARIANCE_FLOOR: Final = 1e-6
"""The least variance, as in ``clusterer.fits.gmm``."""


@dataclass(frozen=True, slots=True)
class FitRequest:
    """A fit to do: its plan, whether k-means bisects, and where the sample's vectors are."""

    plan: FitPlan
    bisecting: bool
    store: StoreConfig
    collection: str
    options: VectorScan
    window: tuple[Slice, ...]


def check_plan(plan: FitPlan, *, bisecting: bool) -> None:
    """Raises Unsupported if Spark's engine cannot do the fit of ``plan``."""
    if bisecting and plan.method != "kmeans":
        raise Unsupported(f"--bisecting is for method kmeans, not {plan.method}")
    asked_clusters(plan)
    if isinstance(plan.options, KMeansOptions) and plan.options.mini_batch:
        raise Unsupported("--engine spark: MLlib's k-means knows no mini-batches")


def asked_clusters(plan: FitPlan) -> int:
    """The number of clusters that ``plan`` asks for; Unsupported if it is to be estimated."""
    if plan.clusters is None:
        raise Unsupported("--engine spark: expected -k, a number of clusters, got auto")
    return plan.clusters


def fit_mllib(
    cluster: SparkCluster,
    request: FitRequest,
    *,
    warm: Vectors | None,
    check: Callable[[], object],
) -> Fit:
    """The fit of a plan on the sample. ``warm`` (K, D) is one more start of k-means to try.

    Raises:
        NotEnoughPoints: the sample has fewer different vectors than clusters are wanted.
        FitFailed: a component has no direction.
    """

    def job() -> Fit:
        frame = _frame(cluster, request).persist()
        try:
            count = frame.count()
            options, k = request.plan.options, asked_clusters(request.plan)
            if k > count:
                msg = f"k = {k} is larger than the number of different vectors in the sample"
                raise NotEnoughPoints(f"{msg}, {count}", k=str(k), points=str(count))
            if isinstance(options, GmmOptions):
                return _mixture(frame, k, options)
            if not isinstance(options, KMeansOptions):
                raise Unsupported(f"--engine spark: method {request.plan.method} is not MLlib's")
            if request.bisecting:
                return _bisected(frame, k, options)
            return _kmeans(frame, k, options, warm)
        finally:
            frame.unpersist()

    return cluster.run(job, check=check)


def _frame(cluster: SparkCluster, request: FitRequest) -> Any:
    """The different vectors of the sample, in one column of MLlib's own type."""
    from pyspark.ml.functions import array_to_vector  # noqa: PLC0415 - an extra
    from pyspark.sql.functions import col  # noqa: PLC0415 - an extra

    store, collection, options = request.store, request.collection, request.options
    parts = [(str(part.start), str(part.end)) for part in request.window]
    listed = cluster.context.parallelize(parts, len(parts))  # a task each
    slices = cluster.session.createDataFrame(listed, "start string, end string")

    def read(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa  # noqa: PLC0415 - an extra

        for batch in batches:
            for row in batch.to_pylist():
                part = Slice(int(row["start"]), int(row["end"]))
                vectors = read_vectors(store, collection, part, options)
                for at in range(0, len(vectors), _ROWS_PER_BATCH):
                    piece = np.ascontiguousarray(vectors[at : at + _ROWS_PER_BATCH])
                    offsets = np.arange(len(piece) + 1, dtype=np.int32) * piece.shape[1]
                    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(piece.ravel()))
                    yield pa.RecordBatch.from_arrays([column], names=["vector"])

    found = slices.mapInArrow(read, "vector array<float>")
    if request.plan.duplicate_cosine < NO_DUPLICATES:
        found = found.dropDuplicates(["vector"])
    return found.select(array_to_vector(col("vector")).alias(_COLUMN))


def _kmeans(frame: Any, k: int, options: KMeansOptions, warm: Vectors | None) -> Fit:
    from pyspark.ml.clustering import KMeans  # noqa: PLC0415 - an extra

    found: list[tuple[float, Vectors]] = []
    for start in range(options.n_init or STARTS):
        model = KMeans(
            featuresCol=_COLUMN,
            k=k,
            distanceMeasure="cosine",
            maxIter=options.max_iterations,
            seed=_seed(options.seed, start),
        ).fit(frame)
        found.append((float(model.summary.trainingCost), _unit(model.clusterCenters())))
    cost, centroids = min(found, key=lambda one: one[0])
    warmed = False
    if warm is not None and len(warm) == k:
        again, kept = _warmed(frame, options, warm)
        if again <= cost * (1 + WARM_TOLERANCE):
            cost, centroids, warmed = again, kept, True
    return Fit(Centroids(centroids), facts={"inertia": 2 * cost, "warm": float(warmed)})


def _warmed(frame: Any, options: KMeansOptions, warm: Vectors) -> tuple[float, Vectors]:
    """Lloyd from the active clusters; only MLlib's older interface takes centroids to start from.

    Returns:
        The cost, a sum of cosine distances as the newer interface has it, and the centroids.
    """
    from pyspark.mllib.clustering import KMeans, KMeansModel  # noqa: PLC0415 - an extra
    from pyspark.mllib.linalg import Vectors as Old  # noqa: PLC0415 - an extra

    vectors = frame.rdd.map(lambda row: Old.dense(row[0].toArray()))
    model = KMeans.train(
        vectors,
        len(warm),
        maxIterations=options.max_iterations,
        initialModel=KMeansModel([Old.dense(row.astype(float)) for row in warm]),
        distanceMeasure="cosine",
    )
    centroids = _unit(model.clusterCenters)
    nearest = frame.rdd.map(
        lambda row: 1.0 - float((centroids @ row[0].toArray().astype(np.float32)).max())
    )
    return float(nearest.sum()), centroids


def _bisected(frame: Any, k: int, options: KMeansOptions) -> Fit:
    from pyspark.ml.clustering import BisectingKMeans  # noqa: PLC0415 - an extra

    model = BisectingKMeans(
        featuresCol=_COLUMN,
        k=k,
        distanceMeasure="cosine",
        maxIter=min(options.max_iterations, _BISECTIONS),
        seed=_seed(options.seed, 0),
    ).fit(frame)
    cost = 2 * float(model.summary.trainingCost)
    return Fit(Centroids(_unit(model.clusterCenters())), facts={"inertia": cost})


def _mixture(frame: Any, k: int, options: GmmOptions) -> Fit:
    from pyspark.ml.clustering import GaussianMixture  # noqa: PLC0415 - an extra
    from pyspark.ml.feature import PCA  # noqa: PLC0415 - an extra
    from pyspark.ml.stat import Summarizer  # noqa: PLC0415 - an extra

    mean = frame.select(Summarizer.mean(frame[_COLUMN]).alias("m")).first()["m"].toArray()
    pca = PCA(k=min(options.dim, len(mean)), inputCol=_COLUMN, outputCol="z").fit(frame)
    axes = pca.pc.toArray().T
    reduced = pca.transform(frame).select("z").persist()
    try:
        models = [
            GaussianMixture(featuresCol="z", k=k, seed=_seed(options.seed, start)).fit(reduced)
            for start in range(STARTS)
        ]
    finally:
        reduced.unpersist()
    best = max(models, key=lambda model: float(model.summary.logLikelihood))
    weights = np.array(best.weights)
    kept = np.nonzero(weights > 0)[0]
    means = np.stack([g.mean.toArray() for g in best.gaussians])[kept]
    variances = np.stack([np.diag(g.cov.toArray()) for g in best.gaussians])[kept]
    # MLlib projects without centring, so its means are of x and not of x - mean.
    centroids = directions(mean + (means - mean @ axes.T) @ axes)
    if len(centroids) < len(kept):
        raise FitFailed("a component's mean has no direction: the vectors cancel out")
    model = Mixture(
        centroids=centroids,
        mean=np.zeros(len(mean)),
        axes=axes,
        means=means,
        variances=np.maximum(variances, _VARIANCE_FLOOR),
        log_weights=np.log(weights[kept]),
    )
    return Fit(model, facts={"log_likelihood": float(best.summary.logLikelihood)})


def _seed(seed: int, start: int) -> int:
    """A seed for Java, 63 bits."""
    state = np.random.default_rng([seed, start])
    return int(state.integers(2**63))


def _unit(centres: Any) -> Vectors:
    found = directions(np.array([np.asarray(centre, dtype=np.float64) for centre in centres]))
    if not len(found):
        raise FitFailed("the vectors cancel out: their mean has no direction; use a larger k")
    return found
