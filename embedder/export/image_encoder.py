"""From a PyTorch image tower to an artefact: trace, check, write. Every exporter ends here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from embedder.encoding.artefact import EncoderArtefact, load_artefact
from embedder.encoding.manifest import Measured, Preprocessing, TextSpec
from embedder.export import artefacts, gates
from embedder.export.graphs import IMAGE_INPUT, IMAGE_OUTPUT, ImageGraph, run, write_graph

WriteText: TypeAlias = Callable[[Path, dict[str, str]], TextSpec | None]
"""Writes a text tower's files into a directory and enters their names in the files by field.
Returns the text tower's entry in the manifest."""


@dataclass(frozen=True, slots=True)
class Tower:
    """An image tower and its preprocessing.

    Attributes:
        module: from scaled pixels (N, 3, H, W) to vectors (N, D).
        preprocessing: the library's preprocessing in Shoal's terms.
        transform: the library's own preprocessing, to compare with.
    """

    module: torch.nn.Module
    preprocessing: Preprocessing
    transform: gates.Transform


def write_encoder(
    tower: Tower, label: artefacts.Label, output: Path, *, text: WriteText = lambda _, __: None
) -> EncoderArtefact:
    """Writes the artefact of ``tower`` to the directory ``output``.

    Raises:
        ExportRefused: the tower cannot be expressed in ONNX, the export is not faithful, or
            ``output`` exists; nothing is written then.
    """
    image = ImageGraph(tower.module, tower.preprocessing).eval()
    crop = tower.preprocessing.crop
    example = np.zeros((2, crop.height, crop.width, 3), np.uint8)
    with artefacts.new_directory(output) as directory:
        files: dict[str, str] = {}
        text_spec = text(directory, files)  # first: a tokenizer that will not do is soon refused
        graph = write_graph(
            image, example, directory / "image.onnx", names=(IMAGE_INPUT, IMAGE_OUTPUT)
        )
        lowest = gates.check_image_graph(image, graph, tower.preprocessing, tower.transform)
        files["image"] = graph.file.name
        if graph.data is not None:
            files["image_data"] = graph.data.name
        draft = artefacts.Draft(
            label=label,
            dim=run(image, example).shape[1],
            preprocessing=tower.preprocessing,
            input=IMAGE_INPUT,
            output=IMAGE_OUTPUT,
            text=text_spec,
            files=files,
            reference=lambda pixels: run(image, pixels),
            measured=Measured(images="scikit-learn's sample photographs", min_cosine=lowest),
        )
        artefacts.write_manifest(directory, draft)
    return load_artefact(output)
