"""The quality of heads, and one head of several."""

from __future__ import annotations

import numpy as np
import pytest
from round_groups import K, round_groups

from clusterer.heads.ensemble import Quality, best, ensemble, quality
from clusterer.heads.network import Branch, Layer, Network, with_order


def toy_network() -> Network:
    rng = np.random.default_rng(5)
    layer = Layer(rng.normal(size=(12, K)).astype(np.float32), np.zeros(K, np.float32))
    return Network((Branch(np.zeros(12, np.float32), unit=True, layers=(layer,)),))


def test_an_ensemble_aligns_its_heads() -> None:
    """A head and itself with its clusters in another order are, together, that head."""
    vectors, _ = round_groups()
    one = toy_network()
    other = with_order(one, np.array([2, 0, 3, 1]))
    votes = [each.probabilities(vectors) for each in (one, other)]
    together = ensemble([one, other], votes)
    np.testing.assert_allclose(together.probabilities(vectors), votes[0], atol=1e-6)


def test_heads_that_lost_a_cluster_come_last() -> None:
    """However well neighbours agree in what is left."""
    whole, less, lost = Quality(0.6, 0.1, 4), Quality(0.5, 0.9, 4), Quality(0.99, 0.9, 3)
    assert best([lost, less, whole], 2) == [2, 1]
    assert best([lost, less, whole], 3, "cohesion") == [1, 2, 0]


def test_quality_equals_naive_loops() -> None:
    """Agreement of neighbours, cohesion of centred vectors, clusters that a vector likes best."""
    vectors, _ = round_groups(30)
    rng = np.random.default_rng(1)
    votes = rng.dirichlet(np.ones(5), 30).astype(np.float32)
    votes[:, 3] = 0  # nobody's first
    neighbours = rng.integers(30, size=(30, 3)).astype(np.int32)
    found = quality(votes, vectors, neighbours)
    pairs = [float(votes[i] @ votes[j]) for i in range(30) for j in neighbours[i]]
    assert found.agreement == pytest.approx(np.mean(pairs), rel=1e-5)
    centred = [v - vectors.mean(axis=0) for v in vectors]
    centred = [v / np.linalg.norm(v) for v in centred]
    labels = votes.argmax(axis=1)
    cosines = []
    for k in set(labels.tolist()):
        members = [v for v, label in zip(centred, labels, strict=True) if label == k]
        direction = np.sum(members, axis=0)
        direction /= np.linalg.norm(direction)
        cosines += [float(member @ direction) for member in members]
    assert found.cohesion == pytest.approx(np.mean(cosines), rel=1e-5)
    assert found.used == len(set(labels.tolist())) == 4


def test_an_ensemble_gives_the_mean_of_its_heads() -> None:
    """Each head's clusters are moved to those of the first that they overlap most."""
    vectors, _ = round_groups()
    first = toy_network()
    layer = first.branches[0].layers[0]
    near = Layer(layer.weight + np.float32(0.05), layer.bias)
    like_first = Network((Branch(first.branches[0].mean, unit=True, layers=(near,)),))
    shuffled = with_order(like_first, np.array([3, 1, 0, 2]))
    votes = [each.probabilities(vectors) for each in (first, shuffled)]
    made = ensemble([first, shuffled], votes)
    expected = (votes[0] + votes[1][:, [2, 1, 3, 0]]) / 2
    np.testing.assert_allclose(made.probabilities(vectors), expected, atol=1e-6)
    assert len(made.branches) == 2
