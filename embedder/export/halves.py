"""An image tower in float16, and what float16 does to its activations.

ONNX Runtime on a CPU computes a float16 graph in float32 as far as it can, so that an activation
too large for float16 goes unseen there. In ``rounded`` every activation is rounded to float16 and
back where a GPU would store it; sums stay in float32, as on tensor cores.
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
_KEPT: Final = (*float16.DEFAULT_OP_BLOCK_LIST, "Cast")
"""Operators that stay in float32."""


def halve(source: Path, file: Path, *, outside: bool) -> None:
    """Write the float32 graph ``source`` in float16 to ``file``.

    Pixels go in and unit vectors come out as before. ``outside``: the weights lie beside the graph.
    """
    # Types are inferred before the weights come in: it serialises the graph, and a protobuf holds
    # 2 GiB.
    model = onnx.load(source, load_external_data=False)
    del model.graph.value_info[:]  # the types that the conversion changes
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
    """Write the float32 graph ``source`` to ``file``, with every activation rounded to float16.

    What float16 cannot hold, from 65,520 on, becomes infinite. ``outside``: as in ``halve``.
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
    """The names of the last nodes, which scale to unit length: they stay in float32."""
    makers = {output: node for node in graph.node for output in node.output}
    found, todo = dict[str, None](), [output.name for output in graph.output]
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.op_type in _SCALING and node.name not in found:
            found[node.name] = None
            todo.extend(node.input)
    return list(found)
