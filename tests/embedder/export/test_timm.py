"""timm models and local checkpoints, exported for real, against timm itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform

from embedder.artefact import EncoderArtefact
from embedder.encoder import Encoder
from embedder.export.checkpoints import find_tensors, match_backbone, read_checkpoint
from embedder.export.pictures import pictures
from embedder.export.timm import TimmRequest, data_config, export_timm, to_preprocessing
from embedder.preprocess import ImageLimits, decode
from embedder.runtime import RuntimeConfig
from shoal.errors import ExportRefused


def resnet(seed: int = 0) -> torch.nn.Module:
    """Timm's smallest ResNet with statistics of its own, so that a lost tensor shows."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.02)
    return model.eval()


def test_export_gives_timms_own_vectors(dino: EncoderArtefact) -> None:
    """From files to vectors: timm's transform and model, to a cosine of 0.999 and more."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    transform: Any = create_transform(**data_config(model, 64), is_training=False)
    encoder = Encoder.open(dino.directory, RuntimeConfig())
    (spec,) = encoder.preprocessings
    tests = pictures(64)
    pixels = np.stack([decode(p.data, limits=ImageLimits(), spec=spec) for p in tests])
    ours = encoder.embed([pixels])
    with torch.no_grad():
        raw = model(torch.stack([transform(p.seen.convert("RGB")) for p in tests]))
    theirs = torch.nn.functional.normalize(raw, dim=1).numpy()
    assert (ours * theirs).sum(axis=1).min() >= 0.999
    errors = np.linalg.norm(ours - theirs, axis=1)
    apart = np.linalg.norm(theirs[0] - theirs[1])
    assert errors.max() < 0.25 * apart


def test_crop_share_becomes_a_resize() -> None:
    """crop_pct is the resize that makes the crop its share, rounded as timm does."""
    config = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    assert to_preprocessing(config).resize.size == 256
    assert to_preprocessing({**config, "crop_pct": 0.9}).resize.size == 248
    squash = to_preprocessing({**config, "crop_mode": "squash", "crop_pct": 1.0})
    assert (squash.resize.mode, squash.resize.size) == ("stretch", 224)
    for change in (
        {"crop_mode": "border"},
        {"crop_mode": "squash"},
        {"interpolation": "lanczos"},
        {"input_size": (1, 224, 224)},
        {"input_size": (3, 224, 192)},
    ):
        with pytest.raises(ExportRefused):
            to_preprocessing({**config, **change})


def layouts(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """One backbone in the layouts in which SimCLR, BYOL, MoCo and DINO backbones are published."""
    noise = {name: torch.randn_like(t.float()).to(t.dtype) for name, t in state.items()}
    places = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}}

    def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in tensors.items()}

    sequence = {
        ".".join([places[name.split(".")[0]], *name.split(".")[1:]]): tensor
        for name, tensor in state.items()
    }
    head = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    return {
        "torchvision": {**state, **head},
        "data-parallel": {"state_dict": under("module.", {**state, **head})},
        "simclr": {"epoch": 3, "state_dict": under("backbone.", {**state, **head})},
        "moco": {
            "state_dict": {
                **under("module.encoder_k.", noise),
                **under("module.encoder_q.", {**state, **head}),
                "module.queue": torch.zeros(128, 4),
            }
        },
        "byol": {
            "model": {
                **under("module.target_network.encoder.", noise),
                **under("module.online_network.encoder.", state),
                "module.predictor.net.0.weight": torch.zeros(4, 4),
            }
        },
        "lightly": {"state_dict": under("backbone.", sequence)},
        "byol-sthalles": {
            "online_network_state_dict": under("encoder.", sequence),
            "target_network_state_dict": under("encoder.", noise),
        },
        "vissl": {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": under("_feature_blocks.", state), "heads": {}}}
            }
        },
        "dino": {"student": under("module.backbone.", noise), "teacher": under("backbone.", state)},
    }


@pytest.mark.parametrize(
    "layout",
    [
        "torchvision",
        "data-parallel",
        "simclr",
        "moco",
        "byol",
        "byol-sthalles",
        "vissl",
        "lightly",
        "dino",
    ],
)
def test_checkpoint_layouts_are_recognised(layout: str, tmp_path: Path) -> None:
    """The right backbone is found behind every prefix, and every tensor of it."""
    model = resnet()
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("batches_tracked")}
    file = tmp_path / "weights.pth"
    torch.save(layouts(state)[layout], file)
    found = match_backbone(read_checkpoint(file).tensors, state)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor)


def test_checkpoint_becomes_an_encoder(tmp_path: Path) -> None:
    """Local weights in safetensors give the vectors that timm gives with them."""
    model = resnet()
    save_file(
        {f"backbone.{n}": t for n, t in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    made = export_timm(
        TimmRequest("resnet18", tmp_path / "made", checkpoint=tmp_path / "w.safetensors")
    )
    assert str(made.manifest.source.weights).startswith("w.safetensors sha256:")
    encoder = Encoder.open(made.directory, RuntimeConfig())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    normalise = encoder.artefact.parts[0].manifest.preprocessing.normalise
    batch = (torch.from_numpy(pixels).float() - torch.tensor(normalise.mean)) / torch.tensor(
        normalise.scale
    )
    with torch.no_grad():
        raw = model(batch.permute(0, 3, 1, 2))
    truth = torch.nn.functional.normalize(raw, dim=1).numpy()
    np.testing.assert_allclose(encoder.embed([pixels]), truth, atol=1e-4)


def test_incomplete_checkpoint_is_refused_by_name() -> None:
    """A missing tensor, and one of another shape, are told by name."""
    state = {n: t for n, t in resnet().state_dict().items() if "tracked" not in n}
    less = {n: t for n, t in state.items() if n != "layer3.1.bn2.weight"}
    with pytest.raises(ExportRefused, match=r"1 of the 100 tensors .* layer3\.1\.bn2\.weight"):
        match_backbone(less, state)
    with pytest.raises(ExportRefused, match=r"bn1\.weight: expected shape \(64,\), got \(3,\)"):
        match_backbone({**state, "bn1.weight": torch.zeros(3)}, state)
    with pytest.raises(ExportRefused, match="100 of the 100"):
        match_backbone({"a": torch.zeros(1)}, state)


class _Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A file with more than tensors in it is not executed, and the message says what to do."""
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ExportRefused, match="convert it to safetensors"):
        read_checkpoint(tmp_path / "evil.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_file_that_holds_no_tensors_is_refused(tmp_path: Path, name: str) -> None:
    """Neither a missing nor a damaged file is a traceback."""
    with pytest.raises(ExportRefused, match="expected a readable file"):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b"not tensors")
    with pytest.raises(ExportRefused, match=f"{name}: expected"):
        read_checkpoint(tmp_path / name)
    assert find_tensors({"epoch": 3, "state_dict": {"a": 1}}) == {}


def test_unknown_model_and_size_are_refused(tmp_path: Path) -> None:
    """Timm's own complaint comes out in one line."""
    with pytest.raises(ExportRefused, match="timm has no model 'resnet19'"):
        export_timm(TimmRequest("resnet19", tmp_path / "x", random_seed=0))
    with pytest.raises(ExportRefused, match="takes no image size"):
        export_timm(TimmRequest("resnet18", tmp_path / "x", random_seed=0, image_size=64))
    with pytest.raises(ExportRefused, match="expected weights"):
        export_timm(TimmRequest("resnet18", tmp_path / "x"))
