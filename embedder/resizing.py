"""Resizing with antialiasing, several times as fast as Pillow where there is a package for it.

fast_image_resize (Rust, by way of cykooz-resizer) convolves with Pillow's kernels, which are those
that the encoders were trained with, in vector instructions. Both round to 8 bits between the pass
over rows and that over columns, so their order matters: in Pillow's, one value of a hundred is off
by 1 of 255; in the other, one of six, by up to 7. There are wheels for x86-64 and for macOS:
elsewhere Pillow resizes.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:
    fast = None

Box: TypeAlias = tuple[float, float, float, float]
"""A part of an image: left, top, right, bottom, in pixels."""
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]

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

_of_thread = threading.local()


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
    if fast is None:
        return image.resize(how.size, _PILLOW[how.interpolation], box=how.box)
    kernel = fast.ResizeAlg.convolution(fast.FilterType[_FAST[how.interpolation]])
    if _rows_first(image.size, how):  # as it does when it is told once
        return _resized(image, how.size, how.box, kernel)
    width, height = how.size
    left, top, right, bottom = how.box
    margin = math.ceil(_REACH * max((bottom - top) / height, 1)) + 1
    first, end = max(math.floor(top) - margin, 0), min(math.ceil(bottom) + margin, image.height)
    narrow = _resized(image, (width, end - first), (left, first, right, end), kernel)
    return _resized(narrow, how.size, (0, top - first, width, bottom - first), kernel)


def _rows_first(size: tuple[int, int], how: Resizing) -> bool:
    """Whether Pillow reduces rows before columns of the whole, upright image.

    So neither a row of millions of pixels nor a column becomes many of them.
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
    _resizer().resize_pil(image, made, options)
    return made


def _resizer() -> Any:
    """This thread's: one resizes one image at a time, and keeps its buffers for the next."""
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = fast.Resizer()
    return _of_thread.resizer


def _crop_box(box: Box, size: tuple[int, int]) -> Any:
    """``box`` as left, top, width and height, whose sums are not rounded to beyond the image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if left + width > size[0]:
        width = math.nextafter(width, 0)
    if top + height > size[1]:
        height = math.nextafter(height, 0)
    return fast.CropBox(left, top, width, height)
