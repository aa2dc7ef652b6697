"""timm models and local checkpoints, exported for real, against timm itself."""

from __future__ import annotations

import argparse
import functools
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform

from embedder.encoding.artefact import EncoderArtefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from embedder.export.checkpoints import (
    check_shapes,
    find_backbone,
    find_tensors,
    read_checkpoint,
)
from embedder.export.pictures import pictures
from embedder.export.timm import TimmRequest, data_config, export_timm, to_preprocessing
from embedder.images.preprocess import ImageLimits, decode
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
    check_vectors(dino, model, size=64)


def check_vectors(made: EncoderArtefact, model: torch.nn.Module, *, size: int = 0) -> None:
    """The artefact gives the vectors that timm's ``model`` and transform give for pictures."""
    transform: Any = create_transform(**data_config(model, size), is_training=False)
    encoder = Encoder.open(made.directory, RuntimeConfig())
    (spec,) = encoder.preprocessings
    tests = pictures(spec.crop.height)
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
        ("vit_small_patch16_224.dino", 64, {"depth": 2}),
        ("vit_small_patch8_224.dino", 32, {"depth": 2}),
        ("vit_small_patch14_dinov2", 56, {"depth": 2}),
        ("vit_small_patch16_dinov3", 64, {"depth": 2}),
        ("resnet50", 0, {"layers": (1, 1, 1, 1)}),
        ("efficientnet_lite0", 0, {}),
    ],
)
def test_architectures_give_timms_own_vectors(
    name: str, size: int, fewer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINO, DINOv2, DINOv3, ResNet and EfficientNet, from a checkpoint; of like blocks, a few."""
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **fewer))
    model = varied(name, size)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    made = export_timm(
        TimmRequest(name, tmp_path / "made", checkpoint=tmp_path / "w.pth", image_size=size)
    )
    check_vectors(made, model, size=size)


def test_checkpoint_is_resized_as_timm_does(tmp_path: Path) -> None:
    """Position embeddings of another image size are timm's own of the size that was asked for."""
    model = varied("test_vit", 0)
    state = model.state_dict()
    state["pos_embed"].mul_(50)  # so that another way to resize them shows
    torch.save({"teacher": {f"backbone.{n}": t for n, t in state.items()}}, tmp_path / "dino.pth")
    torch.save(state, tmp_path / "w.pth")
    request = TimmRequest(
        "test_vit", tmp_path / "made", checkpoint=tmp_path / "dino.pth", image_size=96
    )
    made = export_timm(request)
    assert made.manifest.input.height == 96
    theirs = timm.create_model(
        "test_vit",
        num_classes=0,
        img_size=96,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")},
    )
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
    found = find_backbone(read_checkpoint(file).tensors, state)
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
        find_backbone(less, state)
    with pytest.raises(ExportRefused, match=r"bn1\.weight: expected shape \(64,\), got \(3,\)"):
        check_shapes({**state, "bn1.weight": torch.zeros(3)}, state)
    with pytest.raises(ExportRefused, match=r"100 of the 100 .* it has a$"):
        find_backbone({"a": torch.zeros(1)}, state)


class _Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A file with more than tensors in it is not executed, and the message says what to do."""
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ExportRefused, match="convert it to safetensors"):
        read_checkpoint(tmp_path / "evil.pth")


def _archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b", "c")


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        (
            "namespace.pth",
            lambda file: torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, file),
            "got argparse.Namespace too: only tensors are read",
        ),
        ("empty.pth", Path.touch, "got an empty file"),
        ("empty.safetensors", Path.touch, "got an empty file"),
        ("none.safetensors", lambda file: save_file({}, file), "got a dict without any"),
        ("list.pth", lambda file: torch.save([1, 2], file), "got a list without any"),
        (
            "text.pth",
            lambda file: file.write_text("hello\n" * 10),
            "another file, which begins b'hello",
        ),
        ("page.pth", lambda file: file.write_text("<!DOCTYPE html>"), "begins b'<!DOCTYPE"),
        (
            "plain.pth",
            lambda file: file.write_bytes(pickle.dumps({"a": 1}, protocol=4)),
            "a pickle that torch.save did not write",
        ),
        ("other.pth", _archive, "PyTorch cannot read: Expected hasRecord"),
    ],
)
def test_file_without_tensors_is_told_in_one_line(
    name: str, write: Callable[[Path], Any], told: str, tmp_path: Path
) -> None:
    """What the file is, in words of Shoal's: not PyTorch's advice, nor a number, nor nothing."""
    write(tmp_path / name)
    with pytest.raises(ExportRefused) as caught:
        read_checkpoint(tmp_path / name)
    message = caught.value.message
    assert message.startswith(f"{tmp_path / name}: expected ")
    assert told in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert "weights_only" not in message


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


def test_request_is_checked_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name, a license or a directory that cannot be costs no download and no export."""
    monkeypatch.setattr(timm, "create_model", None)
    for changes, told in (
        ({"name": "My Dino"}, r"name: expected 1 to 64 of a-z.*, got 'My Dino'"),
        ({"license": ""}, "licence: expected 1 to 2000 characters, got 0"),
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
