"""Resizes with antialiasing as Pillow does, several times as fast where there is a wheel for it.

fast_image_resize (Rust, through cykooz-resizer) convolves in vector instructions with Pillow's
kernels, which the encoders were trained with. Both libraries round to 8 bits between the pass over
rows and the pass over columns, so the order of the passes matters: in Pillow's order, 1 value in
100 differs from Pillow's, by 1 of 255; in the other, 1 value in 6, by up to 7. cykooz-resizer has
wheels for x86-64 and for macOS; on other machines Pillow resizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from PIL import Image

from embedder.encoding.manifest import Interpolation

try:
    import cykooz_resizer as fast
except ImportError:
    fast = None

Box: TypeAlias = tuple[float, float, float, float]
"""A part of an image: left, top, right, bottom, in pixels."""

_PILLOW: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_FAST: Final = {"bicubic": "catmull_rom", "bilinear": "bilinear"}
"""Pillow's bicubic kernel has a = -0.5, which is Catmull and Rom's."""
_REACH: Final = 2
"""The reach of bicubic's kernel, in pixels of the smaller image; bilinear's is 1."""
_TALL: Final = 2
"""Pillow 13 reduces rows first if an image is more than this many times as high as wide. That is
exact if the resize keeps the aspect ratio. If not, the rule was found by trying, and holds for nine
images of ten."""

LONGEST: Final = 64
"""From twice this many pixels to one, pixels are averaged by whole factors before the resize. No
photograph is reduced that much."""


@dataclass(frozen=True, slots=True)
class Resizing:
    """How an image is resized.

    Attributes:
        size: width and height of the result.
        box: the part of the image that the result shows.
        interpolation: the kernel.
        sideways: whether the image lies on its side, and will be turned after it is resized.
    """

    size: tuple[int, int]
    box: Box
    interpolation: Interpolation
    sideways: bool = False


def resize(image: Image.Image, how: Resizing) -> Image.Image:
    """A part of ``image``, resized; blocks without holding the GIL.

    The image is loaded and in mode RGB or L.
    """
    image, how = _reduced(image, how)
    if fast is None:
        return image.resize(how.size, _PILLOW[how.interpolation], box=how.box)
    kernel = fast.ResizeAlg.convolution(fast.FilterType[_FAST[how.interpolation]])
    width, height = how.size
    left, top, right, bottom = how.box
    # Each direction is a call of its own, even where one call would do both in the right order: if
    # the first wanted pixel lies exactly on a pixel of the image, that call reads memory before the
    # image (fast_image_resize 6.1.0).
    if _rows_first(image.size, how):
        first, end = _needed(left, right, width, image.width)
        lower = _resized(image, (end - first, height), (first, top, end, bottom), kernel)
        return _resized(lower, how.size, (left - first, 0, right - first, height), kernel)
    first, end = _needed(top, bottom, height, image.height)
    narrower = _resized(image, (width, end - first), (left, first, right, end), kernel)
    return _resized(narrower, how.size, (0, top - first, width, bottom - first), kernel)


def _reduced(image: Image.Image, how: Resizing) -> tuple[Image.Image, Resizing]:
    """The image reduced by whole factors where it is many times too long, and the resize left.

    A kernel of millions of pixels would take too much memory.
    """
    left, top, right, bottom = how.box
    across = max(int((right - left) / how.size[0] / LONGEST), 1)
    down = max(int((bottom - top) / how.size[1] / LONGEST), 1)
    if across == down == 1:
        return image, how
    box = (left / across, top / down, right / across, bottom / down)
    return image.reduce((across, down)), replace(how, box=box)


def _needed(start: float, end: float, wanted: int, length: int) -> tuple[int, int]:
    """The pixels, first and past the last, that a resize of ``start`` to ``end`` reads.

    ``wanted`` is the number of pixels that are made, ``length`` the number that there are.
    """
    margin = math.ceil(_REACH * max((end - start) / wanted, 1)) + 1
    return max(math.floor(start) - margin, 0), min(math.ceil(end) + margin, length)


def _rows_first(size: tuple[int, int], how: Resizing) -> bool:
    """Whether Pillow would reduce rows before columns of the whole, upright image.

    Pillow's order keeps the image between the passes small, however long a row or a column is.
    """
    left, top, right, bottom = how.box
    extent, scales = size, ((right - left) / how.size[0], (bottom - top) / how.size[1])
    if how.sideways:
        extent, scales = extent[::-1], scales[::-1]
    width, height = extent
    across, down = scales
    tall = height > _TALL * width or down > _TALL * across
    return (down > 1 and tall) != how.sideways


def _resized(image: Image.Image, size: tuple[int, int], box: Box, kernel: Any) -> Image.Image:
    resized = Image.new(image.mode, size)
    options = fast.ResizeOptions(kernel, crop_box=_crop_box(box, image.size))
    try:
        # A new Resizer costs nothing, and one that panicked would fail for ever.
        fast.Resizer().resize_pil(image, resized, options)
    except BaseException as exc:  # a panic in Rust is not an Exception
        if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
            raise
        raise RuntimeError(str(exc)) from exc
    return resized


def _crop_box(box: Box, size: tuple[int, int]) -> Any:
    """``box`` as left, top, width and height, such that rounding cannot leave the image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if left + width > size[0]:
        width = math.nextafter(width, 0)
    if top + height > size[1]:
        height = math.nextafter(height, 0)
    return fast.CropBox(left, top, width, height)
