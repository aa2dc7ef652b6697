"""A contact sheet: one row of exemplars per cluster, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

TILE_PX = 96
GAP_PX = 6
CAPTION_PX = 150
_INK = (30, 30, 30)
_PAPER = (250, 250, 250)
_MISSING = (225, 225, 225)


@dataclass(frozen=True, slots=True)
class Row:
    """A cluster: lines of text, and the encoded files of its exemplars (None: not at hand)."""

    caption: tuple[str, ...]
    images: tuple[bytes | None, ...]


def draw_contact_sheet(rows: Sequence[Row], *, path: Path) -> None:
    """Write ``rows`` to ``path``, whose directory is made if absent."""
    columns = max((len(row.images) for row in rows), default=0)
    step = TILE_PX + GAP_PX
    size = (CAPTION_PX + columns * step + GAP_PX, max(1, len(rows)) * step + GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for index, row in enumerate(rows):
        top = GAP_PX + index * step
        draw.multiline_text((GAP_PX, top + 4), "\n".join(row.caption), fill=_INK, font=font)
        for column, data in enumerate(row.images):
            sheet.paste(_tile(data), (CAPTION_PX + column * step, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _tile(data: bytes | None) -> Image.Image:
    """The image in ``data`` on a square; an empty square if there is none."""
    tile = Image.new("RGB", (TILE_PX, TILE_PX), _MISSING)
    if data is None:
        return tile
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (TILE_PX * 2, TILE_PX * 2))
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return tile
    # Pictures smaller than a tile are enlarged with their pixels showing.
    scale = TILE_PX / max(image.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), method)
    tile.paste(small, ((TILE_PX - width) // 2, (TILE_PX - height) // 2))
    return tile
