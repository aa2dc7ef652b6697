"""The ONNX graph of EfficientNet-Lite0, written node by node from the PyTorch model.

Batch normalisation is folded into the convolutions in float64. Weights are stored as float16 with
a Cast to float32, which the runtime folds when it loads the graph. The graph scales the pixels and
the vectors, and has no classifier. The network is a plain chain of convolutions, so writing it
needs no tracer and gives the same bytes on every run.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SIZE: Final = 224
DIM: Final = 1280
# The values of the original TensorFlow evaluation of the Lite family.
MEAN: Final = 127.0
SCALE: Final = 128.0
OPSET: Final = 17
IR_VERSION: Final = 8


class GraphWriter:
    """Collects the nodes and the float16 weights of the ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Stores ``value`` as it is; returns its name."""
        import onnx

        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, value: npt.NDArray[Any]) -> str:
        """Stores ``value`` as float16; returns the name of its float32 form."""
        import onnx

        stored = self.constant(f"{name}_f16", value.astype(np.float16))
        return self.node("Cast", [stored], name, to=onnx.TensorProto.FLOAT)

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def conv(self, x: str, name: str, conv: Any, norm: Any) -> str:
        """Adds a convolution with its batch normalisation folded in; returns its output's name."""
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = conv.weight.double() * gain[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * gain
        # TensorFlow's SAME padding is lopsided for stride 2; the model holds it as a layer.
        left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
        return self.node(
            "Conv",
            [
                x,
                self.weight(f"{name}_weight", weight.detach().numpy()),
                self.weight(f"{name}_bias", bias.detach().numpy()),
            ],
            name,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            group=conv.groups,
            pads=[top, left, bottom, right],
        )

    def relu6(self, x: str) -> str:
        """Adds a clip to 0..6; returns its output's name."""
        return self.node("Clip", [x, "zero", "six"], f"{x}_relu6")


def build_onnx(model: Any) -> bytes:
    """The serialised graph: ``pixels`` uint8 NHWC to ``embedding`` float32 (N, 1280)."""
    import onnx

    graph = GraphWriter()
    for name, value in (("zero", 0.0), ("six", 6.0), ("mean", MEAN), ("scale", SCALE)):
        graph.constant(name, np.array(value, dtype=np.float32))
    graph.constant("tiny", np.array(1e-12, dtype=np.float32))
    x = graph.node("Cast", ["pixels"], "pixels_f32", to=onnx.TensorProto.FLOAT)
    x = graph.node("Sub", [x, "mean"], "centred")
    x = graph.node("Div", [x, "scale"], "scaled")
    x = graph.node("Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    x = graph.relu6(graph.conv(x, "stem", model._conv_stem, model._bn0))
    for index, block in enumerate(model._blocks):
        x = _block(graph, x, f"block{index}", block)
    x = graph.relu6(graph.conv(x, "head", model._conv_head, model._bn1))
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "flat")
    length = graph.node("ReduceL2", [x], "length", axes=[1], keepdims=1)
    # ReLU6 can switch every feature off; a zero vector must not become NaN.
    length = graph.node("Max", [length, "tiny"], "safe_length")
    graph.node("Div", [x, length], "embedding")

    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "efficientnet-lite0",
            [_value_info("pixels", onnx.TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
            [_value_info("embedding", onnx.TensorProto.FLOAT, ["N", DIM])],
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="shoal",
    )
    onnx.checker.check_model(proto, full_check=True)
    serialised: bytes = proto.SerializeToString(deterministic=True)
    return serialised


def _block(graph: GraphWriter, x: str, name: str, block: Any) -> str:
    args = block._block_args
    skip = x
    if args.expand_ratio != 1:
        x = graph.relu6(graph.conv(x, f"{name}_expand", block._expand_conv, block._bn0))
    x = graph.relu6(graph.conv(x, f"{name}_depthwise", block._depthwise_conv, block._bn1))
    x = graph.conv(x, f"{name}_project", block._project_conv, block._bn2)
    # The model's own condition for its residual connection.
    if block.id_skip and args.stride == 1 and args.input_filters == args.output_filters:
        x = graph.node("Add", [x, skip], f"{name}_add")
    return x


def _value_info(name: str, dtype: int, shape: list[str | int]) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, dtype, shape)
