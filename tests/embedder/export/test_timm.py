"""timm models and local checkpoints, exported for real, against timm itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_timm import NARROW, SMALL, VIT, resnet, smaller
from timm.data.transforms_factory import create_transform

from embedder.encoding.artefact import EncoderArtefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from embedder.export.pictures import pictures
from embedder.export.timm import TimmRequest, data_config, export_timm, to_preprocessing
from embedder.images.preprocess import ImageLimits, decode
from shoal.errors import ExportRefused


def test_export_gives_timms_own_vectors(dino: EncoderArtefact) -> None:
    """From files to vectors: timm's transform and model, to a cosine of 0.999 and more."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, **VIT).eval()
    check_vectors(dino, model, size=64)


@pytest.mark.parametrize(
    ("given", "recorded"), [("", None), ("#00FF00", "#00ff00"), (None, "#ffffff")]
)
def test_the_matte_is_recorded_in_the_artefact(
    given: str | None, recorded: str | None, tmp_path: Path
) -> None:
    """White by default; the gates see transparent pictures on it. Without one alpha is dropped."""
    options: dict[str, Any] = {} if given is None else {"matte": given}
    with smaller(**VIT):
        made = export_timm(
            TimmRequest(
                "vit_tiny_patch16_224", tmp_path / "x", random_seed=1, image_size=32, **options
            )
        )
    assert made.manifest.preprocessing.matte == recorded
    document = json.loads((made.directory / "encoder.json").read_text())
    assert document["preprocessing"].get("matte", "absent") == (recorded or "absent")


def check_vectors(made: EncoderArtefact, model: torch.nn.Module, *, size: int = 0) -> None:
    """The artefact gives the vectors that timm's ``model`` and transform give for pictures."""
    transform: Any = create_transform(**data_config(model, size), is_training=False)
    encoder = Encoder.open(made.directory, RuntimeConfig())
    (spec,) = encoder.preprocessings
    tests = pictures(spec.crop.height, matte=spec.matte)
    pixels = np.stack([decode(p.data, limits=ImageLimits(), spec=spec) for p in tests])
    ours = encoder.embed([pixels])
    with torch.no_grad():
        raw = model(torch.stack([transform(p.seen.convert("RGB")) for p in tests]))
    theirs = torch.nn.functional.normalize(raw, dim=1).numpy()
    assert (ours * theirs).sum(axis=1).min() >= 0.999
    errors = np.linalg.norm(ours - theirs, axis=1)
    apart = np.linalg.norm(theirs[0] - theirs[1])
    assert errors.max() < 0.25 * apart


def varied(name: str, size: int) -> torch.nn.Module:
    """A model of timm's whose branches all count: LayerScale begins them at nothing."""
    torch.manual_seed(2)
    options = {"img_size": size} if size else {}
    model = timm.create_model(name, num_classes=0, **options).eval()
    for key, tensor in model.state_dict().items():
        if "gamma" in key:
            tensor.uniform_(0.3, 1)
    return model


@pytest.mark.parametrize(
    ("name", "size", "fewer"),
    [
        ("vit_small_patch16_224.dino", 64, VIT),
        ("vit_small_patch8_224.dino", 32, VIT),
        ("vit_small_patch14_dinov2", 56, VIT),
        ("vit_small_patch16_dinov3", 64, VIT),
        ("resnet50", 0, {**NARROW, "layers": (1, 1, 1, 1)}),
        ("efficientnet_lite0", 0, SMALL),
    ],
)
def test_architectures_give_timms_own_vectors(
    name: str, size: int, fewer: dict[str, Any], tmp_path: Path
) -> None:
    """DINO, DINOv2, DINOv3, ResNet and EfficientNet, from a checkpoint; of like blocks, a few."""
    with smaller(**fewer):
        model = varied(name, size)
        torch.save(model.state_dict(), tmp_path / "w.pth")
        made = export_timm(
            TimmRequest(name, tmp_path / "made", checkpoint=tmp_path / "w.pth", image_size=size)
        )
    check_vectors(made, model, size=size)


def test_checkpoint_is_resized_as_timm_does(tmp_path: Path) -> None:
    """Position embeddings of another image size are timm's own of the size that was asked for."""
    with smaller(**VIT):
        state = varied("test_vit", 0).state_dict()
        state["pos_embed"].mul_(50)  # so that another way to resize them shows
        teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
        torch.save({"teacher": teacher}, tmp_path / "dino.pth")
        torch.save(state, tmp_path / "w.pth")
        request = TimmRequest(
            "test_vit", tmp_path / "made", checkpoint=tmp_path / "dino.pth", image_size=96
        )
        made = export_timm(request)
        theirs = timm.create_model(
            "test_vit",
            num_classes=0,
            img_size=96,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")},
        )
    assert made.manifest.input.height == 96
    check_vectors(made, theirs.eval(), size=96)


