"""Models: the rules that give any vector its cluster, or noise. Pure.

A model is arrays and nothing else: it is stored with its run, and assigns the points that come in
later. Four rules serve all methods:

``Centroids``   the nearest direction (k-means)
``Prototypes``  the nearest of several prototypes per cluster, or noise (HDBSCAN, EVoC)
``Mixture``     the likeliest Gaussian component (GMM)
``Head``        the cluster that a trained network votes for (SCP, TEMI)
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from clusterer.heads.session import HeadSession
from clusterer.nearest import blocks, two_nearest
from shoal.errors import FitFailed
from shoal.vectors import NOISE, Labels, Vectors

Arrays: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
Kind: TypeAlias = Literal["centroids", "prototypes", "mixture", "head"]


class Assigned(NamedTuple):
    """``labels`` int32 (B,): rows of the clusters, or NOISE; ``confidence`` float32 (B,), 0 to 1.

    The confidence of noise is 0.
    """

    labels: Labels
    confidence: npt.NDArray[np.float32]


class Model(Protocol):
    """A clustering of unit vectors into K clusters."""

    kind: ClassVar[Kind]
    """The name of the rule."""

    @property
    def centroids(self) -> Vectors:
        """The direction of each cluster, float32 (K, D), unit length."""

    def assign(self, vectors: Vectors) -> Assigned:
        """The clusters of ``vectors`` (B, D), float32 of unit length."""

    def arrays(self) -> Arrays:
        """The arrays that it consists of, by the names of its fields."""


@dataclass(frozen=True, slots=True)
class Centroids:
    """Each vector belongs to the nearest of ``centroids``; nothing is noise."""

    kind: ClassVar[Kind] = "centroids"

    centroids: Vectors

    def assign(self, vectors: Vectors) -> Assigned:
        """The nearest cluster; its confidence is the ``margin`` to the next."""
        found = two_nearest(vectors, self.centroids)
        return Assigned(found.labels, margin(found.cosines, found.others))

    def arrays(self) -> Arrays:
        """The centroids."""
        return {"centroids": self.centroids}


@dataclass(frozen=True, slots=True)
class Prototypes:
    """Each vector belongs to the cluster of the nearest prototype, if that is near enough.

    Attributes:
        centroids: float32 (K, D), the clusters' directions; for matching, not for assigning.
        prototypes: float32 (M, D), unit length, M >= K.
        owners: int32 (M,), ascending: the cluster of each prototype; each cluster owns one or more.
        thresholds: float32 (K,): the least cosine of a cluster's member to its nearest prototype.
    """

    kind: ClassVar[Kind] = "prototypes"

    centroids: Vectors
    prototypes: Vectors
    owners: Labels
    thresholds: npt.NDArray[np.float32]

    def assign(self, vectors: Vectors) -> Assigned:
        """The cluster of the nearest prototype, or noise; its confidence is the ``margin``."""
        found = two_nearest(vectors, self.prototypes, self.owners)
        confidence = margin(found.cosines, found.others)
        far = found.cosines < self.thresholds[found.labels]
        return Assigned(
            np.where(far, np.int32(NOISE), found.labels), np.where(far, np.float32(0), confidence)
        )

    def arrays(self) -> Arrays:
        """Centroids, prototypes, owners and thresholds."""
        return {
            "centroids": self.centroids,
            "prototypes": self.prototypes,
            "owners": self.owners,
            "thresholds": self.thresholds,
        }


def beside(first: Prototypes, second: Prototypes) -> Prototypes:
    """The clusters of ``first``, then those of ``second``, as one model."""
    return Prototypes(
        np.concatenate([first.centroids, second.centroids]),
        np.concatenate([first.prototypes, second.prototypes]),
        np.concatenate([first.owners, second.owners + len(first.centroids)]).astype(np.int32),
        np.concatenate([first.thresholds, second.thresholds]),
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Each vector belongs to the component of a Gaussian mixture that most likely made it.

    With z = (x - mean) axes^T, component k has log w_k + log N(z; means_k, diag(variances_k)).

    Attributes:
        centroids: float32 (K, D), the clusters' directions; for matching, not for assigning.
        mean: float64 (D,).
        axes: float64 (P, D), orthonormal rows: the principal components.
        means: float64 (K, P).
        variances: float64 (K, P), positive.
        log_weights: float64 (K,).
    """

    kind: ClassVar[Kind] = "mixture"

    centroids: Vectors
    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    variances: npt.NDArray[np.float64]
    log_weights: npt.NDArray[np.float64]

    def assign(self, vectors: Vectors) -> Assigned:
        """The likeliest component; its confidence is its posterior probability."""
        labels = np.empty(len(vectors), np.int32)
        confidence = np.empty(len(vectors), np.float32)
        for rows in blocks(len(vectors), max(len(self.means), self.means.shape[1])):
            joint = self._log_joint(vectors[rows])
            best = joint.argmax(axis=1)
            top = joint[np.arange(len(best)), best]
            labels[rows] = best
            confidence[rows] = 1 / np.exp(joint - top[:, None]).sum(axis=1)
        return Assigned(labels, confidence)

    def _log_joint(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """Log p(z, k), (B, K), but for a constant: quadratic in z, so two matrix products."""
        z = (vectors.astype(np.float64) - self.mean) @ self.axes.T
        precisions = 1 / self.variances
        constant = self.log_weights - 0.5 * (
            np.log(self.variances) + self.means**2 * precisions
        ).sum(axis=1)
        linear: npt.NDArray[np.float64] = z @ (self.means * precisions).T
        quadratic: npt.NDArray[np.float64] = (z**2) @ precisions.T
        joint: npt.NDArray[np.float64] = linear - 0.5 * quadratic + constant
        return joint

    def arrays(self) -> Arrays:
        """The centroids and the mixture's parameters."""
        return {
            "centroids": self.centroids,
            "mean": self.mean,
            "axes": self.axes,
            "means": self.means,
            "variances": self.variances,
            "log_weights": self.log_weights,
        }


@dataclass(frozen=True)  # no slots: it keeps its session
class Head:
    """Each vector belongs to the cluster that a trained network finds likeliest.

    Attributes:
        centroids: float32 (K, D), the clusters' directions; for matching, not for assigning.
        graph: uint8 (bytes,), the network in ONNX: vectors in, soft assignments out.
        columns: int32 (K,): the outputs of the network that are clusters.
    """

    kind: ClassVar[Kind] = "head"

    centroids: Vectors
    graph: npt.NDArray[np.uint8]
    columns: npt.NDArray[np.int32]

    def assign(self, vectors: Vectors) -> Assigned:
        """The likeliest cluster; its confidence is its share of the votes for all ``columns``."""
        votes = self._session.probabilities(vectors)[:, self.columns]
        labels = votes.argmax(axis=1).astype(np.int32)
        total = np.maximum(votes.sum(axis=1), np.finfo(np.float32).tiny)
        return Assigned(labels, votes[np.arange(len(votes)), labels] / total)

    def arrays(self) -> Arrays:
        """Centroids, network and columns."""
        return {"centroids": self.centroids, "graph": self.graph, "columns": self.columns}

    @functools.cached_property
    def _session(self) -> HeadSession:
        return HeadSession(self.graph.tobytes())


def margin(
    best: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The margin of the best cluster to the next, float32 (B,), 0 to 1.

    It is 1 - a/b, with the cosine distances a to the best and b to the next: the simplified
    silhouette of a point (Vendramin, Campello & Hruschka, "Relative clustering validity criteria",
    2010). It is 0 on the border and if both distances are 0, and 1 if there is no other cluster.
    """
    near, far = 1 - np.minimum(best, 1), 1 - np.minimum(other, 1)
    ratio = np.divide(near, far, out=np.ones_like(near), where=far > 0)
    share: npt.NDArray[np.float32] = np.clip(1 - ratio, 0, 1).astype(np.float32)
    return share


_KINDS: Final[Mapping[str, Callable[..., Model]]] = {
    each.kind: each for each in (Centroids, Prototypes, Mixture, Head)
}


def pack(model: Model, ids: Labels) -> bytes:
    """``model`` and the id int32 (K,) of each of its clusters: NumPy's npz, without pickles."""
    buffer = io.BytesIO()
    arrays = {"kind": np.array(model.kind), "ids": ids, **model.arrays()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type] # NumPy's stub takes them for a flag
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[Model, Labels]:
    """The model and the ids that ``pack`` made ``data`` of.

    Raises:
        FitFailed: ``data`` is damaged, or a model of a kind that this version does not know.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        make, ids = _KINDS[str(arrays.pop("kind"))], arrays.pop("ids")
        return make(**arrays), ids
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as exc:
        msg = f"the run's model cannot be read: expected one of {', '.join(_KINDS)}: {exc}"
        raise FitFailed(msg) from exc
