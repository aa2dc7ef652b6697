"""Variants of the bundled encoder, sound but different, for tests of what must not be mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from embedder.encoding.artefact import bundled_artefact, load_artefact
from embedder.encoding.manifest import EncoderManifest, compute_fingerprint, mix_fingerprint

NAME = "efficientnet-lite0"


def other_encoder(directory: Path, *, name: str = NAME, resize: int = 264) -> Path:
    """A copy of the bundled artefact that crops another part: another encoder, of any name."""
    shutil.copytree(bundled_artefact(), directory)
    file = directory / "encoder.json"
    facts = json.loads(file.read_text())
    facts["name"] = name
    facts["preprocessing"]["resize"]["size"] = resize
    manifest = EncoderManifest.model_validate_json(json.dumps(facts))
    facts["fingerprint"] = compute_fingerprint(
        files=manifest.files,
        input_spec=manifest.input,
        output_spec=manifest.output,
        preprocessing=manifest.preprocessing,
    )
    file.write_text(json.dumps(facts))
    return directory


def mixed_encoder(directory: Path, parts: Sequence[Path], *, name: str = "mix") -> Path:
    """A mix of copies of ``parts``."""
    artefacts = [load_artefact(part) for part in parts]
    for artefact in artefacts:
        shutil.copytree(artefact.directory, directory / artefact.name)
    facts = {
        "format_version": 1,
        "kind": "mix",
        "name": name,
        "description": "a mix",
        "dim": sum(artefact.dim for artefact in artefacts),
        "metric": "cosine",
        "parts": [artefact.name for artefact in artefacts],
        "fingerprint": mix_fingerprint([artefact.fingerprint for artefact in artefacts]),
    }
    (directory / "encoder.json").write_text(json.dumps(facts))
    return directory
