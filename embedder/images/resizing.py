"""Resizing with antialiasing, several times as fast as Pillow where there is a package for it.

fast_image_resize (Rust, by way of cykooz-resizer) convolves with Pillow's kernels, which are those
that the encoders were trained with, in vector instructions. Both round to 8 bits between the pass
over rows and that over columns, so their order matters: in Pillow's, one value of a hundred is off
by 1 of 255; in the other, one of six, by up to 7. There are wheels for x86-64 and for macOS:
elsewhere Pillow resizes.
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
"""Bicubic with a = -0.5, as Pillow's is, is Catmull and Rom's."""
_REACH: Final = 2
"""Of bicubic's kernel, in pixels of the smaller image; bilinear's is 1."""
_TALL: Final = 2
"""Pillow 13 reduces rows first where an image is more than so many times as high as wide. (So it is
where the aspect stays; where it does not, this was found by trying, and holds for nine of ten.)"""

LONGEST: Final = 64
"""Pixels that one is made of, from twice which on they are averaged first; of no photograph."""


@dataclass(frozen=True, slots=True)
class Resizing:
    """What is to become of an image.

    Attributes:
        size: width and height that are wanted.
        box: the part of the image that they show.
        sideways: whether the image lies on its side, and will be turned when it is small.
    """

    size: tuple[int, int]
    box: Box
    interpolation: Interpolation
    sideways: bool = False


def resize(image: Image.Image, how: Resizing) -> Image.Image:
    """A part of ``image``, which is loaded and in mode RGB or L; blocks, without the GIL."""
    image, how = _reduced(image, how)
    if fast is None:
        return image.resize(how.size, _PILLOW[how.interpolation], box=how.box)
    kernel = fast.ResizeAlg.convolution(fast.FilterType[_FAST[how.interpolation]])
    width, height = how.size
    left, top, right, bottom = how.box
    # One direction at a time, also where it could do both in this order: where the first pixel that
    # is wanted lies exactly on one that is there, it then reads before the image (6.1.0).
    if _rows_first(image.size, how):
        first, end = _needed(left, right, width, image.width)
        lower = _resized(image, (end - first, height), (first, top, end, bottom), kernel)
        return _resized(lower, how.size, (left - first, 0, right - first, height), kernel)
    first, end = _needed(top, bottom, height, image.height)
    narrower = _resized(image, (width, end - first), (left, first, right, end), kernel)
    return _resized(narrower, how.size, (0, top - first, width, bottom - first), kernel)


def _reduced(image: Image.Image, how: Resizing) -> tuple[Image.Image, Resizing]:
    """What is many times too long, by whole factors: kernels of millions of pixels take memory."""
    left, top, right, bottom = how.box
    across = max(int((right - left) / how.size[0] / LONGEST), 1)
    down = max(int((bottom - top) / how.size[1] / LONGEST), 1)
    if across == down == 1:
        return image, how
    box = (left / across, top / down, right / across, bottom / down)
    return image.reduce((across, down)), replace(how, box=box)


def _needed(start: float, end: float, wanted: int, length: int) -> tuple[int, int]:
    """The pixels of a direction that the ``wanted`` ones from ``start`` to ``end`` are made of."""
    margin = math.ceil(_REACH * max((end - start) / wanted, 1)) + 1
    return max(math.floor(start) - margin, 0), min(math.ceil(end) + margin, length)


def _rows_first(size: tuple[int, int], how: Resizing) -> bool:
    """Whether Pillow reduces rows before columns of the whole, upright image.

    So neither a row of many pixels nor a column becomes many of them.
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
    made = Image.new(image.mode, size)
    options = fast.ResizeOptions(kernel, crop_box=_crop_box(box, image.size))
    try:
        # A new one each time, which is nothing: one that panicked would fail for good.
        fast.Resizer().resize_pil(image, made, options)
    except BaseException as exc:  # a panic in Rust is no Exception
        if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
            raise
        raise RuntimeError(str(exc)) from exc
    return made


def _crop_box(box: Box, size: tuple[int, int]) -> Any:
    """``box`` as left, top, width and height, whose sums are not rounded to beyond the image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if left + width > size[0]:
        width = math.nextafter(width, 0)
    if top + height > size[1]:
        height = math.nextafter(height, 0)
    return fast.CropBox(left, top, width, height)
