"""What is tried when an encoder is opened, before anybody waits for it.

On a CPU, how many images a model runs best with at once. A larger batch lets matrix products run
faster and its activations fall out of the caches; which of the two counts more differs by model and
machine (EfficientNet-Lite0 loses 15% from 1 to 8 images, ViT-B/32 gains 40%). On a GPU, every size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig

SIZES = (1, 2, 4, 8)
NEAR = 0.03
"""Sizes within 3% of the best are as good: then the smallest, which answers soonest."""
BUDGET_S = 3.0
"""What may be spent: a model that takes longer is a large one, and those run best in batches."""


def best_run_size(
    encoder: Encoder, *, workers: int, most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The number of images, at most ``most``, to run ``encoder`` with in each of ``workers``.

    ``clock`` gives seconds. Blocks for at most about BUDGET_S and the time of ``most`` images.
    """
    sizes = [size for size in SIZES if size <= most] or [most]
    images = sizes[-1]
    pixels = _grey(encoder, images)

    def run(size: int) -> None:
        for at in range(0, images, size):
            encoder.embed([part[at : at + size] for part in pixels])

    with ThreadPoolExecutor(workers) as threads:

        def seconds(size: int) -> float:
            """The time that all workers together take for ``images`` images each."""
            began = clock()
            list(threads.map(run, [size] * workers))
            return clock() - began

        first = seconds(sizes[-1])  # also warms up
        if first * len(sizes) * 2 > BUDGET_S:
            return sizes[-1]
        rounds = [{size: seconds(size) for size in sizes} for _ in range(2)]
    return smallest_near_best({size: min(r[size] for r in rounds) for size in sizes})


def warm_up(encoder: Encoder, config: RuntimeConfig, *, most: int) -> list[int]:
    """Runs every size of batch that up to ``most`` images are filled up to; returns those sizes.

    Texts too, if the encoder embeds them.

    On a GPU the first run of a shape chooses algorithms or, with TensorRT, builds an engine, which
    takes minutes: no caller is to wait for that.
    """
    sizes = sorted({config.bucket(rows) for rows in range(1, most + 1)})
    for size in sizes:
        encoder.embed(_grey(encoder, size))
        if encoder.has_text:
            encoder.embed_texts(["a photograph"] * size)
    return sizes


def _grey(encoder: Encoder, images: int) -> list[npt.NDArray[np.uint8]]:
    """Pixels of ``images`` grey images, for each part of the encoder."""
    shapes = [(p.crop.height, p.crop.width, 3) for p in encoder.preprocessings]
    return [np.full((images, *shape), 127, np.uint8) for shape in shapes]


def smallest_near_best(seconds: dict[int, float], *, near: float = NEAR) -> int:
    """The smallest of the sizes whose time is within ``near`` of the shortest."""
    best = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= best * (1 + near))
