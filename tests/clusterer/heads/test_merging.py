"""Over-clustering: more clusters than kinds, and those that neighbours confuse made one."""

from __future__ import annotations

import numpy as np
import pytest
from reclustering import DIM, blobs
from sklearn.metrics import adjusted_rand_score

from clusterer.heads.ensemble import quality
from clusterer.heads.graph import to_onnx
from clusterer.heads.merging import confusion, merge
from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.options import HeadOptions
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.session import HeadSession
from clusterer.heads.training import train_head

KINDS = 5


def test_confusion_is_the_mean_over_neighbours() -> None:
    """Against loops over points, neighbours and clusters."""
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(3), 7).astype(np.float32)
    neighbours = rng.integers(7, size=(7, 2)).astype(np.int32)
    expected = np.zeros((3, 3))
    for i in range(7):
        for j in neighbours[i]:
            for k in range(3):
                for l in range(3):  # noqa: E741
                    one = votes[i, k] * votes[j, l] + votes[i, l] * votes[j, k]
                    expected[k, l] += one / 2 / neighbours.size
    found = confusion(votes, neighbours)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-6)


def test_pieces_of_a_kind_are_one_and_kinds_stay_apart() -> None:
    """Seven pieces of three kinds, one of which nothing draws; kinds confuse a little."""
    kinds = np.array([0, 0, 1, 2, 1, 0, 2])
    joint = np.where(kinds[:, None] == kinds, 3.0, 0.1)
    joint[6], joint[:, 6] = 0, 0
    groups = merge(joint / joint.sum())
    assert groups.max() == 2
    assert adjusted_rand_score(kinds[:6], groups[:6]) == 1
    assert merge(np.eye(4) / 4).tolist() == [0, 1, 2, 3]
    assert merge(np.full((3, 3), 1 / 9)).max() == 1  # never all in one


def test_a_grouped_network_adds_up_its_votes() -> None:
    """In NumPy and in ONNX: a cluster gets the votes of its outputs."""
    rng = np.random.default_rng(1)
    layer = Layer(rng.normal(size=(DIM, 4)).astype(np.float32), np.zeros(4, np.float32))
    branches = (Branch(np.zeros(DIM, np.float32), unit=True, layers=(layer,)),)
    plain = Network(branches).probabilities(blobs(20))
    grouped = Network(branches, np.array([1, 0, 1, 2], np.int32))
    expected = np.stack([plain[:, 1], plain[:, 0] + plain[:, 2], plain[:, 3]], axis=1)
    np.testing.assert_allclose(grouped.probabilities(blobs(20)), expected, atol=1e-6)
    session = HeadSession(to_onnx(grouped))
    assert session.clusters == grouped.clusters == 3
    np.testing.assert_allclose(session.probabilities(blobs(20)), expected, atol=1e-5)


@pytest.mark.parametrize("objective", ["scp", "temi"])
def test_the_number_of_kinds_is_found(objective: str) -> None:
    """Trained with three times as many clusters as there are kinds, five are left."""
    vectors = blobs(300, spread=0.2)
    options = HeadOptions(
        objective=objective,  # type: ignore[arg-type]
        epochs={"scp": 12, "temi": 100}[objective],
        batch=60,
        seeds=1,
        merge=True,
    )
    neighbours = nearest_neighbours(vectors, 10)
    made = train_head(Pairs(vectors, 300, neighbours), 3 * KINDS, options)
    network, report = made.network, made.report
    assert network.clusters == KINDS
    votes = network.probabilities(vectors)
    assert adjusted_rand_score(np.arange(300) % KINDS, votes.argmax(axis=1)) > 0.9
    assert report.quality == quality(votes, vectors, neighbours)
