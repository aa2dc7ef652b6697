"""Exports open_clip models: the image tower, and the text tower with its tokenizer."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from embedder.encoding.artefact import EncoderArtefact
from embedder.encoding.manifest import (
    WHITE,
    Crop,
    Normalise,
    Preprocessing,
    Resize,
    Source,
    TextCase,
    TextSpec,
)
from embedder.encoding.tokenizer import Tokenizer
from embedder.export import artefacts, gates
from embedder.export.checkpoints import read_checkpoint
from embedder.export.graphs import TEXT_INPUT, TEXT_OUTPUT, TextGraph, run, write_graph
from embedder.export.image_encoder import Tower, write_encoder
from embedder.export.tokenizers import write_tokenizer
from shoal.errors import ExportRefused

PACKAGE: Final = "open_clip_torch"
TEXTS: Final = ("a photo of a dog", "Two red bicycles, and 3 cafés!", "&amp;")
"""The texts of the artefact's self-test."""


@dataclass(frozen=True, slots=True)
class OpenClipRequest:
    """Which model to export, with which weights, and the directory to write.

    Exactly one of ``pretrained``, ``checkpoint`` and ``random_seed`` names the weights.

    Attributes:
        model: open_clip's name of the architecture, ``ViT-B-32-quickgelu``.
        output: The directory to write; must not exist.
        pretrained: open_clip's tag of the weights.
        checkpoint: A local file of weights: safetensors, or a pickle of tensors only.
        random_seed: The seed of random weights: for tests and for measuring speed.
        name: The encoder's name. Default: made of model and tag.
        license: The license of the weights (SPDX), if it is known.
        no_text: Leave the text tower out.
        matte: The colour behind transparent pixels, ``#rrggbb``; empty: alpha is dropped.
    """

    model: str
    output: Path
    pretrained: str | None = None
    checkpoint: Path | None = None
    random_seed: int | None = None
    name: str = ""
    license: str = "unknown"
    no_text: bool = False
    matte: str = WHITE


def export_open_clip(request: OpenClipRequest) -> EncoderArtefact:
    """Writes the artefact that ``request`` describes.

    Raises:
        ExportRefused: the request is wrong; the model, its weights or its preprocessing cannot be
            expressed; or the export is not faithful.
    """
    artefacts.check_request(request.output, name=request.name, license=request.license)
    matte = artefacts.to_matte(request.matte)
    model, weights = _load(request)
    preprocessing = to_preprocessing(dict(open_clip.get_model_preprocess_cfg(model)), matte=matte)
    label = artefacts.Label(
        name=request.name or artefact_name(request.model, request.pretrained or ""),
        description=f"open_clip {request.model}, {weights}",
        license=request.license,
        source=Source(
            package=PACKAGE,
            version=importlib.metadata.version(PACKAGE),
            model=request.model,
            weights=weights,
        ),
    )
    return write_encoder(
        Tower(_ImageTower(model), preprocessing, _transform(model)),
        label,
        request.output,
        text=lambda directory, files: (
            None if request.no_text else _write_text(request.model, model, directory, files)
        ),
    )


