"""JPEG files to measure with, made from the two photographs that scikit-learn ships."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT, QUALITY = 400, 533, 90


def photos(count: int, *, seed: int = 0) -> list[bytes]:
    """``count`` different JPEG files of 400 x 533 pixels, quality 90: crops of real photographs."""
    rng = np.random.default_rng(seed)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    made = []
    for number in range(count):
        source = sources[number % len(sources)]
        scale = rng.uniform(0.5, 1.0)
        height = int(source.height * scale)
        width = int(height * WIDTH / HEIGHT)
        left = int(rng.integers(0, source.width - width + 1))
        top = int(rng.integers(0, source.height - height + 1))
        box = (left, top, left + width, top + height)
        out = io.BytesIO()
        source.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box).save(
            out, "JPEG", quality=QUALITY
        )
        made.append(out.getvalue())
    return made


def slow_image(width: int, height: int) -> bytes:
    """A WebP of one colour: a few dozen bytes, and slow to decode if it has millions of pixels."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(out, "WEBP", lossless=True, method=0)
    return out.getvalue()
