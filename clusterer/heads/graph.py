"""A trained head as an ONNX graph, and back: vectors (N, D) in, soft assignments (N, K) out.

The graph uses operator set 17, and only Sub, LpNormalization, Gemm, Relu, Softmax, Mean and MatMul,
which any runtime has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from clusterer.heads.network import Branch, Layer, Network
from shoal.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

INPUT: Final = "vectors"
OUTPUT: Final = "probabilities"
_GROUPS: Final = "groups"
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
    if network.groups is None:
        writer.node("Mean", votes, OUTPUT)
    else:
        shares = writer.node("Mean", votes, "shares")
        writer.node("MatMul", [shares, writer.constant(_GROUPS, network.grouping())], OUTPUT)
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


def from_onnx(graph: bytes) -> Network:
    """The network that ``to_onnx`` made ``graph`` of.

    Raises:
        ConfigError: the package onnx is not installed.
        ArtefactError: Shoal did not write ``graph``.
    """
    try:
        import onnx  # noqa: PLC0415 - an extra
    except ImportError as exc:
        msg = f"reading a head's weights needs {exc.name}: pip install 'shoal[train]'"
        raise ConfigError(msg, package=str(exc.name)) from exc
    try:
        found = onnx.load_model_from_string(graph).graph
        weights = {
            each.name: np.array(onnx.numpy_helper.to_array(each)) for each in found.initializer
        }
        scaled = {each.output[0] for each in found.node if each.op_type == "LpNormalization"}
        branches: list[Branch] = []
        while (at := f"branch{len(branches)}") + ".mean" in weights:
            count = sum(name.startswith(f"{at}.") for name in weights) // 2
            layers = tuple(
                Layer(weights[f"{at}.{i}.weight"], weights[f"{at}.{i}.bias"]) for i in range(count)
            )
            branches.append(Branch(weights[f"{at}.mean"], f"{at}.unit" in scaled, layers))
        groups = weights[_GROUPS].argmax(axis=1).astype(np.int32) if _GROUPS in weights else None
    except (DecodeError, KeyError, ValueError) as exc:
        msg = f"head: expected a graph that Shoal wrote, got another: {exc}"
        raise ArtefactError(msg) from exc
    if not branches:
        raise ArtefactError("head: expected a graph that Shoal wrote, got one without branches")
    return Network(tuple(branches), groups)


class _Writer:
    """The nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper  # noqa: PLC0415 - an extra

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[np.float32]) -> str:
        from onnx import numpy_helper  # noqa: PLC0415 - an extra

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def branch(self, number: int, branch: Branch) -> str:
        """Writes the nodes of a branch; gives the name of its soft assignments."""
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
