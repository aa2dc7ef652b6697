"""SCP: a small head on frozen features, and the losses that train it without labels.

"Keep it Light! Simplifying Image Clustering via Text-Free Adapters" (arXiv 2502.04226): two views
of a picture must get the same cluster, confidently, and all clusters must be used. PyTorch is used
here, in ``temi`` and in ``loop``; a trained head is a ``network``, which needs none.

Shapes: B pairs, D components of a vector, K clusters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clusterer.heads.network import Branch, Layer, Network

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-9
"""The least probability: a smaller one counts as this. Its -log is 20.7, without a gradient."""

_LEAST_DEVIATION = 0.1
"""The least deviation that is scaled to 1, as a share of the mean one. A component that hardly
varies in the sample would otherwise be magnified, and decide alone if it varies later."""


@dataclass(frozen=True, slots=True)
class ScpOptions:
    """The objective's own options.

    Attributes:
        alpha: The weight of the entropy: a larger one makes clusters more equal in size. 5 suits
            most sets, 10 from 100 clusters on, 2 if sizes are known to be very unequal.
        width: Units of each hidden layer; the paper's width is not in the copy at hand.
        layers: Linear layers; the paper has five.
    """

    alpha: float = 5.0
    width: int = 512
    layers: int = 5


class ScpHead(nn.Module):
    """Vectors (B, D) to logits (B, K): standardised; linear, batch norm, ReLU; then linear.

    All components of unit vectors are near 1 / sqrt(D). Without standardisation or batch norm they
    do not train at the usual rates.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, vectors: Tensor, clusters: int, options: ScpOptions) -> None:
        """Draws weights from torch's default generator; ``vectors`` (N, D) set the scale."""
        super().__init__()
        self.register_buffer("mean", vectors.mean(dim=0))
        deviations = vectors.std(dim=0)
        least = (_LEAST_DEVIATION * deviations.mean()).clamp_min(EPSILON)
        self.register_buffer("scale", 1 / deviations.clamp_min(least))
        widths = [vectors.shape[1], *[options.width] * (options.layers - 1)]
        self.hidden = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.hidden.append(nn.Linear(before, after, bias=False))  # batch norm has one
            self.hidden.append(nn.BatchNorm1d(after))
            self.hidden.append(nn.ReLU())
        self.last = nn.Linear(widths[-1], clusters)

    def forward(self, vectors: Tensor) -> Tensor:
        """The logits (B, K) of ``vectors`` (B, D)."""
        logits: Tensor = self.last(self.hidden((vectors - self.mean) * self.scale))
        return logits

    def blocks(self) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
        """Each hidden layer's linear part and batch norm."""
        modules = list(self.hidden)
        found: list[tuple[nn.Linear, nn.BatchNorm1d]] = []
        for linear, norm in zip(modules[::3], modules[1::3], strict=True):
            assert isinstance(linear, nn.Linear)  # noqa: S101 - for the type checker
            assert isinstance(norm, nn.BatchNorm1d)  # noqa: S101 - for the type checker
            found.append((linear, norm))
        return found


