"""Measures and warms up an encoder when it is opened, before anybody waits for it.

On a CPU the best number of images in a run is measured. A larger batch makes matrix products
faster, but its activations no longer fit into the caches; which of the two counts more depends on
model and machine (EfficientNet-Lite0 loses 15% from 1 to 8 images, ViT-B/32 gains 40%). On a GPU
every size of batch is run once.
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
"""The numbers of images in a run that are tried on a CPU."""
NEAR = 0.03
"""Sizes within 3% of the best count as equally good. The smallest of them is taken, because it
answers soonest."""
BUDGET_S = 3.0
"""The most seconds that measuring may take. A model that needs more is large, and large models run
best in batches."""


def best_run_size(
    encoder: Encoder, *, workers: int, most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The best number of images in a run of ``encoder``, at most ``most``.

    Args:
        encoder: an open encoder.
        workers: how many runs go on at the same time.
        most: the largest number to try.
        clock: gives seconds.

    Blocks for about BUDGET_S at most, plus the time of one round of the largest size.
    """
    sizes = [size for size in SIZES if size <= most] or [most]
    images = sizes[-1]
    pixels = _grey(encoder, images)

    def run(size: int) -> None:
        for at in range(0, images, size):
            encoder.embed([part[at : at + size] for part in pixels])

    with ThreadPoolExecutor(workers) as threads:

        def seconds(size: int) -> float:
            """The time in which every worker embeds ``images`` images, ``size`` in a run."""
            began = clock()
            list(threads.map(run, [size] * workers))
            return clock() - began

        first = seconds(sizes[-1])  # also warms up
        if first * len(sizes) * 2 > BUDGET_S:
            return sizes[-1]
        rounds = [{size: seconds(size) for size in sizes} for _ in range(2)]
    return smallest_near_best({size: min(r[size] for r in rounds) for size in sizes})


def warm_up(encoder: Encoder, config: RuntimeConfig, *, most: int) -> list[int]:
    """Runs ``encoder`` once with every size of batch that ``most`` images can need.

    Runs texts too if the encoder embeds them. On a GPU the first run of a shape chooses algorithms
    or, with TensorRT, builds an engine, which takes minutes: no caller should wait for that.

    Returns:
        The sizes, in ascending order.
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
    """The smallest size whose time, in seconds, is within the share ``near`` of the shortest."""
    best = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= best * (1 + near))
