"""The checks that an export must pass before it is kept: it gives its model's vectors.

Vectors are compared, since vectors are stored. Each comparison has two measures: the cosine, which
everybody knows, and the distance as a share of the distance between different images. The second
is needed because a model with random weights gives nearly the same vector for every image, and
then every cosine is near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image

from embedder.encoding.manifest import Preprocessing
from embedder.encoding.runtime import BREAKS_IN_FLOAT16
from embedder.export.graphs import IMAGE_INPUT, IMAGE_OUTPUT, Graph, ImageGraph, run
from embedder.export.pictures import Picture, pictures
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import UInt8, decode
from shoal.errors import ExportRefused

MIN_GRAPH_COSINE: Final = 0.9999
"""The lowest cosine of a vector of the graph with the model's own."""
MIN_PREPROCESSING_COSINE: Final = 0.999
"""The lowest cosine of a vector from Shoal's pixels with that from the library's own."""
MAX_GRAPH_ERROR: Final = 0.02
"""The largest error of the graph, as a share of the distance between different images. float32
gives 1e-5 to 1e-3."""
MAX_PREPROCESSING_ERROR: Final = 0.25
"""The largest error of the preprocessing, as a share of the distance between different images.
Rounding to whole pixel values, in the resize and after it, costs 0.01 to 0.15; a resize without
antialiasing, or with another filter, costs 0.5 and more."""
BATCHES: Final = (1, 7, 64)
"""Sizes of the batches that must give what single images give."""

Float32 = npt.NDArray[np.float32]
Transform = Callable[[Image.Image], torch.Tensor]
"""A library's own preprocessing: from an image to its model's input, (3, H, W)."""


def open_graph(
    file: Graph, *, names: tuple[str, str]
) -> Callable[[npt.NDArray[np.generic]], Float32]:
    """A function that runs the graph on the CPU; ``names`` are of its input and its output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.file,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[BREAKS_IN_FLOAT16],
    )

    def call(array: npt.NDArray[np.generic]) -> Float32:
        (made,) = session.run([names[1]], {names[0]: array})
        return np.asarray(made, dtype=np.float32)

    return call


def check_image_graph(
    module: ImageGraph, graph: Graph, preprocessing: Preprocessing, transform: Transform
) -> float:
    """Checks graph and preprocessing against the model and its library.

    Returns:
        The lowest cosine of the graph's vectors with the model's.

    Raises:
        ExportRefused: a vector is too far from the model's or the library's; names its image.
    """
    embed = open_graph(graph, names=(IMAGE_INPUT, IMAGE_OUTPUT))
    tests = pictures(preprocessing.crop.height, matte=preprocessing.matte)
    ours = np.stack([_ours(each, preprocessing) for each in tests])
    truth = run(module, ours)
    made = embed(ours)
    lowest = compare(made, truth, [each.name for each in tests], what="graph")
    lowest = min(lowest, _check_batches(module, embed, ours))
    _check_preprocessing(module, made, tests, transform)
    return lowest


def compare(made: Float32, truth: Float32, names: Sequence[str], *, what: str) -> float:
    """The lowest cosine of the rows ``made`` with the model's own, ``truth``.

    Raises:
        ExportRefused: a row is too far from the model's; names the row and ``what`` was compared.
    """
    spread = typical_distance(truth)
    lowest = 1.0
    for name, got, wanted in zip(names, made, truth, strict=True):
        cosine = float(got @ wanted)
        error = float(np.linalg.norm(got - wanted)) / spread
        if not (cosine >= MIN_GRAPH_COSINE and error <= MAX_GRAPH_ERROR):  # also for NaN
            msg = (
                f"{what}, {name}: expected the model's vector (cosine >= {MIN_GRAPH_COSINE}, "
                f"error <= {MAX_GRAPH_ERROR} of the distance between images), got cosine "
                f"{cosine:.6f} and error {error:.4f}"
            )
            raise ExportRefused(msg)
        lowest = min(lowest, cosine)
    return lowest


def typical_distance(rows: Float32) -> float:
    """The median distance between two of the rows (N, D), which are of unit length.

    Raises:
        ExportRefused: the rows hardly differ, so that comparing them would show nothing.
    """
    wide = rows.astype(np.float64)
    distances = np.sqrt(np.maximum(2 - 2 * (wide @ wide.T), 0))
    median = float(np.median(distances[np.triu_indices(len(rows), 1)]))
    if not median > 1e-4:  # noqa: PLR2004 - a thousand times float32's precision
        msg = (
            f"the model gives one vector for all images (they are {median:.2g} apart): expected "
            "weights that tell them apart; random ones do not where branches begin at nothing "
            "(LayerScale, as in DINOv2)"
        )
        raise ExportRefused(msg)
    return median


def _check_batches(
    module: ImageGraph, embed: Callable[[npt.NDArray[np.generic]], Float32], photos: UInt8
) -> float:
    """Compares batches of random pixels and photographs with the same images one by one."""
    generator = np.random.default_rng(1)
    lowest = 1.0
    for size in BATCHES:
        batch = generator.integers(0, 256, (size, *photos.shape[1:]), np.uint8)
        batch[: len(photos) : 2] = photos[:size:2]
        made = embed(batch)
        some = np.unique(np.linspace(0, size - 1, 4).astype(int))
        names = [f"image {row} of a batch of {size}" for row in some]
        alone = np.concatenate([embed(batch[row : row + 1]) for row in some])
        if len(some) > 1:
            compare(made[some], alone, names, what="graph, batch against one by one")
            lowest = min(lowest, compare(made[some], run(module, batch[some]), names, what="graph"))
    return lowest


def _ours(picture: Picture, preprocessing: Preprocessing) -> UInt8:
    return decode(picture.data, limits=ImageLimits(), spec=preprocessing)


def _check_preprocessing(
    module: ImageGraph, made: Float32, tests: Sequence[Picture], transform: Transform
) -> None:
    """Compares the vectors ``made`` from Shoal's pixels with those of the library's transform."""
    theirs = torch.stack([transform(each.seen) for each in tests])
    with torch.no_grad():
        truth: Float32 = torch.nn.functional.normalize(module.tower(theirs), dim=-1).numpy()
    spread = typical_distance(truth)
    for each, got, wanted in zip(tests, made, truth, strict=True):
        cosine = float(got @ wanted)
        error = float(np.linalg.norm(got - wanted)) / spread
        if not (cosine >= MIN_PREPROCESSING_COSINE and error <= MAX_PREPROCESSING_ERROR):
            msg = (
                f"preprocessing, {each.name}: expected the library's own (cosine >= "
                f"{MIN_PREPROCESSING_COSINE}, error <= {MAX_PREPROCESSING_ERROR} of the distance "
                f"between images), got cosine {cosine:.6f} and error {error:.4f}"
            )
            raise ExportRefused(msg)
