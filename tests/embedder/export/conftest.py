"""Small models of open_clip and timm, with random weights, exported once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest

from embedder.artefact import EncoderArtefact
from embedder.export.open_clip import OpenClipRequest, export_open_clip
from embedder.export.timm import TimmRequest, export_timm

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


def register(folder: Path, name: str, **changes: Any) -> str:
    """Teaches open_clip the architecture ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**TINY_CLIP, **changes}))
    open_clip.add_model_config(folder)
    return name


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """A tiny CLIP with both towers, as an artefact."""
    root = tmp_path_factory.mktemp("clip")
    name = register(root / "configs", "tiny-quickgelu")
    return export_open_clip(OpenClipRequest(name, root / "clip", random_seed=1))


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """Timm's smallest plain ViT, at 64 pixels."""
    root = tmp_path_factory.mktemp("dino")
    return export_timm(
        TimmRequest("vit_tiny_patch16_224", root / "dino", random_seed=1, image_size=64)
    )
