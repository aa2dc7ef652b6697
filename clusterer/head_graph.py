"""A trained head as an ONNX graph: vectors (N, D) in, soft assignments (N, K) out.

Operator set 17, nothing but Sub, LpNormalization, Gemm, Relu, Softmax and Mean: any runtime has
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from clusterer.network import Branch, Network
from shoal.errors import ConfigError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

INPUT: Final = "vectors"
OUTPUT: Final = "probabilities"
_OPSET: Final = 17
_IR: Final = 8


def to_onnx(network: Network) -> bytes:
    """The graph of ``network``.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper  # noqa: PLC0415 - an extra
    except ImportError as exc:
        msg = f"writing a head needs {exc.name}: pip install 'shoal[train]'"
        raise ConfigError(msg, package=str(exc.name)) from exc
    writer = _Writer()
    votes = [writer.branch(i, branch) for i, branch in enumerate(network.branches)]
    writer.node("Mean", votes, OUTPUT)
    graph = helper.make_graph(
        writer.nodes,
        "head",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", network.dim])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", network.clusters])],
        writer.constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="shoal"
    )
    model.ir_version = _IR
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper  # noqa: PLC0415

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[np.float32]) -> str:
        from onnx import numpy_helper  # noqa: PLC0415

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def branch(self, number: int, branch: Branch) -> str:
        """The nodes of a branch; returns the name of its soft assignments."""
        at = f"branch{number}"
        x = self.node("Sub", [INPUT, self.constant(f"{at}.mean", branch.mean)], f"{at}.centred")
        if branch.unit:
            x = self.node("LpNormalization", [x], f"{at}.unit", axis=1, p=2)
        for i, layer in enumerate(branch.layers):
            weight = self.constant(f"{at}.{i}.weight", layer.weight)
            bias = self.constant(f"{at}.{i}.bias", layer.bias)
            x = self.node("Gemm", [x, weight, bias], f"{at}.{i}.linear")
            if i < len(branch.layers) - 1:
                x = self.node("Relu", [x], f"{at}.{i}.relu")
        return self.node("Softmax", [x], f"{at}.votes", axis=1)
