"""A variant of the bundled encoder, sound but different, for tests of what must not be mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from embedder.artefact import bundled_artefact
from embedder.manifest import EncoderManifest, compute_fingerprint


def other_encoder(directory: Path) -> Path:
    """A copy of the bundled artefact that crops a smaller part: same name, another encoder."""
    shutil.copytree(bundled_artefact(), directory)
    file = directory / "encoder.json"
    facts = json.loads(file.read_text())
    facts["preprocessing"]["resize"]["size"] += 8
    manifest = EncoderManifest.model_validate_json(json.dumps(facts))
    facts["fingerprint"] = compute_fingerprint(
        files=manifest.files,
        input_spec=manifest.input,
        output_spec=manifest.output,
        preprocessing=manifest.preprocessing,
    )
    file.write_text(json.dumps(facts))
    return directory
