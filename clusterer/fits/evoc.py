"""EVoC: density clustering made for embedding vectors, in layers from fine to coarse.

Source: the evoc package (Tutte Institute). It embeds the graph of nearest neighbours and looks for
the resolutions at which clusters persist. The labels of the points that were fitted are the
package's own, noise included.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from clusterer.fits.prototypes import cover
from clusterer.fits.values import Fit, FitPlan, Surroundings
from shoal.errors import ConfigError, FitFailed, InvalidArgument
from shoal.vectors import Labels, Vectors

LEAST_CLUSTER: Final = 5
"""The default least size of a cluster in the finest layer: the package's own."""

_LEAST_DIM: Final = 4
"""The fewest dimensions of a vector: the package begins with four principal components."""

_LEAST_POINTS: Final = 32
"""The fewest points: with fewer the graph of 15 neighbours has most of all pairs."""


@dataclass(frozen=True, slots=True)
class EvocOptions:
    """The options of EVoC.

    Attributes:
        layer: The layer whose clusters are taken, 0 the finest; None is the most persistent one.
        coarsest: True takes the last layer.
        min_cluster_size: The least size of a cluster in the finest layer.
        seed: Seed of everything random.

    Raises:
        InvalidArgument: a value is out of range, or both a layer and the coarsest are asked for.
    """

    method: ClassVar[str] = "evoc"

    layer: int | None = None
    coarsest: bool = False
    min_cluster_size: int = LEAST_CLUSTER
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_cluster_size < 2:  # noqa: PLR2004 - one point is no cluster
            msg = f"min_cluster_size: expected at least 2, got {self.min_cluster_size}"
            raise InvalidArgument(msg, field="config.evoc.min_cluster_size")
        if self.coarsest and self.layer is not None:
            msg = f"expected a layer or coarsest, got both: layer {self.layer}"
            raise InvalidArgument(msg, field="config.evoc.layer")


def plan(options: EvocOptions, _: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``."""
    return FitPlan(options, least_points=_LEAST_POINTS)


def run(vectors: Vectors, options: EvocOptions, warm: Vectors | None) -> Fit:
    """The fit of planned ``options`` on ``vectors`` (N, D); ``warm`` is not used.

    Raises:
        FitFailed: there is no such layer, or nothing but noise.
    """
    del warm
    if vectors.shape[1] < _LEAST_DIM:
        msg = (
            f"method evoc needs vectors of at least {_LEAST_DIM} dimensions, got {vectors.shape[1]}"
        )
        raise FitFailed(msg)
    chosen, layers = evoc_layers(vectors, options.min_cluster_size, seed=options.seed)
    layer = chosen if options.layer is None else options.layer
    if options.coarsest:
        layer = len(layers) - 1
    if layer >= len(layers):
        msg = f"layer: expected 0 to {len(layers) - 1}, the coarsest that was found, got {layer}"
        raise FitFailed(msg)
    sizes = [int(labels.max(initial=-1)) + 1 for labels in layers]
    model = cover(vectors, layers[layer], seed=options.seed)
    return Fit(model, layers[layer], {"layer": layer, "layers": sizes})


def evoc_layers(vectors: Vectors, size: int, *, seed: int) -> tuple[int, list[Labels]]:
    """The labels of ``vectors`` (N, D) in each layer, finest first, and the most persistent one.

    Raises:
        ConfigError: the package evoc is not installed.
    """
    try:
        from evoc import EVoC  # noqa: PLC0415 - an extra, and the first import is slow
    except ImportError as exc:
        msg = f"method evoc needs {exc.name}: pip install 'shoal[cluster]'"
        raise ConfigError(msg, package=str(exc.name)) from exc
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy and numba warn about the package's code
        model = EVoC(base_min_cluster_size=size, random_state=seed % 2**31).fit(vectors)
    layers = [np.asarray(labels, dtype=np.int32) for labels in model.cluster_layers_]
    same = [i for i, labels in enumerate(layers) if np.array_equal(labels, model.labels_)]
    if same:
        return same[0], layers
    return 0, [np.asarray(model.labels_, dtype=np.int32)]
