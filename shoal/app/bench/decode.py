"""Decoding on one core: JPEG files to pixels by several libraries, and what serving adds.

The floor is the JPEG decoder; the rest of what is served is the resize, the crop and the copy into
a batch. The other libraries are compared where they are installed.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from embedder.config import EmbedderConfig
from embedder.encoding.encoder import Encoder
from embedder.encoding.manifest import Preprocessing
from embedder.images.preprocess import decode
from shoal.app.bench import machine
from shoal.app.bench.rounds import Row, Workload, measure

BATCH = 64
"""Images of the batch that is copied together."""


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """The rows, the first of which is what is served, and the packages that were not there."""

    machine: str
    rows: list[Row]
    missing: list[str]


def bench_decode(images: Sequence[bytes], *, rounds: int) -> DecodeResult:
    """Measures ``images`` (JPEG files), one after the other, on one thread."""
    config = EmbedderConfig()
    spec = Encoder.open(None, config.runtime).preprocessings[0]

    def served(image: bytes) -> object:
        return decode(image, limits=config.limits, spec=spec)

    pixels = [decode(image, limits=config.limits, spec=spec) for image in images]
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    workloads = [
        _each("as served: decode, resize, crop", images, served),
        Workload("copy into the batch", len(images), lambda: _done(map(np.stack, batches))),
        _each("Pillow, decode", images, _pillow),
        _each("Pillow, decode, resize", images, functools.partial(_resized, spec)),
    ]
    missing = []
    for package, module, add in (
        ("opencv-python-headless", "cv2", functools.partial(_opencv, spec.resize.size)),
        ("simplejpeg", "simplejpeg", _simplejpeg),
    ):
        if importlib.util.find_spec(module) is None:
            missing.append(package)
        else:
            workloads += [_each(name, images, call) for name, call in add().items()]
    return DecodeResult(machine.describe(), measure(workloads, rounds), missing)


def _each(name: str, images: Sequence[bytes], call: Callable[[bytes], object]) -> Workload:
    return Workload(name, len(images), lambda: _done(map(call, images)))


def _done(results: Iterable[object]) -> Sequence[float]:
    for _ in results:
        pass
    return ()


def _pillow(image: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(image))
    opened.load()
    return opened


def _resized(spec: Preprocessing, image: bytes) -> object:
    """The central part that is served, in its size."""
    size = (spec.crop.width, spec.crop.height)
    bleed = (1 - spec.crop.height / spec.resize.size) / 2
    return ImageOps.fit(_pillow(image), size, Image.Resampling.BICUBIC, bleed=bleed)


def _opencv(size: int) -> dict[str, Callable[[bytes], object]]:
    import cv2

    cv2.setNumThreads(1)

    def pixels(image: bytes) -> object:
        return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)

    def resized(image: bytes) -> object:
        return cv2.resize(pixels(image), (size, size), interpolation=cv2.INTER_AREA)

    return {"OpenCV, decode": pixels, "OpenCV, decode, resize by areas": resized}


def _simplejpeg() -> dict[str, Callable[[bytes], object]]:
    import simplejpeg

    return {"simplejpeg, decode": simplejpeg.decode_jpeg}
