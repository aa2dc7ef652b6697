"""PyTorch towers as ONNX graphs that scale the pixels first and the vectors to length 1 last.

The graphs take batches of any size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from embedder.encoding.manifest import Preprocessing
from shoal.errors import ExportRefused

OPSET: Final = 18
IMAGE_INPUT, IMAGE_OUTPUT = "pixels", "image_embedding"
TEXT_INPUT, TEXT_OUTPUT = "tokens", "text_embedding"
_INLINE_BYTES: Final = 1_900_000_000
"""The most bytes of weights that stay inside the graph's file. A protobuf holds 2 GiB; the weights
of a larger graph go into a file beside it."""


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported graph: its file, and the file of its weights if they are beside it."""

    file: Path
    data: Path | None


class ImageGraph(torch.nn.Module):
    """A module from images uint8 (N, H, W, 3), RGB, to vectors float32 (N, D) of unit length."""

    def __init__(self, tower: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.tower = tower
        shape = (1, 3, 1, 1)
        normalise = preprocessing.normalise
        mean = torch.tensor(normalise.mean, dtype=torch.float32).view(shape)
        scale = torch.tensor(normalise.scale, dtype=torch.float32).view(shape)
        self.mean = torch.nn.Buffer(mean)
        self.scale = torch.nn.Buffer(scale)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The vectors."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.scale
        return torch.nn.functional.normalize(self.tower(x), dim=-1)


class TextGraph(torch.nn.Module):
    """A module from tokens int64 (N, context_length) to vectors float32 (N, D) of unit length."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The vectors."""
        return torch.nn.functional.normalize(self.tower(tokens), dim=-1)


def run(module: torch.nn.Module, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The output of ``module`` for ``array``, computed by PyTorch."""
    with torch.no_grad():
        output: npt.NDArray[np.float32] = module(torch.from_numpy(array)).numpy()
    return output


def write_graph(
    module: torch.nn.Module, example: npt.NDArray[Any], file: Path, *, names: tuple[str, str]
) -> Graph:
    """Traces ``module`` on ``example`` (2, ...) and writes the graph to ``file``.

    The example has two rows because a graph traced on one would accept no other batch.

    Args:
        module: takes one array and returns one.
        example: an input.
        file: where the graph is written.
        names: of the graph's input and of its output.

    Raises:
        ExportRefused: PyTorch cannot express the module in ONNX.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    outside = size > _INLINE_BYTES
    input_name, output_name = names
    with _quietly():
        try:
            torch.onnx.export(
                module,
                (torch.from_numpy(example),),
                file,
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                external_data=outside,
                verbose=False,
            )
        except Exception as exc:  # its exceptions have no common base
            cause: BaseException = exc
            while cause.__cause__ is not None:  # the outer ones only say how to report a bug
                cause = cause.__cause__
            reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
            msg = f"the model cannot be written as an ONNX graph: {reason}"
            raise ExportRefused(msg) from exc
    data = file.with_name(file.name + ".data")
    return Graph(file, data if data.exists() else None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides the tracer's warnings: they are about its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
