"""What an image may be: bytes, pixels, formats. Light: ``--help`` imports this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from annotated_types import Ge

from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges

FORMATS: Final = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JXL", "PNG", "TIFF", "WEBP"})
"""The formats that are decoded, by Pillow's names; HEIF and JXL where their packages are."""
PILLOW_MAX_PIXELS: Final = 89_478_485
"""Above this Pillow warns of its own accord, and above twice this it refuses."""
_MAX_EACH: Final = 64 * 2**20
"""A photograph of 14 megapixels takes this much memory."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be.

    Raises:
        ConfigError: a limit is out of range.
    """

    max_bytes: Annotated[int, Ge(1), Setting("--max-image-bytes")] = 20 * 2**20
    """Bytes of the largest encoded image that is accepted."""
    max_pixels: Annotated[int, Ge(1), Setting("--max-image-pixels")] = 50_000_000
    """Pixels (width times height, by its header) of the largest image that is accepted; at most
    89,478,485.

    The bound is Pillow's own.
    """
    formats: Annotated[frozenset[str], INTERNAL] = FORMATS
    """The accepted formats, some of ``FORMATS``."""

    def __post_init__(self) -> None:
        """Check the limits."""
        check_ranges(self)
        if self.max_pixels > PILLOW_MAX_PIXELS:
            msg = f"max_pixels: expected at most {PILLOW_MAX_PIXELS}, got {self.max_pixels}"
            raise ConfigError(msg, field="max_pixels")
        if not self.formats or not self.formats <= FORMATS:
            expected, got = sorted(FORMATS), sorted(self.formats)
            raise ConfigError(f"formats: expected some of {expected}, got {got}", field="formats")


@dataclass(frozen=True, slots=True)
class DecodeMemory:
    """How the memory for decoding is shared out, bytes.

    Attributes:
        each: the most that an image may take which is decoded beside others.
        apart: the most that all slow images may take together, which are decoded apart.
    """

    each: int
    apart: int

    @classmethod
    def of(cls, total: int, threads: int) -> DecodeMemory:
        """``total`` bytes for ``threads`` that decode, and for the slow images."""
        each = min(_MAX_EACH, total // 2 // threads)
        return cls(each, total - each * threads)
