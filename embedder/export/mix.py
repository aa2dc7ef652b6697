"""Several artefacts as one encoder: their unit vectors side by side (SCP-MIX, arXiv 2502.04226)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from embedder.encoding.artefact import MANIFEST_NAME, MixArtefact, load_any_artefact
from embedder.encoding.manifest import MixManifest, mix_fingerprint
from embedder.export.artefacts import check_request, new_directory, read_encoder
from shoal.errors import ExportRefused


@dataclass(frozen=True, slots=True)
class MixRequest:
    """Which artefacts to mix, in which order, and the directory to write."""

    parts: tuple[Path, ...]
    output: Path
    name: str = ""


def make_mix(request: MixRequest) -> MixArtefact:
    """Writes the mix that ``request`` describes, with copies of its parts.

    Raises:
        ArtefactError: a part is damaged.
        ExportRefused: there are fewer than two parts, two parts have one name, or a part is a mix;
            or ``output`` exists; or an encoder cannot have the name.
    """
    check_request(request.output, name=request.name)
    mixes = "a mix cannot be mixed again; name its parts instead"
    parts = [read_encoder(part, mixes=mixes) for part in request.parts]
    names = [part.name for part in parts]
    if len(parts) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - one is no mix
        msg = f"mix: expected two or more artefacts of different names, got {names}"
        raise ExportRefused(msg)
    name = request.name or "-".join(names)[:64]
    with new_directory(request.output) as directory:
        for part in parts:
            shutil.copytree(part.directory, directory / part.name)
        manifest = MixManifest(
            format_version=1,
            kind="mix",
            name=name,
            description="The concatenation of " + ", ".join(names) + ".",
            dim=sum(part.dim for part in parts),
            metric="cosine",
            parts=tuple(names),
            fingerprint=mix_fingerprint([part.fingerprint for part in parts]),
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1)
        (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    mix = load_any_artefact(request.output)
    if not isinstance(mix, MixArtefact):
        raise ExportRefused(f"{request.output}: expected a mix")
    return mix
