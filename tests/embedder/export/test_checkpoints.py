"""Local checkpoints: the layouts in which backbones are published, and files that are refused."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_timm import resnet

from embedder.export.checkpoints import (
    check_shapes,
    find_backbone,
    find_tensors,
    read_checkpoint,
)
from shoal.errors import ExportRefused


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