def to_preprocessing(config: dict[str, Any], *, matte: str | None = None) -> Preprocessing:
    """open_clip's preprocessing configuration in Shoal's terms; open_clip knows no ``matte``.

    Raises:
        ExportRefused: a setting has no counterpart; names it.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else map(int, size)
    mode, interpolation = config["resize_mode"], config["interpolation"]
    if mode not in ("shortest", "squash"):
        raise _no_counterpart("resize_mode", mode, "shortest or squash")
    if interpolation not in ("bicubic", "bilinear"):
        raise _no_counterpart("interpolation", interpolation, "bicubic or bilinear")
    if config.get("mode", "RGB") != "RGB":
        raise _no_counterpart("mode", config["mode"], "RGB")
    if mode == "shortest" and height != width:
        raise _no_counterpart("size", size, "a square with resize_mode shortest")
    return Preprocessing(
        resize=Resize(
            mode="shortest_edge" if mode == "shortest" else "stretch",
            size=max(height, width),
            interpolation=interpolation,
            antialias=True,
        ),
        crop=Crop(mode="center", height=height, width=width),
        normalise=normalise(config["mean"], config["std"]),
        matte=matte,
    )


def normalise(mean: Any, std: Any) -> Normalise:
    """The normalisation of pixels of 0..255 from the means and deviations for pixels of 0..1."""
    red, green, blue = (float(value) * 255 for value in mean)
    scales = tuple(float(value) * 255 for value in std)
    return Normalise(
        mean=(red, green, blue), scale=(scales[0], scales[1], scales[2]), in_graph=True
    )


def artefact_name(model: str, tag: str) -> str:
    """An encoder's name made of a model's name and a tag: 64 characters at most, lower case."""
    parts = [re.sub(r"[^a-z0-9._-]+", "-", part.lower()) for part in (model, tag) if part]
    return "-".join(parts).strip("-._")[:64]


def _no_counterpart(name: str, got: object, expected: str) -> ExportRefused:
    return ExportRefused(f"preprocessing {name}: expected {expected}, got {got!r}")


def _load(request: OpenClipRequest) -> tuple[torch.nn.Module, str]:
    """The model in evaluation mode, and a description of its weights."""
    given = (request.pretrained, request.checkpoint, request.random_seed)
    if sum(each is not None for each in given) != 1:
        msg = "expected weights: one of a pretrained tag, a checkpoint file and a random seed"
        raise ExportRefused(msg)
    if request.model not in open_clip.list_models():
        raise ExportRefused(
            f"open_clip has no model {request.model!r}: see open_clip.list_models()"
        )
    if request.pretrained is not None:
        _check_tag(request.model, request.pretrained)
    if request.random_seed is not None:
        torch.manual_seed(request.random_seed)
    model = _create(request)
    if request.checkpoint is not None:
        weights = read_checkpoint(request.checkpoint)
        _fill(model, weights.tensors, request.checkpoint)
        return model.eval(), weights.description
    if request.pretrained is not None:
        return model.eval(), request.pretrained
    return model.eval(), f"random, seed {request.random_seed}"


def _create(request: OpenClipRequest) -> torch.nn.Module:
    """The model, with fetched weights if a tag names them."""
    try:
        model: torch.nn.Module = open_clip.create_model(
            request.model, pretrained=request.pretrained, precision="fp32", device="cpu"
        )
    except Exception as exc:  # open_clip's hub, files and constructors raise any exception
        tag = "" if request.pretrained is None else f" with the weights {request.pretrained!r}"
        why = " ".join(str(exc).split())[:300] or type(exc).__name__
        msg = f"open_clip cannot make the model {request.model}{tag}: {why}"
        raise ExportRefused(msg) from exc
    return model


def _check_tag(model: str, tag: str) -> None:
    """Raises ExportRefused if the tag is unknown, or its weights need the other activation."""
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        msg = f"open_clip model {model} has no weights {tag!r}: it has {known}"
        raise ExportRefused(msg)
    wants = bool(config.get("quick_gelu", False))
    has = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if wants != has:
        right = f"{model}-quickgelu" if wants else model.removesuffix("-quickgelu")
        msg = (
            f"the weights {tag!r} were trained with {'QuickGELU' if wants else 'GELU'}, and the "
            f"model {model} has the other: export {right}"
        )
        raise ExportRefused(msg)


_WRAPPED: Final = "module."
"""The prefix that DistributedDataParallel puts before every name."""


def _fill(model: torch.nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    if all(name.startswith(_WRAPPED) for name in tensors):  # as open_clip's own training saves
        tensors = {name.removeprefix(_WRAPPED): tensor for name, tensor in tensors.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as exc:
        msg = f"{file}: the weights do not fit the model: {' '.join(str(exc).split())[:300]}"
        raise ExportRefused(msg) from exc


class _ImageTower(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The vectors, not yet of unit length."""
        vectors: torch.Tensor = self.model.encode_image(x)  # type: ignore[operator]
        return vectors


class _TextTower(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The vectors, not yet of unit length."""
        vectors: torch.Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return vectors


def _transform(model: torch.nn.Module) -> gates.Transform:
    config = open_clip.get_model_preprocess_cfg(model)
    made: gates.Transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return made


def _tokenizer(name: str) -> Any:
    """open_clip's tokenizer of the model ``name``; ExportRefused if it cannot be had."""
    try:
        return open_clip.get_tokenizer(name)
    except Exception as exc:  # open_clip's hub, files and parsers raise any exception
        why = " ".join(str(exc).split())[:300]
        msg = f"the tokenizer of {name} cannot be had (--no-text leaves the text tower out): {why}"
        raise ExportRefused(msg) from exc


def _write_text(
    name: str, model: torch.nn.Module, directory: Path, files: dict[str, str]
) -> TextSpec:
    """Writes the text tower's files and enters them in ``files``; returns its manifest entry."""
    tokenizer = _tokenizer(name)
    clean, pad_id = write_tokenizer(tokenizer, directory / "tokenizer.json")
    tower = TextGraph(_TextTower(model)).eval()
    tokens = tokenizer(list(TEXTS)).numpy()
    graph = write_graph(tower, tokens[:2], directory / "text.onnx", names=(TEXT_INPUT, TEXT_OUTPUT))
    truth = run(tower, tokens)
    made = gates.open_graph(graph, names=(TEXT_INPUT, TEXT_OUTPUT))(tokens)
    gates.compare(made, truth, [f"text {text!r}" for text in TEXTS], what="text graph")
    files.update(text="text.onnx", tokenizer="tokenizer.json")
    if graph.data is not None:
        files["text_data"] = graph.data.name
    spec = TextSpec(
        input=TEXT_INPUT,
        output=TEXT_OUTPUT,
        context_length=tokens.shape[1],
        pad_id=pad_id,
        clean=clean,
        self_test=tuple(
            TextCase(
                text=text,
                tokens=tuple(row.tolist()),
                embedding_b64=artefacts.encode_vector(vector),
                min_cosine=artefacts.MIN_SELF_TEST_COSINE,
            )
            for text, row, vector in zip(TEXTS, tokens, truth, strict=True)
        ),
    )
    checks = [*TEXTS, "", "a long text " * spec.context_length]
    ours = Tokenizer(directory / "tokenizer.json", spec).encode(checks)
    if not np.array_equal(ours, tokenizer(checks).numpy()):
        raise ExportRefused("the tokenizer that was written does not give open_clip's tokens")
    return spec