def test_checkpoint_of_another_size_is_refused_unless_told(tmp_path: Path) -> None:
    """Without --image-size it is named; patches of another size are another model in any case."""
    state = varied("test_vit", 96).state_dict()
    torch.save(state, tmp_path / "w.pth")
    request = TimmRequest("test_vit", tmp_path / "made", checkpoint=tmp_path / "w.pth")
    with pytest.raises(ExportRefused, match=r"pos_embed: .* with --image-size it is resized"):
        export_timm(request)
    torch.save({**state, "patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}, tmp_path / "p.pth")
    request = TimmRequest(
        "test_vit", tmp_path / "made", checkpoint=tmp_path / "p.pth", image_size=160
    )
    with pytest.raises(ExportRefused, match=r"patch_embed\.proj\.weight: expected shape"):
        export_timm(request)
    torch.save({**state, "pos_embed": torch.zeros(1, 12, 64)}, tmp_path / "p.pth")
    with pytest.raises(ExportRefused, match=r"pos_embed: expected shape"):
        export_timm(request)


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


def test_checkpoint_becomes_an_encoder(tmp_path: Path) -> None:
    """Local weights in safetensors give the vectors that timm gives with them."""
    model = resnet()
    save_file(
        {f"backbone.{n}": t for n, t in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    with smaller(**NARROW):
        made = export_timm(
            TimmRequest("resnet18", tmp_path / "made", checkpoint=tmp_path / "w.safetensors")
        )
    assert str(made.manifest.source.weights).startswith("w.safetensors sha256:")
    encoder = Encoder.open(made.directory, RuntimeConfig())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    normalise = encoder.artefact.parts[0].manifest.preprocessing.normalise
    batch = (torch.from_numpy(pixels).float() - torch.tensor(normalise.mean)) / torch.tensor(
        normalise.scale
    )
    with torch.no_grad():
        raw = model(batch.permute(0, 3, 1, 2))
    truth = torch.nn.functional.normalize(raw, dim=1).numpy()
    np.testing.assert_allclose(encoder.embed([pixels]), truth, atol=1e-4)


def test_unknown_model_and_size_are_refused(tmp_path: Path) -> None:
    """Timm's own complaint comes out in one line."""
    with pytest.raises(ExportRefused, match="timm has no model 'resnet19'"):
        export_timm(TimmRequest("resnet19", tmp_path / "x", random_seed=0))
    with pytest.raises(ExportRefused, match="takes no image size"):
        export_timm(TimmRequest("resnet18", tmp_path / "x", random_seed=0, image_size=64))
    with pytest.raises(ExportRefused, match="expected weights"):
        export_timm(TimmRequest("resnet18", tmp_path / "x"))


def test_request_is_checked_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name, a license or a directory that cannot be costs no download and no export."""
    monkeypatch.setattr(timm, "create_model", None)
    for changes, told in (
        ({"name": "My Dino"}, r"name: expected 1 to 64 of a-z.*, got 'My Dino'"),
        ({"license": ""}, "licence: expected 1 to 2000 characters, got 0"),
        ({"matte": "white"}, r"matte: expected #rrggbb, such as #ffffff, or nothing, got 'white'"),
        ({"output": tmp_path}, "exists: expected a directory that does not"),
    ):
        request = TimmRequest("resnet18", tmp_path / "x", random_seed=0)
        with pytest.raises(ExportRefused, match=told):
            export_timm(replace(request, **changes))


@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError, ConnectionError, ValueError])
def test_weights_that_cannot_be_had_are_told_in_one_line(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: the model, and why."""

    def create(*_: Any, **__: Any) -> None:
        msg = "no hub:\nsome advice"
        raise error(msg)

    monkeypatch.setattr(timm, "create_model", create)
    told = "^timm cannot make the model resnet18.a1_in1k with its weights: no hub: some advice$"
    with pytest.raises(ExportRefused, match=told):
        export_timm(TimmRequest("resnet18.a1_in1k", tmp_path / "x", pretrained=True))


def test_size_or_tag_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Neither is told to be an unknown model, nor with the tracer's own heading."""
    for name, size, told in (
        ("test_vit", 50, r"ONNX graph: Input height \(50\) should be divisible by patch size"),
        ("test_vit.gone", 0, "timm cannot make the model test_vit.gone: Invalid pretrained tag"),
    ):
        with pytest.raises(ExportRefused, match=told):
            export_timm(TimmRequest(name, tmp_path / "x", random_seed=0, image_size=size))
