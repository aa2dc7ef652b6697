"""Reads weights from local files, in the layouts in which backbones are published.

Only tensors are read: from safetensors, or from pickles with ``torch.load(weights_only=True)``,
which runs no code from the file.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from shoal.errors import ExportRefused

_SHOWN_NAMES: Final = 4
_SHOWN_BYTES: Final = 16
_TENSOR_KEYS: Final = (
    "state_dict",
    "model_state_dict",
    "online_network_state_dict",
    "classy_state_dict",
    "base_model",
    "model",
    "trunk",
    "teacher",
    "student",
    "network",
    "net",
)
"""Keys under which files keep a model's tensors. A key that comes earlier wins: DINO evaluates its
teacher, so "teacher" comes before "student". VISSL nests four of them:
classy_state_dict.base_model.model.trunk."""
_PREFERRED: Final = ("encoder_q", "online", "teacher", "base_encoder", "backbone", "encoder")
"""Where a file has several copies of a backbone, the prefix of the copy to take has one of these
words (MoCo: the query encoder; BYOL: the online network). A word that comes earlier wins."""
_AVOIDED: Final = ("encoder_k", "target", "momentum", "ema_")
"""A copy whose prefix has one of these words is taken only if there is no other."""
_SEQUENCE: Final = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
"""A ResNet's parts as ``Sequential(*resnet.children())`` numbers them, with their own names.
lightly and others save a ResNet in that form."""

_REFUSED_CLASS: Final = re.compile(r"GLOBAL ([\w.]+)")
"""Finds the class that PyTorch refused to load in its message."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a file by name; ``description`` names the file and its sha256."""

    tensors: Tensors
    description: str


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors in ``file``.

    Raises:
        ExportRefused: the file cannot be read, holds other objects than tensors, or has no tensors.
    """
    try:
        raw = file.read_bytes()
    except OSError as exc:
        raise ExportRefused(f"{file}: expected a readable file, got {exc.strerror or exc}") from exc
    description = f"{file.name} sha256:{hashlib.sha256(raw).hexdigest()}"
    if not raw:
        raise ExportRefused(f"{file}: expected a file of tensors, got an empty file")
    content = _safetensors(file, raw) if file.suffix == ".safetensors" else _pickled(file, raw)
    tensors = find_tensors(content)
    if not tensors:
        msg = f"{file}: expected tensors by name, got a {type(content).__name__} without any"
        raise ExportRefused(msg)
    return Checkpoint(tensors, description)


def _safetensors(file: Path, raw: bytes) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(raw)
    except SafetensorError as exc:
        raise ExportRefused(f"{file}: expected safetensors, got {exc}") from exc


def _pickled(file: Path, raw: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of what it refuses a moment later
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as exc:  # a file that is no pickle can raise any exception
        msg = f"{file}: expected a file of tensors and nothing else, got {_reason(exc, raw)}"
        raise ExportRefused(msg) from exc


def _reason(exc: Exception, raw: bytes) -> str:
    """Why PyTorch cannot load ``raw``, in one line and without its advice."""
    refused = _REFUSED_CLASS.search(str(exc))
    if refused or (isinstance(exc, pickle.UnpicklingError) and raw.startswith(b"PK")):
        others = refused[1] if refused else "other objects"
        return (
            f"{others} too: only tensors are read, since other objects can run code; if you trust "
            "the file, save its state_dict alone, or convert it to safetensors"
        )
    if isinstance(exc, RuntimeError):
        line = re.sub(r"^\[[^]]*\] \. ", "", str(exc).strip()).partition("\n")[0]
        return f"one that PyTorch cannot read: {line.partition('. ')[0]}"
    if raw.startswith(b"\x80"):
        return "a pickle that torch.save did not write, or that is cut short"
    return f"another file, which begins {raw[:_SHOWN_BYTES]!r}"


def find_tensors(content: object) -> Tensors:
    """The tensors by name in the ``content`` of a file, however deep the usual keys nest them."""
    if not isinstance(content, Mapping):
        return {}
    for key in _TENSOR_KEYS:
        inner = find_tensors(content.get(key))
        if inner:
            return inner
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def find_backbone(tensors: Tensors, expected: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of a backbone among ``tensors``, under the names that ``expected`` has.

    A prefix (``module.``, ``backbone.``, ``encoder_q.``, ...) counts if the whole backbone is
    behind it. Heads and projectors are left out.

    Raises:
        ExportRefused: no prefix leads to all of ``expected``.
    """
    candidates = [
        candidate
        for prefix in prefixes(tensors, expected)
        for candidate in (_under(tensors, prefix), _renamed(_under(tensors, prefix)))
    ]
    wanted = set(expected)
    whole = [candidate for candidate in candidates if wanted <= set(candidate)]
    if not whole:
        raise _incomplete(tensors, candidates, wanted)
    return {name: whole[0][name] for name in expected}


def check_shapes(found: Tensors, expected: Mapping[str, torch.Tensor]) -> None:
    """Raises ExportRefused if a tensor of ``found`` has not the shape that ``expected`` has."""
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            msg = (
                f"checkpoint: {name}: expected shape {tuple(expected[name].shape)}, got "
                f"{tuple(tensor.shape)}"
            )
            raise ExportRefused(msg)


def prefixes(tensors: Tensors, expected: Iterable[str]) -> list[str]:
    """The prefixes that the names of a backbone may have, the likeliest first."""
    first = next(iter(expected))
    ends = (first, _sequence_name(first))
    found = {name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)}
    # A prefix is empty or ends with a dot: "xconv1.weight" has no prefix "x".
    kept = [prefix for prefix in found if prefix == "" or prefix.endswith(".")]
    return sorted(kept, key=lambda prefix: (_rank(prefix), len(prefix), prefix))


def _rank(prefix: str) -> int:
    if any(word in prefix for word in _AVOIDED):
        return len(_PREFERRED) + 1
    return next((at for at, word in enumerate(_PREFERRED) if word in prefix), len(_PREFERRED))


def _sequence_name(name: str) -> str:
    """A ResNet's tensor ``name`` as a Sequential of its parts has it: ``layer1.x``, ``4.x``."""
    head, dot, rest = name.partition(".")
    places = {part: place for place, part in _SEQUENCE.items()}
    return f"{places.get(head, head)}{dot}{rest}"


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _renamed(tensors: Tensors) -> Tensors:
    """The tensors of a Sequential of a ResNet's parts, under the ResNet's own names."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        head, dot, rest = name.partition(".")
        if head in _SEQUENCE:
            renamed[f"{_SEQUENCE[head]}{dot}{rest}"] = tensor
    return renamed


def _incomplete(tensors: Tensors, candidates: list[Tensors], wanted: set[str]) -> ExportRefused:
    best = max(candidates, key=lambda candidate: len(wanted & set(candidate)), default={})
    missing = sorted(wanted - set(best))
    has = sorted(tensors)
    more = ", ..." if len(has) > _SHOWN_NAMES else ""
    return ExportRefused(
        f"checkpoint: {len(missing)} of the {len(wanted)} tensors of the backbone are missing, "
        f"such as {', '.join(missing[:_SHOWN_NAMES])}; it has {', '.join(has[:_SHOWN_NAMES])}{more}"
    )
