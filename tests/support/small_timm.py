"""timm's architectures with few and narrow blocks and small images: quick to export."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch

VIT: dict[str, Any] = {"depth": 2}
SMALL: dict[str, Any] = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
"""For models that take images of any size, and are made for one."""
NARROW: dict[str, Any] = {"channels": (64, 32, 32, 64), **SMALL}
"""For a ResNet: as many tensors as it has, and fewer numbers in them."""


@contextmanager
def smaller(**changes: Any) -> Iterator[None]:
    """While the block runs, timm makes its models with ``changes``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", functools.partial(timm.create_model, **changes))
        yield


def resnet(seed: int = 0) -> torch.nn.Module:
    """A narrow ResNet-18 with statistics of its own, so that a lost tensor shows."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=0, **NARROW)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.02)
    return model.eval()
