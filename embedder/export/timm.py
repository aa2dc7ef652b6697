"""Exports timm models (DINO, DINOv2, ResNet, EfficientNet) and local checkpoints of them."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from embedder.encoding.artefact import EncoderArtefact
from embedder.encoding.manifest import WHITE, Crop, Preprocessing, Resize, Source
from embedder.export import artefacts, gates
from embedder.export.checkpoints import Tensors, check_shapes, find_backbone, read_checkpoint
from embedder.export.image_encoder import Tower, write_encoder
from embedder.export.open_clip import artefact_name, normalise
from shoal.errors import ExportRefused

PACKAGE: Final = "timm"


@dataclass(frozen=True, slots=True)
class TimmRequest:
    """Which model to export, with which weights, and the directory to write.

    Exactly one of ``pretrained``, ``checkpoint`` and ``random_seed`` names the weights.

    Attributes:
        model: timm's name, ``vit_small_patch16_224.dino``; a tag after the dot says which weights.
        output: The directory to write; must not exist.
        pretrained: Take timm's own weights, from where timm finds them.
        checkpoint: A local file of weights (SimCLR, BYOL, MoCo, DINO, torchvision, timm).
        random_seed: The seed of random weights: for tests and for measuring speed.
        image_size: Side of the input, pixels; 0 is the model's own. Position embeddings, also a
            checkpoint's, are resized to it once, at the export.
        name: The encoder's name. Default: the model's.
        license: The license of the weights (SPDX), if it is known.
        matte: The colour behind transparent pixels, ``#rrggbb``; empty: alpha is dropped.
    """

    model: str
    output: Path
    pretrained: bool = False
    checkpoint: Path | None = None
    random_seed: int | None = None
    image_size: int = 0
    name: str = ""
    license: str = "unknown"
    matte: str = WHITE


def export_timm(request: TimmRequest) -> EncoderArtefact:
    """Writes the artefact that ``request`` describes.

    Raises:
        ExportRefused: the request is wrong; the model, its weights or its preprocessing cannot be
            expressed; or the export is not faithful.
    """
    artefacts.check_request(request.output, name=request.name, license=request.license)
    matte = artefacts.to_matte(request.matte)
    model, weights = _load(request)
    config = data_config(model, request.image_size)
    transform: gates.Transform = create_transform(**config, is_training=False)
    label = artefacts.Label(
        name=request.name or artefact_name(request.model, ""),
        description=f"timm {request.model}, {weights}",
        license=request.license,
        source=Source(
            package=PACKAGE,
            version=importlib.metadata.version(PACKAGE),
            model=request.model,
            weights=weights,
        ),
    )
    tower = Tower(
        model,
        to_preprocessing(config, matte=matte),
        lambda picture: transform(picture.convert("RGB")),
    )
    return write_encoder(tower, label, request.output)


def data_config(model: torch.nn.Module, image_size: int = 0) -> dict[str, Any]:
    """The preprocessing settings of timm for ``model``, made with ``image_size`` (0: its own)."""
    given = {"input_size": (3, image_size, image_size)} if image_size else {}
    config: dict[str, Any] = resolve_model_data_config(model, given)  # type: ignore[no-untyped-call]
    return config


def to_preprocessing(config: dict[str, Any], *, matte: str | None = None) -> Preprocessing:
    """The data configuration of a timm model in Shoal's terms; timm knows no ``matte``.

    Raises:
        ExportRefused: a setting has no counterpart; names it.
    """
    channels, height, width = config["input_size"]
    mode, interpolation = config.get("crop_mode", "center"), config["interpolation"]
    resized = int(np.floor(height / config["crop_pct"]))
    if channels != 3 or height != width:  # noqa: PLR2004 - RGB
        msg = f"input_size: expected a square of 3 channels, got {config['input_size']}"
        raise ExportRefused(msg)
    if interpolation not in ("bicubic", "bilinear"):
        raise ExportRefused(f"interpolation: expected bicubic or bilinear, got {interpolation!r}")
    if mode not in ("center", "squash") or (mode == "squash" and resized != height):
        got = f"{mode!r} with crop_pct {config['crop_pct']}"
        raise ExportRefused(f"crop_mode: expected center, or squash of the whole image, got {got}")
    return Preprocessing(
        resize=Resize(
            mode="shortest_edge" if mode == "center" else "stretch",
            size=resized,
            interpolation=interpolation,
            antialias=True,
        ),
        crop=Crop(mode="center", height=height, width=width),
        normalise=normalise(config["mean"], config["std"]),
        matte=matte,
    )


def _load(request: TimmRequest) -> tuple[torch.nn.Module, str]:
    """The backbone in evaluation mode, and a description of its weights."""
    given = (request.pretrained or None, request.checkpoint, request.random_seed)
    if sum(each is not None for each in given) != 1:
        msg = "expected weights: one of timm's own, a checkpoint file and a random seed"
        raise ExportRefused(msg)
    if request.random_seed is not None:
        torch.manual_seed(request.random_seed)
    model = _create(request)
    if request.checkpoint is not None:
        found = read_checkpoint(request.checkpoint)
        _fill(model, found.tensors, resize=request.image_size > 0)
        return model.eval(), found.description
    return (
        model.eval(),
        "timm's own" if request.pretrained else f"random, seed {request.random_seed}",
    )


def _create(request: TimmRequest) -> torch.nn.Module:
    """The backbone, with fetched weights if timm's own are asked for."""
    options: dict[str, Any] = {"img_size": request.image_size} if request.image_size else {}
    try:
        model: torch.nn.Module = timm.create_model(
            request.model, pretrained=request.pretrained, num_classes=0, **options
        )
    except Exception as exc:  # timm's hub, files and constructors raise any exception
        why = " ".join(str(exc).split())[:300] or type(exc).__name__
        if ":" not in request.model and not timm.is_model(request.model):
            msg = f"timm has no model {request.model!r}: {why}"
        elif isinstance(exc, TypeError) and request.image_size:
            msg = f"timm model {request.model} takes no image size: {why}"
        else:
            weights = " with its weights" if request.pretrained else ""
            msg = f"timm cannot make the model {request.model}{weights}: {why}"
        raise ExportRefused(msg) from exc
    return model


def _fill(model: torch.nn.Module, tensors: Tensors, *, resize: bool) -> None:
    """Loads the backbone among ``tensors`` into ``model``.

    With ``resize``, weights for another image size are resized.
    """
    # Counters of batches change no vector, and some files lack them.
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    found = find_backbone(tensors, expected)
    # The image size changes position embeddings and biases only. Patches of another size, which
    # timm would resample too, belong to another model.
    to_resize = [
        name for name in found if "pos" in name and found[name].shape != expected[name].shape
    ]
    if to_resize and not resize:
        name = to_resize[0]
        msg = (
            f"checkpoint: {name}: expected shape {tuple(expected[name].shape)}, got "
            f"{tuple(found[name].shape)}, of another image size: with --image-size it is resized"
        )
        raise ExportRefused(msg)
    if to_resize:
        found |= _resized(model, found, to_resize)
    check_shapes(found, expected)
    model.load_state_dict(found, strict=False)


def _resized(model: torch.nn.Module, found: Tensors, names: list[str]) -> Tensors:
    """The tensors called ``names`` as timm resizes them for ``model``; none where it cannot."""
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if fit is None:
        return {}
    try:
        fitted = fit(dict(found), model)
    except Exception:  # noqa: BLE001 - the shapes fit no image size: check_shapes says so
        return {}
    return {name: fitted[name] for name in names if name in fitted}
