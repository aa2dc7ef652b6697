"""SCP's and TEMI's losses, what they do to a head, and the table of objectives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hard_classes import accuracy, hard_classes
from round_groups import K, neighbour_pairs, round_groups, scp_head, trained

from clusterer.fits import kmeans
from clusterer.heads import scp, temi
from clusterer.heads.ensemble import best, quality
from clusterer.heads.loop import Training, train
from clusterer.heads.objectives import OBJECTIVES, ObjectiveName
from clusterer.heads.options import HeadOptions
from clusterer.heads.scp import Scp, ScpOptions
from clusterer.heads.temi import Temi, TemiOptions


def assignments(seed: int, batch: int = 7) -> torch.Tensor:
    """Random soft assignments (batch, K), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, K, dtype=torch.float64, generator=generator).softmax(dim=1)


def test_losses_equal_naive_loops() -> None:
    """Equations 3 to 6 written out element by element give the same numbers."""
    ya, yb = assignments(1), assignments(2)
    a, b = ya.tolist(), yb.tolist()
    n = len(a)
    cross = agree = 0.0
    for i in range(n):
        for k in range(K):
            cross -= (a[i][k] * math.log(b[i][k]) + b[i][k] * math.log(a[i][k])) / (2 * n)
        agree -= math.log(sum(a[i][k] * b[i][k] for k in range(K))) / n
    spread = 0.0
    for y in (a, b):
        for k in range(K):
            share = sum(row[k] for row in y) / n
            spread -= share * math.log(share)
    found = scp.losses(ya, yb, alpha=3.0)
    assert found.cross_entropy.item() == pytest.approx(cross, rel=1e-12)
    assert found.consistency.item() == pytest.approx(agree, rel=1e-12)
    assert found.entropy.item() == pytest.approx(spread, rel=1e-12)
    assert found.total.item() == pytest.approx(cross + agree - 3 * spread, rel=1e-12)


def test_losses_have_their_closed_forms() -> None:
    """Uniform: log K each, 2 log K; sure, equal and balanced: 0, 0 and 2 log K."""
    uniform = torch.full((8, K), 1 / K, dtype=torch.float64)
    found = scp.losses(uniform, uniform, alpha=1.0)
    assert found.cross_entropy.item() == pytest.approx(math.log(K))
    assert found.consistency.item() == pytest.approx(math.log(K))
    assert found.entropy.item() == pytest.approx(2 * math.log(K))
    sure = torch.eye(K, dtype=torch.float64).repeat(2, 1)
    found = scp.losses(sure, sure, alpha=1.0)
    assert found.cross_entropy.item() == pytest.approx(0)
    assert found.consistency.item() == pytest.approx(0)
    assert found.entropy.item() == pytest.approx(2 * math.log(K))


def test_a_sure_disagreement_costs_what_the_clamp_allows() -> None:
    """Opposite one-hot views: -log(1e-9) in both terms, and no NaN in the gradient."""
    ya = torch.eye(K, dtype=torch.float64).requires_grad_()
    yb = torch.eye(K, dtype=torch.float64).roll(1, dims=1)
    found = scp.losses(ya, yb, alpha=1.0)
    assert found.cross_entropy.item() == pytest.approx(-math.log(1e-9))
    assert found.consistency.item() == pytest.approx(-math.log(1e-9))
    found.total.backward()
    assert ya.grad is not None
    assert torch.isfinite(ya.grad).all()


def test_temi_losses_equal_naive_loops() -> None:
    """The weighted, symmetric loss of each head, element by element."""
    heads, pairs, beta = 3, 5, 0.6
    student = torch.stack([assignments(seed, 2 * pairs) for seed in range(heads)])
    teacher = torch.stack([assignments(9 + seed, 2 * pairs) for seed in range(heads)])
    shares = assignments(30, heads)[:, None, :]
    s, t, p = student.tolist(), teacher.tolist(), shares[:, 0].tolist()
    weights = [
        sum(t[h][i][k] * t[h][pairs + i][k] for h in range(heads) for k in range(K)) / heads
        for i in range(pairs)
    ]
    found = temi.losses(student, teacher, shares, beta)
    for h in range(heads):
        naive = 0.0
        for i in range(pairs):
            for x, y in ((i, pairs + i), (pairs + i, i)):
                inner = sum((s[h][x][k] * t[h][y][k]) ** beta / p[h][k] for k in range(K))
                naive -= weights[i] * math.log(inner + temi.EPSILON) / (2 * pairs)
        assert found[h].item() == pytest.approx(naive, rel=1e-12)


