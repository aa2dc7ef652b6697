"""What an export must show before it is kept: that the artefact does what the model does.

Every comparison is of vectors, since vectors are what is kept, and each is made twice: as a
cosine, the measure that is known, and against how far apart different images are, because a
model with random weights gives nearly one vector for all, and every cosine is then near 1.
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
from embedder.images.preprocess import ImageLimits, UInt8, decode
from shoal.errors import ExportRefused

MIN_GRAPH_COSINE: Final = 0.9999
MIN_PREPROCESSING_COSINE: Final = 0.999
MAX_GRAPH_ERROR: Final = 0.02
"""Of the distance between different images: float32 gives 1e-5 to 1e-3."""
MAX_PREPROCESSING_ERROR: Final = 0.25
"""Rounding to whole pixel values, in the resize and after it, costs 0.01 to 0.15; a resize
without antialiasing, or by another filter, 0.5 and more."""
BATCHES: Final = (1, 7, 64)

Float32 = npt.NDArray[np.float32]
Transform = Callable[[Image.Image], torch.Tensor]
"""A library's own preprocessing: an image to what its model takes, (3, H, W)."""


def open_graph(
    file: Graph, *, names: tuple[str, str]
) -> Callable[[npt.NDArray[np.generic]], Float32]:
    """A function that runs the graph on the CPU."""
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
    """Check graph and preprocessing against the model and its library; the lowest graph cosine.

    Raises:
        ExportRefused: naming the image, what was expected and what was got.
    """
    embed = open_graph(graph, names=(IMAGE_INPUT, IMAGE_OUTPUT))
    tests = pictures(preprocessing.crop.height)
    ours = np.stack([_ours(each, preprocessing) for each in tests])
    truth = run(module, ours)
    made = embed(ours)
    lowest = compare(made, truth, [each.name for each in tests], what="graph")
    lowest = min(lowest, _check_batches(module, embed, ours))
    _check_preprocessing(module, made, tests, transform)
    return lowest


def compare(made: Float32, truth: Float32, names: Sequence[str], *, what: str) -> float:
    """The lowest cosine of the graph's rows with the model's; ExportRefused if one is too far."""
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
    """The median distance between different rows (N, D) of unit length.

    Raises:
        ExportRefused: they hardly differ, so that nothing could be told from them.
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
    """Random pixels and photographs in batches of 1, 7 and 64 give what single images give."""
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
    """Our pixels lead to the vectors that the library's own transform leads to."""
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
