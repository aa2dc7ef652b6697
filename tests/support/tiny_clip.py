"""A CLIP of a few hundred thousand random weights, with both towers, as an artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

from embedder.encoding.artefact import EncoderArtefact
from embedder.export.open_clip import OpenClipRequest, export_open_clip

NAME = "tiny-quickgelu"
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def register(folder: Path, name: str = NAME, **changes: Any) -> str:
    """Teaches open_clip the architecture ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**CONFIG, **changes}))
    open_clip.add_model_config(folder)
    return name


def make_clip(root: Path) -> EncoderArtefact:
    """The artefact, in a directory under ``root``."""
    name = register(root / "configs")
    return export_open_clip(OpenClipRequest(name, root / "clip", random_seed=1))