def test_temi_has_a_gradient_where_heads_are_sure_of_different_clusters() -> None:
    """S * t underflows to 0, where a power below 1 has an infinite gradient."""
    logits = (80.0 * torch.eye(K)[[0, 1]])[None].requires_grad_()
    student = logits.softmax(dim=2)
    teacher = student.detach().flip(1)
    shares = torch.full((1, 1, K), 1 / K)
    losses = temi.losses(student, teacher, shares, 0.6)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


def test_without_entropy_the_clusters_collapse() -> None:
    """The paper's ablation: alpha 0 merges classes and leaves clusters unused; alpha 5 does not."""
    vectors, classes = round_groups()
    pairs = neighbour_pairs(vectors)
    without = ScpOptions(width=32, alpha=0)
    collapsed = trained(pairs, without, epochs=60).network.probabilities(vectors)
    assert len(np.unique(collapsed.argmax(axis=1))) < K
    assert accuracy(classes, collapsed.argmax(axis=1)) <= 0.76
    spread = trained(pairs, epochs=60).network.probabilities(vectors)
    assert accuracy(classes, spread.argmax(axis=1)) >= 0.98


def test_a_component_that_hardly_varied_decides_nothing_later() -> None:
    """One that was 0 in all of the sample and is not in what comes in: clusters stay."""
    vectors, classes = round_groups()
    still = np.concatenate([vectors, np.zeros((len(vectors), 1), np.float32)], axis=1)
    head = trained(neighbour_pairs(still)).network
    later = still.copy()
    later[:, -1] = 0.01
    assert accuracy(classes, head.probabilities(later).argmax(axis=1)) >= 0.98
    np.testing.assert_allclose(head.probabilities(later), head.probabilities(still), atol=0.1)


def test_temi_finds_round_groups() -> None:
    """The other objective of the same loop."""
    vectors, classes = round_groups()
    training = Training(K, objective="temi", batch=128, least_steps=300, learning_rate=5e-3)
    data = torch.from_numpy(vectors)
    objective = Temi(data, K, TemiOptions(heads=4), seed=0)
    done = train(neighbour_pairs(vectors), objective, training)
    assert accuracy(classes, done.network.probabilities(vectors).argmax(axis=1)) >= 0.98


def test_scp_finds_classes_that_kmeans_does_not() -> None:
    """Unequal, near, elongated classes behind shared noise: on each of five sets much more of them.

    Of two heads the one that neighbours agree with most, no label asked. Measured: .69 to .99,
    k-means .47 to .62, and at least .22 between them.
    """
    ours, theirs = [], []
    for seed in range(5):
        vectors, classes = hard_classes(seed, n=1000)
        k = int(classes.max()) + 1
        pairs = neighbour_pairs(vectors, 10)
        assert pairs.neighbours is not None
        heads = []
        for number in range(2):
            training = Training(k, epochs=20, batch=128, seed=number)
            done = train(pairs, scp_head(pairs, training, ScpOptions(width=64)), training)
            heads.append(done.network.probabilities(vectors))
        chosen = best([quality(y, vectors, pairs.neighbours) for y in heads], 1)[0]
        ours.append(accuracy(classes, heads[chosen].argmax(axis=1)))
        centroids = kmeans.fit(vectors, kmeans.KMeansOptions(k)).centroids
        theirs.append(accuracy(classes, (vectors @ centroids.T).argmax(axis=1)))
    assert max(theirs) <= 0.7
    assert np.mean(ours) >= 0.8
    assert min(np.subtract(ours, theirs)) >= 0.12


def test_alpha_of_zero_is_no_default() -> None:
    """It is the paper's ablation; None is the measured default."""
    settings = OBJECTIVES["scp"].settings
    assert settings(K, 0)["alpha"] == 0
    assert settings(99, None)["alpha"] == 5
    assert settings(100, None)["alpha"] == 10


def test_every_objective_has_a_row() -> None:
    """The table and the type name the same."""
    assert tuple(OBJECTIVES) == get_args(ObjectiveName)


