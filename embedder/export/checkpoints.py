"""Local weights: files of tensors, and the layouts in which backbones are published.

Only tensors are read: safetensors, or pickles through ``torch.load(weights_only=True)``, which
runs no code of the file.
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

_SHOWN: Final = 4
_SHOWN_BYTES: Final = 16
_NESTS: Final = (
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
"""Keys under which files keep a model's tensors, the better one first: DINO evaluates the
teacher. (VISSL nests them under classy_state_dict.base_model.model.trunk.)"""
_BETTER: Final = ("encoder_q", "online", "teacher", "base_encoder", "backbone", "encoder")
"""Of several copies of a backbone in one file, the one to take (MoCo: the query encoder; BYOL: the
online network), most telling first."""
_WORSE: Final = ("encoder_k", "target", "momentum", "ema_")
_SEQUENCE: Final = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
"""A ResNet as ``Sequential(*resnet.children())`` names its parts: lightly and others save that."""

_CLASS: Final = re.compile(r"GLOBAL ([\w.]+)")
"""How PyTorch names a class that it refuses."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a file by name, and what to say of where they are from."""

    tensors: Tensors
    description: str


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors in ``file``.

    Raises:
        ExportRefused: it cannot be read, holds more than tensors, or none.
    """
    try:
        raw = file.read_bytes()
    except OSError as exc:
        msg = f"{file}: expected a readable file, got {exc.strerror or exc}"
        raise ExportRefused(msg) from exc
    description = f"{file.name} sha256:{hashlib.sha256(raw).hexdigest()}"
    if not raw:
        msg = f"{file}: expected a file of tensors, got an empty file"
        raise ExportRefused(msg)
    found: Any
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found = load(raw)
        except SafetensorError as exc:
            msg = f"{file}: expected safetensors, got {exc}"
            raise ExportRefused(msg) from exc
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what it then refuses
                found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as exc:  # reading what is no pickle ends in anything
            msg = f"{file}: expected a file of tensors and nothing else, got {_reason(exc, raw)}"
            raise ExportRefused(msg) from exc
    tensors = find_tensors(found)
    if not tensors:
        msg = f"{file}: expected tensors by name, got a {type(found).__name__} without any"
        raise ExportRefused(msg)
    return Checkpoint(tensors, description)


def _reason(exc: Exception, raw: bytes) -> str:
    """What PyTorch found in ``raw``, without its pages of advice."""
    refused = _CLASS.search(str(exc))
    if refused or (isinstance(exc, pickle.UnpicklingError) and raw.startswith(b"PK")):
        what = refused[1] if refused else "other objects"
        return (
            f"{what} too: only tensors are read, since other objects can run code; where you trust "
            "it, save its state_dict alone, or convert it to safetensors"
        )
    if isinstance(exc, RuntimeError):
        line = re.sub(r"^\[[^]]*\] \. ", "", str(exc).strip()).partition("\n")[0]
        return f"one that PyTorch cannot read: {line.partition('. ')[0]}"
    if raw.startswith(b"\x80"):
        return "a pickle that torch.save did not write, or that is cut short"
    return f"another file, which begins {raw[:_SHOWN_BYTES]!r}"


def find_tensors(found: object) -> Tensors:
    """The tensors by name in what a file holds, however deep the usual names nest them."""
    if not isinstance(found, Mapping):
        return {}
    for name in _NESTS:
        inner = find_tensors(found.get(name))
        if inner:
            return inner
    return {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}


def find_backbone(tensors: Tensors, expected: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of a backbone among ``tensors``, under the names that ``expected`` has.

    Prefixes (``module.``, ``backbone.``, ``encoder_q.``, ...) are found by looking for the whole
    backbone behind them; heads and projectors are left out.

    Raises:
        ExportRefused: no prefix leads to all of ``expected``.
    """
    candidates = [
        made
        for prefix in prefixes(tensors, expected)
        for made in (_under(tensors, prefix), _unrolled(_under(tensors, prefix)))
    ]
    wanted = set(expected)
    whole = [made for made in candidates if wanted <= set(made)]
    if not whole:
        raise _incomplete(tensors, candidates, wanted)
    return {name: whole[0][name] for name in expected}


def check_shapes(found: Tensors, expected: Mapping[str, torch.Tensor]) -> None:
    """ExportRefused, naming the tensor, if one of ``found`` has not the shape of its namesake."""
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            msg = (
                f"checkpoint: {name}: expected shape {tuple(expected[name].shape)}, got "
                f"{tuple(tensor.shape)}"
            )
            raise ExportRefused(msg)


def prefixes(tensors: Tensors, expected: Iterable[str]) -> list[str]:
    """What may stand before the names of a backbone, the likeliest first."""
    first = next(iter(expected))
    ends = (first, _sequence_name(first))
    found = {name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)}
    # "x.layer1.0." ends like the root too: a prefix is empty or ends with a dot.
    kept = [prefix for prefix in found if prefix == "" or prefix.endswith(".")]
    return sorted(kept, key=lambda prefix: (_rank(prefix), len(prefix), prefix))


def _rank(prefix: str) -> int:
    if any(word in prefix for word in _WORSE):
        return len(_BETTER) + 1
    return next((at for at, word in enumerate(_BETTER) if word in prefix), len(_BETTER))


def _sequence_name(name: str) -> str:
    head, dot, rest = name.partition(".")
    places = {part: place for place, part in _SEQUENCE.items()}
    return f"{places.get(head, head)}{dot}{rest}"


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _unrolled(tensors: Tensors) -> Tensors:
    """Names of a Sequential's places as a ResNet's own names."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        head, dot, rest = name.partition(".")
        if head in _SEQUENCE:
            made[f"{_SEQUENCE[head]}{dot}{rest}"] = tensor
    return made


def _incomplete(tensors: Tensors, candidates: list[Tensors], wanted: set[str]) -> ExportRefused:
    best = max(candidates, key=lambda made: len(wanted & set(made)), default={})
    missing = sorted(wanted - set(best))
    has = sorted(tensors)
    more = ", ..." if len(has) > _SHOWN else ""
    return ExportRefused(
        f"checkpoint: {len(missing)} of the {len(wanted)} tensors of the backbone are missing, "
        f"such as {', '.join(missing[:_SHOWN])}; it has {', '.join(has[:_SHOWN])}{more}"
    )
