"""Resizing by fast_image_resize: what Pillow makes of the same image, whatever its shape."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.encoding.manifest import Interpolation
from embedder.images import resizing
from embedder.images.preprocess import ImageLimits, decode
from embedder.images.resizing import Box, Resizing, resize

SPEC = load_artefact(bundled_artefact()).manifest.preprocessing
PHOTO = Image.fromarray(load_sample_images().images[0])
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
needs_package = pytest.mark.skipif(
    resizing.fast is None, reason="cykooz-resizer has no wheel for this machine: Pillow resizes"
)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Harder than any photograph: each pixel unlike its neighbours."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@needs_package
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@given(width=st.integers(1, 300), height=st.integers(1, 300), shortest=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_whole_image_is_pillows(
    interpolation: Interpolation, mode: str, width: int, height: int, shortest: int
) -> None:
    """With its aspect kept, up or down, tall or wide: no value differs by more than 2, and few do.

    More of bilinear's, where the scale is a simple fraction: exact halves, rounded either way (8 in
    100 at most, of 6,700 shapes).
    """
    least = min(width, height)
    size = (shortest * width // least, shortest * height // least)
    if max(size) > 2000:
        return
    image = noise(width, height, mode)
    box = (0.0, 0.0, float(width), float(height))
    expected = image.resize(size, PILLOW[interpolation])
    got = resize(image, Resizing(size, box, interpolation))
    assert (got.mode, got.size) == (mode, size)
    difference = abs(array(got) - array(expected))
    assert difference.max() <= 2
    if difference.size > 3000:
        assert difference.mean() < {"bicubic": 0.05, "bilinear": 0.1}[interpolation]


@needs_package
@given(left=st.floats(0, 0.9), top=st.floats(0, 0.9), right=st.floats(0, 1), bottom=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_part_of_an_image_is_pillows(left: float, top: float, right: float, bottom: float) -> None:
    """Any part, to the very edges, which floats round to beyond; the passes in whichever order."""
    image = PHOTO.resize((211, 137))
    right, bottom = max(right, left + 0.05), max(bottom, top + 0.05)
    box: Box = (
        left * image.width,
        top * image.height,
        min(right, 1) * image.width,
        min(bottom, 1) * image.height,
    )
    got = resize(image, Resizing((40, 30), box, "bicubic"))
    assert abs(array(got) - array(image.resize((40, 30), PILLOW["bicubic"], box=box))).max() <= 12
    assert abs(array(got) - array(image.resize((40, 30), PILLOW["bicubic"], box=box))).mean() < 0.5


@needs_package
@pytest.mark.parametrize("shape", [(400, 533), (533, 400), (90, 800), (800, 90)])
def test_sideways_image_is_what_pillow_makes_of_it_upright(shape: tuple[int, int]) -> None:
    """Turned after it was reduced, or before: the order of the passes is the upright image's."""
    upright = PHOTO.resize(shape, Image.Resampling.LANCZOS)
    scale = 100 / min(shape)
    size = (int(shape[0] * scale), int(shape[1] * scale))
    expected = upright.resize(size, PILLOW["bicubic"])
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    box = (0.0, 0.0, float(stored.width), float(stored.height))
    small = resize(stored, Resizing(size[::-1], box, "bicubic", sideways=True))
    difference = abs(array(small.transpose(Image.Transpose.ROTATE_270)) - array(expected))
    assert difference.max() <= 2


STRETCH = """
import resource, sys
from PIL import Image, ImageOps
from embedder.images.resizing import Resizing, resize
shape = int(sys.argv[1]), int(sys.argv[2])
image = Image.new("RGB", shape, (9, 80, 200))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
got = resize(image, Resizing((224, 224), (0.0, 0.0, *map(float, shape)), "bicubic"))
assert got.getcolors() == [(224 * 224, (9, 80, 200))], got.getcolors()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss is not in KiB")
@pytest.mark.parametrize("shape", [(1, 9_000_000), (9_000_000, 1), (3, 4_000_000)])
def test_line_stretched_to_a_square_takes_no_memory(shape: tuple[int, int]) -> None:
    """Neither what lies between the passes nor the kernels are many times the image, 36 MiB."""
    command = [sys.executable, "-c", STRETCH, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert int(done.stdout) < 100 * 2**10


@pytest.mark.parametrize("size", [256, 224])
@given(width=st.integers(1, 320), height=st.integers(1, 320), turned=st.integers(1, 8))
@example(width=178, height=102, turned=6)
@example(width=77, height=76, turned=6)
@example(width=99, height=76, turned=6)
@settings(max_examples=300, deadline=None)
def test_served_pixels_are_pillows_whatever_the_size_and_side(
    size: int, width: int, height: int, turned: int
) -> None:
    """Turned, reduced and cropped as torchvision and Pillow do it of the whole image."""
    if max(width, height) > 6 * min(width, height):
        return
    spec = SPEC.model_copy(update={"resize": SPEC.resize.model_copy(update={"size": size})})
    stored = PHOTO.resize((width, height), Image.Resampling.BOX)
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turned
    stored.save(data, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue())))
    least = min(upright.size)
    whole = (size * upright.width // least, size * upright.height // least)
    left, top = (round((extent - 224) / 2) for extent in whole)
    expected = upright.resize(whole, PILLOW["bicubic"]).crop((left, top, left + 224, top + 224))
    got = decode(data.getvalue(), limits=ImageLimits(), spec=spec).astype(int)
    difference = abs(got - array(expected))
    assert difference.mean() < 0.3
    assert difference.max() <= 8


def test_threads_resize_images_of_their_own() -> None:
    """Many at a time, of different sizes, each as alone."""
    images = [noise(50 + 7 * number, 300 - 5 * number) for number in range(40)]

    def work(image: Image.Image) -> Any:
        return array(resize(image, Resizing((60, 60), (0, 0, *image.size), "bicubic")))

    alone = [work(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        for expected, got in zip(alone, threads.map(work, images), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_without_the_package_pillow_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine for which there is no wheel."""
    monkeypatch.setattr(resizing, "fast", None)
    box = (10.5, 20.25, 300.0, 250.5)
    got = resize(PHOTO, Resizing((50, 40), box, "bilinear"))
    np.testing.assert_array_equal(
        array(got), array(PHOTO.resize((50, 40), PILLOW["bilinear"], box=box))
    )
