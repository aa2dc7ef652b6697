"""What an image may be: bytes, pixels, formats. Light: ``--help`` imports this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.errors import ConfigError

FORMATS: Final = frozenset({"AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"})
"""The formats that are decoded, by Pillow's names."""
PILLOW_MAX_PIXELS: Final = 89_478_485
"""Above this Pillow warns of its own accord, and above twice this it refuses."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be. ConfigError if a limit is out of range.

    Attributes:
        max_bytes: encoded size, bytes.
        max_pixels: width times height of the header, at most Pillow's own 89 478 485.
        formats: accepted formats, a subset of ``FORMATS``.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    formats: frozenset[str] = FORMATS

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.max_bytes < 1:
            msg = f"image limit max_bytes: expected at least 1, got {self.max_bytes}"
            raise ConfigError(msg, field="max_bytes")
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            msg = (
                f"image limit max_pixels: expected 1 to {PILLOW_MAX_PIXELS}, got {self.max_pixels}"
            )
            raise ConfigError(msg, field="max_pixels")
        if not self.formats or not self.formats <= FORMATS:
            msg = (
                f"image limit formats: expected some of {sorted(FORMATS)}, "
                f"got {sorted(self.formats)}"
            )
            raise ConfigError(msg, field="formats")
