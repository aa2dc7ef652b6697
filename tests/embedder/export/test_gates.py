"""The gates of an export can fail: wrong graphs, wrong transforms, models that tell nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_timm import VIT
from timm.data.transforms_factory import create_transform
from torchvision import transforms

from embedder.export import gates
from embedder.export.graphs import IMAGE_INPUT, IMAGE_OUTPUT, ImageGraph, write_graph
from embedder.export.measuring import clusters_kept, neighbours_kept, read_sample
from embedder.export.timm import data_config, to_preprocessing
from shoal.errors import ExportRefused

NAMES = (IMAGE_INPUT, IMAGE_OUTPUT)


class Room:
    """A small model, its graph, and its library's transform."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(2)
        self.model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=64, **VIT
        ).eval()
        self.config = data_config(self.model, 64)
        self.preprocessing = to_preprocessing(self.config)
        self.module = ImageGraph(self.model, self.preprocessing).eval()
        example = np.zeros((2, 64, 64, 3), np.uint8)
        self.graph = write_graph(self.module, example, folder / "image.onnx", names=NAMES)

    def transform(self, **changes: Any) -> Callable[[Any], torch.Tensor]:
        made: Any = create_transform(**{**self.config, **changes}, is_training=False)
        return lambda picture: made(picture.convert("RGB"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("gates"))


def test_faithful_export_passes(room: Room) -> None:
    """The real graph with the library's own transform passes, with a cosine near 1."""
    lowest = gates.check_image_graph(room.module, room.graph, room.preprocessing, room.transform())
    assert lowest >= 0.99999


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation": "nearest"},  # no filter
        {"crop_pct": 0.7},  # another crop
        {"mean": (0.0, 0.0, 0.0)},  # another scaling
    ],
)
def test_another_transform_is_refused(room: Room, changes: dict[str, Any]) -> None:
    """Where the library does otherwise than the artefact says, the export is refused."""
    with pytest.raises(ExportRefused, match="preprocessing, "):
        gates.check_image_graph(
            room.module, room.graph, room.preprocessing, room.transform(**changes)
        )


def test_resize_without_antialiasing_is_refused(room: Room) -> None:
    """The mistake of clip-as-service#904, a bilinear resize without antialiasing, does not pass."""
    size = room.preprocessing.resize.size
    wrong = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC, antialias=False),
            transforms.CenterCrop(64),
            transforms.Normalize(room.config["mean"], room.config["std"]),
        ]
    )
    with pytest.raises(ExportRefused, match="preprocessing, "):
        gates.check_image_graph(
            room.module, room.graph, room.preprocessing, lambda p: wrong(p.convert("RGB"))
        )


def test_graph_of_other_weights_is_refused(room: Room) -> None:
    """A graph that is not the model's is refused, although its vectors are of unit length."""
    other = copy.deepcopy(room.model)
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight.mul_(1.05)
    module = ImageGraph(other, room.preprocessing).eval()
    with pytest.raises(ExportRefused, match="graph, "):
        gates.check_image_graph(module, room.graph, room.preprocessing, room.transform())


def test_model_that_tells_nothing_is_refused() -> None:
    """One vector for all images has a cosine of 1 with everything: nothing could be shown of it."""
    rows = np.tile(np.eye(8, dtype=np.float32)[0], (5, 1))
    with pytest.raises(ExportRefused, match="one vector for all images"):
        gates.compare(rows, rows, ["a"] * 5, what="graph")


def test_nan_is_refused() -> None:
    """A vector that is no number passes no comparison."""
    rows = np.eye(4, dtype=np.float32)
    broken = rows.copy()
    broken[2] = np.nan
    with pytest.raises(ExportRefused, match="graph, c"):
        gates.compare(broken, rows, ["a", "b", "c", "d"], what="graph")


def test_neighbours_kept_counts_shared_neighbours() -> None:
    """All for the same vectors, none for vectors whose neighbourhoods are disjoint."""
    angles = np.array([0.0, 0.1, 0.2, 3.0, 3.1, 3.2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    swapped = vectors[[0, 3, 4, 1, 2, 5]]
    assert neighbours_kept(vectors, vectors, k=2) == 1.0
    assert neighbours_kept(vectors, swapped, k=1) < 0.5


def test_clusters_kept_is_one_for_clean_classes() -> None:
    """k-means finds two clean classes; shuffled labels leave about nothing."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(m, 0.1, (50, 8)) for m in (-1, 1)]).astype(np.float32)
    classes = ["a"] * 50 + ["b"] * 50
    assert clusters_kept(vectors, classes) == pytest.approx(1.0)
    assert clusters_kept(vectors, rng.permutation(classes).tolist()) < 0.2


def test_read_sample_takes_classes_from_folders(tmp_path: Path) -> None:
    """A folder of CLASS/NAME images gives both; one that is too small, or no folder, is refused."""
    crops = read_sample(None, most=1000)
    assert crops.classes is None
    for at, data in enumerate(crops.images[:24]):
        folder = tmp_path / "photos" / ("a" if at % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at}.jpg").write_bytes(data)
    found = read_sample(tmp_path / "photos", most=1000)
    assert sorted(set(found.classes or [])) == ["a", "b"]
    assert len(found.images) == 24
    with pytest.raises(ExportRefused, match="at least 20 images, got 12"):
        read_sample(tmp_path / "photos" / "a", most=1000)
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(ExportRefused, match="expected a folder or a tar"):
        read_sample(tmp_path / "x.tar", most=1000)
