"""A head's graph, applied by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from round_groups import K, neighbour_pairs, round_groups, scp_head

from clusterer.heads import session
from clusterer.heads.graph import to_onnx
from clusterer.heads.loop import Training, train
from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.objectives import ObjectiveName
from clusterer.heads.scp import Scp
from clusterer.heads.session import HeadSession
from clusterer.heads.temi import Temi, TemiOptions
from shoal.errors import ArtefactError


@pytest.mark.parametrize("objective", ["scp", "temi"])
def test_the_network_the_graph_and_torch_agree(objective: ObjectiveName) -> None:
    """Folding batch norm, and ONNX Runtime: within 1e-5 of the module, in any batch."""
    vectors, _ = round_groups()
    pairs = neighbour_pairs(vectors)
    training = Training(K, objective=objective, batch=128, epochs=3)
    data = torch.from_numpy(vectors)
    made: Scp | Temi = (
        scp_head(pairs, training)
        if objective == "scp"
        else Temi(data, K, TemiOptions(heads=1), seed=0)
    )
    network = train(pairs, made, training).network
    with torch.no_grad():
        logits = made.module(data) if isinstance(made, Scp) else made.module.teacher(data)[0]
    expected = logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(network.probabilities(vectors), expected, atol=1e-5)
    applied = HeadSession(to_onnx(network))
    assert applied.clusters == K
    np.testing.assert_allclose(applied.probabilities(vectors), expected, atol=1e-5)
    np.testing.assert_allclose(applied.probabilities(vectors[:1]), expected[:1], atol=1e-5)
    many = np.tile(vectors, (21, 1))  # more than one run of the session takes
    np.testing.assert_allclose(applied.probabilities(many), np.tile(expected, (21, 1)), atol=1e-5)
    assert applied.probabilities(vectors[:0]).shape == (0, K)


def test_a_session_has_a_thread_for_each_core_that_it_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's quota counts, not the machine; they do not spin."""
    monkeypatch.setattr(session, "usable_cores", lambda: 3)
    layer = Layer(np.ones((2, 2), np.float32), np.zeros(2, np.float32))
    branch = Branch(np.zeros(2, np.float32), unit=False, layers=(layer,))
    opened = HeadSession(to_onnx(Network((branch,))))
    options = opened._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_what_is_no_head_is_refused() -> None:
    """Neither bytes nor another graph: one line, not ONNX Runtime's traceback."""
    with pytest.raises(ArtefactError, match="cannot be opened"):
        HeadSession(b"no graph")
    from onnx import TensorProto, helper  # noqa: PLC0415

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(ArtefactError, match="expected a graph from vectors to probabilities"):
        HeadSession(model.SerializeToString())
