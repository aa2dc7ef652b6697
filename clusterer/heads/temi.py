"""TEMI: self-distillation between neighbours, by an ensemble of linear heads on frozen features.

"Exploring the Limits of Deep Image Clustering using Pretrained Models" (Adaloglou, Michels,
Kalisch & Kollmann, BMVC 2023, arXiv 2303.17896). A student must draw the cluster that its slow
teacher draws for a neighbour; clusters that are drawn often count for less. TEMI needs features
only, like SCP with neighbours; docs/heads.md compares the two.

Shapes: H heads, B pairs, D components of a vector, K clusters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import nn
from torch.nn import functional

from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.scp import numbers

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-9
TEMPERATURE = 0.1
"""The temperature of both softmaxes; cosines of centred unit vectors are small."""

SHARES_MOMENTUM = 0.9
"""The share of the old value that stays, in each step, in the running shares and losses."""


class LinearHeads(nn.Module):
    """Vectors (B, D) to logits (H, B, K): centre, scale to length 1, one linear map per head."""

    mean: Tensor

    def __init__(self, mean: Tensor, heads: int, clusters: int) -> None:
        """Draws weights from torch's default generator; ``mean`` (D,) is that of the data."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.heads, self.clusters = heads, clusters
        self.linear = nn.Linear(len(mean), heads * clusters)

    def forward(self, vectors: Tensor) -> Tensor:
        """The logits (H, B, K) of ``vectors`` (B, D)."""
        centred = functional.normalize(vectors - self.mean, dim=1)
        logits: Tensor = self.linear(centred) / TEMPERATURE
        return logits.view(len(vectors), self.heads, self.clusters).transpose(0, 1)


def pair_weights(ta: Tensor, tb: Tensor) -> Tensor:
    """The weight of each pair, (B,): the mean over heads of sum_k ta_k tb_k.

    It is small where the teachers doubt a pair: a neighbour of another class counts for little.
    """
    return (ta * tb).sum(dim=2).mean(dim=0)


def losses(student: Tensor, teacher: Tensor, shares: Tensor, beta: float) -> Tensor:
    """The loss of each head, (H,), weighted and symmetric.

    L = -w log sum_k (s_k t'_k)^beta / p_k, the mean over both orders of a pair.

    Args:
        student: assignments (H, 2B, K) of the first of each pair, then of the second.
        teacher: the teacher's assignments (H, 2B, K), without gradient.
        shares: the running mean (H, 1, K) of the teacher's assignments.
        beta: 0.5 to 1: at 1 a few clusters win, at 0.5 all are of one size.
    """
    sa, sb = student.chunk(2, dim=1)
    ta, tb = teacher.chunk(2, dim=1)
    weights = pair_weights(ta, tb)
    total = sum(
        (-(weights * (((_above_0(s * t) ** beta) / shares).sum(dim=2) + EPSILON).log()).mean(dim=1))
        for s, t in ((sa, tb), (sb, ta))
    )
    assert isinstance(total, torch.Tensor)  # noqa: S101 - sum() may give 0
    return total / 2


def _above_0(products: Tensor) -> Tensor:
    """``products``, none of them 0: two sure heads reach 0 by underflow.

    A power below 1 has an infinite gradient at 0.
    """
    return products.clamp_min(torch.finfo(products.dtype).tiny)


@dataclass(frozen=True, slots=True)
class TemiOptions:
    """The objective's own options.

    Attributes:
        heads: Linear heads that are trained together; the one with the lowest loss is kept.
        beta: As in ``losses``.
        momentum: The share of the teacher that stays in each step.
    """

    heads: int = 16
    beta: float = 0.6
    momentum: float = 0.98


class Temi:
    """TEMI as an objective (``loop.Objective``)."""

    terms = ("total", "best")

    def __init__(self, vectors: Tensor, clusters: int, options: TemiOptions, *, seed: int) -> None:
        """New heads for ``vectors`` (N, D) with weights by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.module = _Pair(LinearHeads(vectors.mean(dim=0), options.heads, clusters))
        self._options = options

    @classmethod
    @torch.no_grad()
    def of(cls, branch: Branch, vectors: Tensor, options: TemiOptions) -> Self:
        """A trained head in training again: it is the teacher and the student."""
        layer = branch.layers[0]
        made = cls(vectors, layer.weight.shape[1], replace(options, heads=1), seed=0)
        pair = made.module
        for heads in (pair.student, pair.teacher):
            heads.mean.copy_(torch.from_numpy(branch.mean))
            heads.linear.weight.copy_(torch.from_numpy(layer.weight).T * TEMPERATURE)
            heads.linear.bias.copy_(torch.from_numpy(layer.bias) * TEMPERATURE)
        pair.shares.copy_(pair.teacher(vectors).softmax(dim=2).mean(dim=1, keepdim=True))
        return made

    def loss(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the heads on B pairs (2B, D), and the lowest one."""
        pair = self.module
        student = pair.student(views).float().softmax(dim=2)
        with torch.no_grad():
            teacher = pair.teacher(views).float().softmax(dim=2)
            pair.shares.lerp_(teacher.mean(dim=1, keepdim=True), 1 - SHARES_MOMENTUM)
        each = losses(student, teacher, pair.shares, self._options.beta)
        with torch.no_grad():
            pair.running.lerp_(each, 1 - SHARES_MOMENTUM)
        return each.mean(), each.min()

    @torch.no_grad()
    def stepped(self) -> None:
        """Moves the teacher a little towards the student."""
        pairs = zip(self.module.teacher.parameters(), self.module.student.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self._options.momentum)

    def network(self) -> Network:
        """The head of the teacher whose running loss is the lowest."""
        teacher = self.module.teacher
        best = int(self.module.running.argmin())
        rows = slice(best * teacher.clusters, (best + 1) * teacher.clusters)
        layer = Layer(
            numbers(teacher.linear.weight[rows].T / TEMPERATURE),
            numbers(teacher.linear.bias[rows] / TEMPERATURE),
        )
        return Network((Branch(numbers(teacher.mean), unit=True, layers=(layer,)),))


class _Pair(nn.Module):
    """Student and teacher, with the clusters' shares (H, 1, K) and the heads' losses (H,)."""

    shares: Tensor
    running: Tensor

    def __init__(self, student: LinearHeads) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
        uniform = torch.full((student.heads, 1, student.clusters), 1 / student.clusters)
        self.register_buffer("shares", uniform)
        self.register_buffer("running", torch.zeros(student.heads))
