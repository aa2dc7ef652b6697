"""An image tower in float16, and a float32 graph that shows what float16 does to activations.

ONNX Runtime on a CPU computes a float16 graph in float32 as far as it can, so an activation that is
too large for float16 does no harm there. The graph of ``rounded`` rounds every activation to
float16 where a GPU would store it; sums stay in float32, as on tensor cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16

from embedder.export.graphs import Graph

_SCALING: Final = frozenset(
    {"Cast", "Clip", "Div", "Expand", "LpNormalization", "Max", "Mul", "Pow", "ReduceL2"}
    | {"ReduceSum", "Shape", "Sqrt"}
)
"""Operators that may take part in scaling a vector to unit length."""
_KEPT: Final = (*float16.DEFAULT_OP_BLOCK_LIST, "Cast")
"""Operators that stay in float32."""


def halve(source: Path, file: Path, *, outside: bool) -> None:
    """Writes the float32 graph ``source`` to ``file`` in float16.

    Input and output keep their types. ``outside``: the weights go into a file beside the graph.
    """
    # Types are inferred before the weights are loaded, because that serialises the graph and a
    # protobuf holds 2 GiB.
    model = onnx.load(source, load_external_data=False)
    del model.graph.value_info[:]  # the conversion changes these types
    model = onnx.shape_inference.infer_shapes(model)
    onnx.load_external_data_for_model(model, str(source.parent))
    halved = float16.convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=list(_KEPT),
        node_block_list=_unit_length(model.graph),
    )
    onnx.save(halved, file, save_as_external_data=outside, location=file.name + ".data")


def rounded(source: Path, file: Path, *, outside: bool) -> Graph:
    """Writes the float32 graph ``source`` to ``file`` so that it rounds activations to float16.

    A value from 65,520 on, which float16 cannot hold, becomes infinite. ``outside``: as in
    ``halve``.
    """
    model = onnx.load(source, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    onnx.load_external_data_for_model(model, str(source.parent))
    kept = set(_unit_length(model.graph))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in _KEPT or node.name in kept:
            continue
        for at, output in enumerate(node.output):
            if output in floats:
                whole, half = f"{output}/whole", f"{output}/half"
                node.output[at] = whole
                nodes.append(helper.make_node("Cast", [whole], [half], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half], [output], to=TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for weights in model.graph.initializer:
        if weights.data_type == TensorProto.FLOAT:
            weights.CopyFrom(_rounded(weights))
    onnx.save(model, file, save_as_external_data=outside, location=file.name + ".data")
    return Graph(file, file.with_name(file.name + ".data") if outside else None)


def _rounded(weights: Any) -> Any:
    values = numpy_helper.to_array(weights)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return numpy_helper.from_array(halves.astype(np.float32), weights.name)


def _unit_length(graph: Any) -> list[str]:
    """The names of the last nodes, which scale to unit length and stay in float32."""
    producers = {output: node for node in graph.node for output in node.output}
    names, todo = dict[str, None](), [output.name for output in graph.output]
    while todo:
        node = producers.get(todo.pop())
        if node is not None and node.op_type in _SCALING and node.name not in names:
            names[node.name] = None
            todo.extend(node.input)
    return list(names)
