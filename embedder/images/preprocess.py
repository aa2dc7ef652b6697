"""From image bytes to the uint8 array that an encoder's graph takes.

This module owns the limits on untrusted images, the choice of decoder, orientation, colour
conversion, resize and crop. The rules:

- The first bytes decide the format, and only Pillow's decoder for that format runs.
- The header is checked against the size limits before anything is decoded.
- EXIF orientation is applied. Unreadable EXIF is ignored, as every viewer does.
- What is transparent shows the encoder's matte. An encoder without a matte drops alpha
  (``convert("RGB")``), as the encoders' evaluation code does.
- 16-bit grey is scaled to 8 bits. CMYK, palette, grey and bilevel become RGB.
- Only the first of several frames or pages is decoded. Truncated data is an error.
- Decoding takes a few seconds of a core at most (measured: 3.3 s for 49 megapixels of noise as
  WebP), because its time grows with the pixels, which are limited. Three things make it grow
  faster and have limits of their own: the parts around the pixels (``structure``); the scans of a
  JPEG, since each passes over all pixels and may need only 75 bytes of the file; and the pixels of
  a run-length BMP, which Pillow decodes in Python.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from embedder.images.colour import alpha_of, to_rgb_or_grey
from embedder.images.formats import JPEG, TIFF, format_of
from embedder.images.jpeg import Jpeg, parse
from embedder.images.limits import ImageLimits
from embedder.images.plugins import JXL, PACKAGES, open_with_plugin
from embedder.images.resizing import Resizing, resize
from embedder.images.structure import check_run_lengths, pixel_parts
from embedder.images.tiff import (
    COMPRESSION,
    ROWS_PER_STRIP,
    TILE_LENGTH,
    TILE_WIDTH,
    check_tiff,
    unread_tiff,
)
from shoal.errors import (
    ImageCorrupt,
    ImageEmpty,
    ImageTooLarge,
    ImageTooManyPixels,
    ImageUnsupportedFormat,
    ShoalError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedder.encoding.manifest import Preprocessing

UInt8 = npt.NDArray[np.uint8]

# Each image is decoded on one core: the other cores decode other images.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

ORIENTATION_TAG: Final = 0x0112
# EXIF orientation to the operation that undoes it; 1 is upright.
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_SIDEWAYS: Final = 5
# Orientations in which the stored x axis (then: y axis) runs against its upright direction.
REVERSED: Final = (frozenset({2, 3, 7, 8}), frozenset({3, 4, 6, 7}))
TIFF_JPEG: Final = frozenset({6, 7})
START_OF_SCAN: Final = b"\xff\xda"
"""The JPEG marker of ITU T.81, B.1.1.3. Inside coded data 0xff is never followed by 0xda."""
FULL_SCANS: Final = 20
"""How many scans a JPEG of ``max_pixels`` may have; a smaller one may have more. Cameras and tools
write 1 to 12."""

# A JPEG may be decoded at 1/2, 1/4 or 1/8 while this many times the target remains. Measured
# against the plain path on enlarged, noisy photographs: 2 gives cosines down to 0.9995, 4 above
# 0.9999 (and 0.9997 on a mosaic of 25 photographs, the hardest case tried).
DRAFT_MARGIN: Final = 4

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow warns of each broken tag: a small file can have 65,535, and each warning is a line in the
# log and is remembered for ever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(data: bytes, *, limits: ImageLimits, spec: Preprocessing) -> UInt8:
    """The pixels of one image for one encoder; see ``decode_for``."""
    (pixels,) = decode_for(data, limits=limits, specs=(spec,))
    return pixels


def decode_for(
    data: bytes, *, limits: ImageLimits, specs: Sequence[Preprocessing]
) -> tuple[UInt8, ...]:
    """The pixels of one image, decoded once, then resized and cropped for each of ``specs``.

    Args:
        data: an encoded image; untrusted.
        limits: what an image may be.
        specs: the encoders' preprocessings, at least one.

    Returns:
        For each spec RGB, uint8 (spec.crop.height, spec.crop.width, 3), C-contiguous; equal
        specs share one array. Small images are scaled up.

    Raises:
        ImageEmpty: ``data`` is empty.
        ImageTooLarge: there are more than ``limits.max_bytes``.
        ImageUnsupportedFormat: the format is not accepted, the file has too many parts or scans,
            or its pixels have no RGB meaning.
        ImageTooManyPixels: the header claims more than ``limits.max_pixels``.
        ImageCorrupt: the decoder failed, whatever its reason.
    """
    if not data:
        msg = "image: expected an encoded image, got no bytes"
        raise ImageEmpty(msg)
    if len(data) > limits.max_bytes:
        msg = f"image: expected at most {limits.max_bytes} bytes, got {len(data)}"
        raise ImageTooLarge(msg, max_bytes=str(limits.max_bytes), bytes=str(len(data)))
    kind = format_of(data, limits)
    source = (parse(data) if kind == JPEG else None) or pixel_parts(kind, data)
    try:
        with _opened(kind, source, data, limits) as image:
            return _prepare(image, source, limits, specs)
    except ShoalError:
        raise
    except Exception as exc:
        # On hostile bytes decoders raise nearly any exception (OSError, SyntaxError, ValueError,
        # struct.error, EOFError, MemoryError, IndexError, ...); the caller gets one error.
        cause = " ".join(str(exc).split())
        if isinstance(exc, UnidentifiedImageError):
            cause = "bad header"
        msg = (
            f"{kind} image: expected a complete, valid file, got {len(data)} bytes that do not "
            f"decode: {cause or type(exc).__name__}"
        )
        raise ImageCorrupt(msg, format=kind) from exc


def _opened(
    kind: str, source: Jpeg | bytes, data: bytes, limits: ImageLimits
) -> ImageFile.ImageFile:
    """The image behind its header; nothing is decoded yet. Pillow's errors pass through.

    Raises:
        ImageTooManyPixels: the header claims too many pixels, by Pillow's own guard.
        ImageUnsupportedFormat: it is sound, of a kind that Pillow does not read.
    """
    pixels = source if isinstance(source, bytes) else source.data
    try:
        if kind in PACKAGES:
            return open_with_plugin(kind, data, check_size=lambda size: _check_pixels(size, limits))
        return Image.open(io.BytesIO(pixels), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        # Pillow's own guard came first. Its message has the size, and a limit that is not Shoal's.
        got = re.search(r"\d+", str(exc))
        count = got.group() if got else "more"
        msg = f"{kind} image: expected at most {limits.max_pixels} pixels, got {count}"
        raise ImageTooManyPixels(msg, max_pixels=str(limits.max_pixels)) from exc
    except ShoalError:
        raise
    except Exception as exc:
        if kind == TIFF and (unread := unread_tiff(data)) is not None:
            raise unread from exc
        if str(exc).startswith("Unsupported "):  # a sound BMP of a rare kind
            msg = f"{kind} image: expected a kind that Pillow reads, got: {exc}"
            raise ImageUnsupportedFormat(msg, format=kind) from exc
        raise


def _prepare(
    image: ImageFile.ImageFile,
    source: Jpeg | bytes,
    limits: ImageLimits,
    specs: Sequence[Preprocessing],
) -> tuple[UInt8, ...]:
    """The pixels for each of ``specs`` of the opened ``image``. Pillow's errors pass through.

    ``source``: the picture of a JPEG, or the bytes of another image.
    """
    _check_pixels(image.size, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image, max_pixels=limits.max_pixels)
    _check_scans(image, source, limits)
    check_run_lengths(image)
    drawn = image.tile[0].extents if image.tile else None  # WebP and AVIF come without
    covered = _load(image, source, max(spec.resize.size for spec in specs))
    # Read after the load: loading turns a TIFF upright, and a PNG may have its EXIF at the end.
    orientation = _orientation(image)
    mattes = dict.fromkeys(spec.matte for spec in specs)
    alpha = None
    if any(mattes) and isinstance(source, bytes):  # a JPEG has no alpha
        alpha = alpha_of(image, drawn, source)
    fitted: dict[Preprocessing, UInt8] = {}
    for matte in mattes:
        decoded = to_rgb_or_grey(image, matte=matte, alpha=alpha)
        for spec in dict.fromkeys(specs):
            if spec.matte == matte:
                fitted[spec] = _fit(decoded, covered, orientation, spec)
    return tuple(fitted[spec] for spec in specs)


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    pixels = size[0] * size[1]
    if pixels > limits.max_pixels:
        most = limits.max_pixels
        msg = f"image: expected at most {most} pixels, got {size[0]}x{size[1]} = {pixels}"
        raise ImageTooManyPixels(msg, max_pixels=str(most), pixels=str(pixels))


def _fit(
    image: Image.Image, covered: tuple[float, float], orientation: int, spec: Preprocessing
) -> UInt8:
    """The decoded ``image``, in mode RGB or L, resized, cropped and turned upright."""
    size = (spec.crop.width, spec.crop.height)
    sideways = orientation >= FIRST_SIDEWAYS
    if sideways:
        size = (size[1], size[0])
    stretch = spec.resize.mode == "stretch"
    # Resizing only the central part does the resize and the crop in one step. Turning the result
    # costs less than turning the source.
    box = (0, 0, *covered) if stretch else _central_box(covered, orientation, spec)
    small = resize(image, Resizing(size, box, spec.resize.interpolation, sideways=sideways))
    if orientation in UPRIGHT:
        small = small.transpose(UPRIGHT[orientation])
    array = np.array(small, dtype=np.uint8)
    if array.ndim == 2:  # noqa: PLR2004 - grey: (height, width)
        array = np.repeat(array[:, :, None], 3, axis=2)
    return array


def _check_scans(image: Image.Image, source: Jpeg | bytes, limits: ImageLimits) -> None:
    """Refuses a JPEG, or a TIFF of JPEGs, whose scans together pass over too many pixels."""
    if isinstance(source, Jpeg):
        scans, area = len(source.scans), source.area
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if tags.get(COMPRESSION) not in TIFF_JPEG:
            return
        rows = min(int(tags.get(ROWS_PER_STRIP, image.height)), image.height)
        area = int(tags.get(TILE_WIDTH, image.width)) * int(tags.get(TILE_LENGTH, rows))
        scans = source.count(START_OF_SCAN)
    else:
        return
    if scans * area > FULL_SCANS * limits.max_pixels:
        most = FULL_SCANS * limits.max_pixels // area
        msg = f"{image.format} image: expected at most {most} scans at this size, got {scans}"
        raise ImageUnsupportedFormat(msg, scans=str(scans))


def _load(image: ImageFile.ImageFile, source: Jpeg | bytes, target: int) -> tuple[float, float]:
    """Decodes the pixels; returns the width and height that the image covers, in decoded pixels.

    A large JPEG is decoded at reduced size. ``target``: the shortest edge that is needed, pixels.
    """
    extent: tuple[float, float] = image.size
    shortest = min(image.size)
    wanted = DRAFT_MARGIN * target
    if shortest >= 2 * wanted and isinstance(source, Jpeg):
        drafted = image.draft(
            None, (image.width * wanted // shortest, image.height * wanted // shortest)
        )
        if drafted is not None:
            # image.size would be wrong: it is the reduced size rounded up to whole pixels.
            extent = drafted[1][2:]
    before = image.size
    if isinstance(source, Jpeg):
        source.load(image)
    else:
        image.load()
    # Loading a sideways TIFF changes its size.
    return extent if image.size == before else image.size


def _central_box(
    covered: tuple[float, float], orientation: int, spec: Preprocessing
) -> tuple[float, float, float, float]:
    """The part of the decoded image that the crop keeps: left, top, right, bottom.

    It is rounded to whole pixels as torchvision's ``Resize`` and ``CenterCrop`` round, in the
    upright frame, so the result equals theirs but for rounding if nothing was drafted.
    """
    sideways = orientation >= FIRST_SIDEWAYS
    crop = (spec.crop.width, spec.crop.height)
    starts, ends = [0.0, 0.0], [0.0, 0.0]
    shortest = min(covered)
    for axis in (0, 1):
        keep = crop[1 - axis] if sideways else crop[axis]
        resized = int(spec.resize.size * covered[axis] / shortest)
        start = round((resized - keep) / 2)
        if orientation in REVERSED[axis]:
            start = resized - keep - start
        starts[axis] = start * covered[axis] / resized
        ends[axis] = min((start + keep) * covered[axis] / resized, covered[axis])
    return starts[0], starts[1], ends[0], ends[1]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none that can be read.

    A JPEG XL is turned as it is decoded, unless it holds a JPEG.
    """
    if image.format == JXL and not getattr(image, "jpeg", False):
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
        if isinstance(value, bytes):  # some programs write it as bytes instead of a short
            value = value.strip(b"\0")
        if isinstance(value, bytes | tuple):
            (value,) = value
        return int(value) if value in UPRIGHT else 1
    except Exception:  # noqa: BLE001 - broken metadata raises anything; the pixels are fine
        return 1
