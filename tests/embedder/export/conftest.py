"""Small models of open_clip and timm, with random weights, exported once."""

from __future__ import annotations

import pytest
from small_timm import VIT, smaller
from tiny_clip import make_clip

from embedder.encoding.artefact import EncoderArtefact
from embedder.export.timm import TimmRequest, export_timm


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """A tiny CLIP with both towers, as an artefact."""
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """Timm's smallest plain ViT, with two blocks and at 64 pixels."""
    root = tmp_path_factory.mktemp("dino")
    with smaller(**VIT):
        return export_timm(
            TimmRequest("vit_tiny_patch16_224", root / "dino", random_seed=1, image_size=64)
        )