@pytest.mark.parametrize(
    ("objective", "points", "clusters", "neighbours"),
    [
        ("scp", 10, 2, 10),
        ("scp", 50_000, 10, 10),
        ("temi", 399, 10, 10),
        ("temi", 1000, 10, 25),
        ("temi", 1999, 10, 49),
        ("temi", 50_000, 10, 50),
    ],
)
def test_default_neighbours_are_ten_or_a_quarter_of_a_cluster(
    objective: ObjectiveName, points: int, clusters: int, neighbours: int
) -> None:
    """SCP's are ten; TEMI's a quarter of a mean cluster, 10 to 50; a number that is given holds."""
    options = HeadOptions(objective=objective)
    assert options.neighbours_among(points, clusters) == neighbours
    assert replace(options, neighbours=3).neighbours_among(points, clusters) == 3


def test_settings_are_what_a_head_is_made_by() -> None:
    """The objective's own options reach its head, new or again."""
    vectors, _ = round_groups()
    training = Training(K, settings={"alpha": 2.0, "width": 8, "layers": 3}, seed=3)
    made = OBJECTIVES["scp"].new(vectors, training)
    network = made.network()
    assert [layer.weight.shape for layer in network.branches[0].layers] == [(12, 8), (8, 8), (8, K)]
    again = OBJECTIVES["scp"].resume(network.branches[0], vectors, training)
    views = torch.from_numpy(vectors[:20])
    for each in (made, again):
        loss = dict(zip(each.terms, each.loss(views), strict=True))
        total = loss["cross_entropy"] + loss["consistency"] - 2 * loss["entropy"]
        assert loss["total"].item() == pytest.approx(total.item(), rel=1e-6)
    temi_training = Training(
        K, objective="temi", settings={"heads": 3, "beta": 0.5, "momentum": 0.5}, seed=3
    )
    heads = OBJECTIVES["temi"].new(vectors, temi_training)
    assert heads.module.student.heads == 3  # type: ignore[union-attr]
    other = OBJECTIVES["temi"].new(vectors, replace(temi_training, seed=4))
    first, second = (each.network().branches[0].layers[0].weight for each in (heads, other))
    assert (first != second).any()


def test_the_teacher_follows_the_student_slowly() -> None:
    """After a step: momentum of itself, the rest of the student; the head is the teacher's."""
    vectors, _ = round_groups()
    made = Temi(torch.from_numpy(vectors), K, TemiOptions(heads=2, momentum=0.75), seed=0)
    teacher, student = made.module.teacher.linear, made.module.student.linear
    with torch.no_grad():
        student.weight.add_(1)
    before = teacher.weight.clone()
    made.stepped()
    torch.testing.assert_close(teacher.weight, before + 0.25)
    made.module.running.copy_(torch.tensor([2.0, 1.0]))  # the second has the lower loss
    layer = made.network().branches[0].layers[0]
    np.testing.assert_allclose(layer.weight, teacher.weight[K:].T.detach() / temi.TEMPERATURE)


def test_temis_shares_and_losses_are_running_means() -> None:
    """A tenth of the new ones in each step."""
    vectors, _ = round_groups()
    made = Temi(torch.from_numpy(vectors), K, TemiOptions(heads=2), seed=0)
    views = torch.from_numpy(vectors[:40])
    with torch.no_grad():
        teacher = made.module.teacher(views).softmax(dim=2)
        student = made.module.student(views).softmax(dim=2)
        shares = 0.9 / K + 0.1 * teacher.mean(dim=1, keepdim=True)
        expected = temi.losses(student, teacher, shares, 0.6)
        mean, least = made.loss(views)
    torch.testing.assert_close(made.module.shares, shares)
    torch.testing.assert_close(mean, expected.mean())
    torch.testing.assert_close(least, expected.min())
    torch.testing.assert_close(made.module.running, 0.1 * expected)


def test_scp_standardises_by_the_vectors_but_magnifies_nothing_still() -> None:
    """Components get mean 0 and deviation 1, but for one below a tenth of the mean deviation."""
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(
        (rng.normal(size=(500, 4)) * [1, 3, 2, 0.001] + 5).astype(np.float32)
    )
    head = Scp(vectors, K, ScpOptions(width=8), seed=0).module
    scaled = (vectors - head.mean) * head.scale
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0)[:3], torch.ones(3))
    assert head.scale[3].item() == pytest.approx(10 / vectors.std(dim=0).mean().item(), rel=1e-5)
