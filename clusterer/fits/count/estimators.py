"""Estimators of the number of clusters, one function each. Pure; none of them decides.

There are two kinds: ``eigengap`` and ``density_clusters`` look at the points alone;
``coding_length``, ``modularity``, ``silhouette`` and ``elbow`` judge partitions of growing k.
"""

from __future__ import annotations

import importlib.util
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from shoal.vectors import Labels, Vectors

NEIGHBOURS = 15
"""The nearest neighbours of a point in the graph: enough to connect a cluster, and fewer than the
members of a small one."""

_SHARPNESS = 4
"""The power of the cosine that is an edge's weight: the eigengap's mean error was .55 octaves at a
power of 1, .41 at 4, .54 at 8, give or take .05."""

_LEAST_COSINE = 0.1
"""The least cosine that an edge counts with: no point is left without an edge, however far."""

_DENSE = 400
"""The most points of a component whose eigenvalues a dense solver finds: all of them, faster than
the Lanczos iteration finds a few."""

_CORE = 5
"""HDBSCAN's min_samples, and the smallest of its least sizes of a cluster; it is sqrt(N) / 4."""

_TINY = 1e-12
"""The least divisor: lengths of vectors, and the ends of a curve that does not fall."""

_SILHOUETTE_SAMPLE = 2_000
"""The most points whose silhouette is measured: the time is quadratic, 0.1 s per partition here."""

Curve: TypeAlias = dict[int, float]
"""A criterion by number of clusters, ascending."""


def neighbour_graph(features: Vectors, neighbours: int = NEIGHBOURS) -> csr_array:
    """The graph of all points' nearest neighbours by cosine: symmetric (N, N), weights cosine^4.

    Brute force, N^2 D: in tens of dimensions no tree is faster.
    """
    n = len(features)
    k = min(neighbours, n - 1)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, _TINY)
    model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(directions)
    distances, nearest = model.kneighbors()
    cosines = np.maximum(1 - distances.astype(np.float64) ** 2 / 2, _LEAST_COSINE)
    edges = (np.repeat(np.arange(n), k), nearest.ravel())
    graph = csr_array((cosines.ravel() ** _SHARPNESS, edges), shape=(n, n))
    return csr_array(graph.maximum(graph.T))


def eigengap(graph: csr_array, least: int, most: int, seed: int) -> int:
    """The k in least..most before the widest gap in the spectrum of the normalised Laplacian.

    Source: von Luxburg, "A tutorial on spectral clustering" (2007), section 8.3. The Lanczos
    iteration dominates, about N most^2: 3 s for 10,000 points and 100, 22 s for 256.
    """
    gaps = np.diff(laplacian_spectrum(graph, most + 1, seed))
    return least + int(np.argmax(gaps[least - 1 :]))


def laplacian_spectrum(graph: csr_array, count: int, seed: int) -> npt.NDArray[np.float64]:
    """The ``count`` least eigenvalues of I - D^-1/2 W D^-1/2, ascending; at most N of them.

    Each component of the graph has an eigenvalue 0, and the Lanczos iteration from one start sees
    a multiple eigenvalue once. So the components are taken one by one.
    """
    components, of = connected_components(graph, directed=False)
    parts = (np.flatnonzero(of == c) for c in range(components))
    values = [_component_spectrum(graph[rows][:, rows], count, seed) for rows in parts]
    return np.sort(np.concatenate(values))[:count]


def _component_spectrum(graph: csr_array, count: int, seed: int) -> npt.NDArray[np.float64]:
    n = graph.shape[0]
    scale = diags_array(1 / np.sqrt(graph.sum(axis=0)))
    affinity = csr_array(scale @ graph @ scale)
    if n <= max(_DENSE, 3 * count):
        values = np.linalg.eigvalsh(affinity.toarray())
    else:
        start = np.random.default_rng(seed).uniform(0.5, 1.0, n)
        # tol=0 is machine precision: with more it stops before it has seen near-equal values.
        values = eigsh(affinity, count, which="LA", v0=start, tol=0, return_eigenvectors=False)
    return np.asarray(1 - np.sort(values)[::-1][:count], dtype=np.float64)


def modularity(graph: csr_array, labels: Labels) -> float:
    """The share of the edges' weight inside clusters, less the share that chance puts there.

    Source: Newman & Girvan, Phys. Rev. E 69, 026113 (2004), equation 5.
    """
    n, total = len(labels), graph.sum()
    members = csr_array((np.ones(n), (labels, np.arange(n))))
    inside = (members @ graph @ members.T).diagonal()
    degrees = members @ graph.sum(axis=0)
    return float((inside / total - (degrees / total) ** 2).sum())


def coding_length(features: Vectors, labels: Labels, eps: float = 0.1) -> float:
    """The nats that code the features of each cluster as a Gaussian, up to an error eps.

    Source: Ma et al., "Segmentation of multivariate mixed data via lossy data coding and
    compression", PAMI 29 (2007), with CPP's constants (Chu et al., ICLR 2024): sum over k of
    (m_k + d) / 2 logdet(I + d / (eps m_k) X_k X_k^T) - m_k log(m_k / n).
    """
    n, d = features.shape
    total = 0.0
    for cluster in np.unique(labels):
        members = features[labels == cluster].astype(np.float64)
        m = len(members)
        spread = np.eye(d) + d / (eps * m) * (members.T @ members)
        total += (m + d) / 2 * float(np.linalg.slogdet(spread)[1]) - m * np.log(m / n)
    return total


def elbow(inertia: Curve) -> int:
    """The k at which the curve of inertia over log k is farthest below its chord.

    Source: Satopaa et al., "Finding a 'kneedle' in a haystack" (2011), equation 4, without
    smoothing. Over k instead of log k the knee comes too late, at nearly twice the classes.
    """
    ks, values = np.log(list(inertia)), np.fromiter(inertia.values(), np.float64)
    across = (ks - ks[0]) / max(ks[-1] - ks[0], _TINY)
    down = (values[0] - values) / max(values[0] - values[-1], _TINY)
    return list(inertia)[int(np.argmax(down - across))]


def silhouette(features: Vectors, labels: Labels) -> float:
    """The mean silhouette of the first 2,000 points; -1 if they are not in several clusters."""
    shown, seen = features[:_SILHOUETTE_SAMPLE], labels[:_SILHOUETTE_SAMPLE]
    if not 1 < len(np.unique(seen)) < len(seen):
        return -1.0
    return float(silhouette_score(shown, seen))


def density_clusters(features: Vectors) -> int | None:
    """The number of clusters that HDBSCAN finds; None if the package is not installed.

    They are the leaves of its tree. Its default, the most persistent clusters, joins near ones and
    erred half as much again. The search for neighbours dominates, nearly quadratic in 50
    dimensions: 5 s for 10,000 points.
    """
    if importlib.util.find_spec("hdbscan") is None:
        return None
    from hdbscan import HDBSCAN  # noqa: PLC0415 - an optional dependency, and slow to import

    model = HDBSCAN(
        min_cluster_size=max(_CORE, round(len(features) ** 0.5 / 4)),
        min_samples=_CORE,
        cluster_selection_method="leaf",
        core_dist_n_jobs=1,  # more would fork
    )
    return int(model.fit_predict(features.astype(np.float64)).max() + 1)