class Scp:
    """SCP as an objective (``loop.Objective``)."""

    terms = ("total", "cross_entropy", "consistency", "entropy")

    def __init__(self, vectors: Tensor, clusters: int, options: ScpOptions, *, seed: int) -> None:
        """A new head for ``vectors`` (N, D) with weights by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.module = ScpHead(vectors, clusters, options)
        self._alpha = options.alpha

    @classmethod
    @torch.no_grad()
    def of(cls, branch: Branch, vectors: Tensor, alpha: float) -> Self:
        """A trained head in training again: for ``vectors`` (N, D) it gives the same as before.

        Batch norm was folded into the layers. It is made anew with the statistics of ``vectors``,
        and with weights that undo it.
        """
        *hidden, last = branch.layers
        width, clusters = last.weight.shape
        options = ScpOptions(alpha, width, len(branch.layers))
        made = cls(vectors, clusters, options, seed=0)
        head = made.module
        head.mean.copy_(torch.from_numpy(branch.mean))
        x = (vectors - head.mean) * head.scale
        for number, (layer, (linear, norm)) in enumerate(zip(hidden, head.blocks(), strict=True)):
            weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
            linear.weight.copy_((weight if number else weight / head.scale[:, None]).T)
            x = linear(x)
            mean, variance = x.mean(dim=0), x.var(dim=0)
            norm.load_state_dict(
                {
                    "weight": (variance + norm.eps).sqrt(),
                    "bias": bias + mean,
                    "running_mean": mean,
                    "running_var": variance,
                    "num_batches_tracked": torch.tensor(0),
                }
            )
            x = (x + bias).relu()
        head.last.weight.copy_(torch.from_numpy(last.weight).T)
        head.last.bias.copy_(torch.from_numpy(last.bias))
        return made

    def loss(self, views: Tensor) -> Losses:
        """The losses of B pairs (2B, D): both views go through the head in one batch."""
        ya, yb = self.module(views).float().softmax(dim=1).chunk(2)  # each (B, K)
        return losses(ya, yb, self._alpha)

    def stepped(self) -> None:
        """Does nothing: the optimiser has done it all."""

    def network(self) -> Network:
        """The head; its linear layers contain batch norm and standardisation."""
        folded = [_folded(linear, norm) for linear, norm in self.module.blocks()]
        first = folded[0]
        folded[0] = Layer(numbers(self.module.scale)[:, None] * first.weight, first.bias)
        last = Layer(numbers(self.module.last.weight.T), numbers(self.module.last.bias))
        return Network((Branch(numbers(self.module.mean), unit=False, layers=(*folded, last)),))


def _folded(linear: nn.Linear, norm: nn.BatchNorm1d) -> Layer:
    """One layer for ``linear`` and ``norm``, by the norm's running statistics."""
    assert norm.running_mean is not None  # noqa: S101 - for the type checker
    assert norm.running_var is not None  # noqa: S101 - for the type checker
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return Layer(numbers(linear.weight.T * gain), numbers(norm.bias - norm.running_mean * gain))


def numbers(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A copy of ``tensor`` as a float32 array."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


class Losses(NamedTuple):
    """The loss of a batch and its three terms, scalars."""

    total: Tensor
    cross_entropy: Tensor
    consistency: Tensor
    entropy: Tensor


def losses(ya: Tensor, yb: Tensor, alpha: float) -> Losses:
    """SCP's loss of assignments ``ya``, ``yb`` (B, K) of the two views; rows sum to 1.

    L = L_e + L_con - alpha H (equation 6).
    """
    cross, agree, spread = cross_entropy(ya, yb), consistency(ya, yb), entropy(ya, yb)
    return Losses(cross + agree - alpha * spread, cross, agree, spread)  # (6)


def cross_entropy(ya: Tensor, yb: Tensor) -> Tensor:
    """L_e = -1/B sum_i sum_k ya_ik log yb_ik, the mean over both orders (equation 3).

    It is least when both views are sure of the same cluster.
    """
    both = ya * yb.clamp_min(EPSILON).log() + yb * ya.clamp_min(EPSILON).log()  # (B, K)
    return -both.sum(dim=1).mean() / 2  # (3)


def consistency(ya: Tensor, yb: Tensor) -> Tensor:
    """L_con = -1/B sum_i log(ya_i . yb_i), by the chance that both views draw one cluster (4).

    It is that of TAC (Li et al., ICML 2024), which the paper follows.
    """
    return -(ya * yb).sum(dim=1).clamp_min(EPSILON).log().mean()  # (4): of (B,) to a scalar


def entropy(ya: Tensor, yb: Tensor) -> Tensor:
    """H(mean_i ya_i) + H(mean_i yb_i), 0 to 2 log K: it is large if all clusters are used (5).

    It is the sum of both views. Training begins near the uniform assignment, and there the other
    two terms win over alpha H unless alpha is above 1.5; with the mean of both it would be 3.
    """
    return sum((_entropy(y.mean(dim=0)) for y in (ya, yb)), ya.new_zeros(()))  # (5): of (K,) each


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(EPSILON).log()).sum()
