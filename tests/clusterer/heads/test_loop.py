"""The training loop: its steps, its rates, its checkpoints."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from round_groups import K, neighbour_pairs, round_groups, scp_head, trained

from clusterer.heads import loop
from clusterer.heads.loop import Training, fingerprint, scheduled_rate, train
from clusterer.heads.network import Network
from clusterer.heads.objectives import ObjectiveName
from clusterer.heads.options import RatePlan
from clusterer.heads.pairs import Pairs
from clusterer.heads.scp import Scp
from clusterer.heads.temi import Temi, TemiOptions
from shoal.errors import InvalidArgument

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")


def test_the_rate_falls_by_a_cosine_or_stays() -> None:
    """Its ends and its middle."""
    falling, constant = Training(K), Training(K, schedule="constant")
    rates = [scheduled_rate(falling, step, 10) for step in (0, 5, 10)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0])
    assert {scheduled_rate(constant, step, 10) for step in range(10)} == {1e-3}


def test_one_seed_gives_one_head_and_another_seed_another() -> None:
    """Weights and pairs come from the seed alone, not from what torch drew before."""
    vectors, _ = round_groups()
    pairs = neighbour_pairs(vectors)
    first = trained(pairs, seed=3).network.probabilities(vectors)
    torch.rand(17)
    np.testing.assert_array_equal(first, trained(pairs, seed=3).network.probabilities(vectors))
    assert not np.allclose(first, trained(pairs, seed=4).network.probabilities(vectors))


@pytest.mark.parametrize("objective", ["scp", "temi"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda", "cuda", marks=needs_gpu),
        pytest.param("cpu", "cuda", marks=needs_gpu),
        pytest.param("cuda", "cpu", marks=needs_gpu),
    ],
)
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    objective: ObjectiveName,
    first: str,
    then: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped after an epoch and begun again, on any device: the same head and curve."""
    monkeypatch.setattr(loop, "_CHECKPOINT_EVERY_S", 0)
    vectors, _ = round_groups()
    pairs = neighbour_pairs(vectors)
    training = Training(K, objective=objective, batch=128, epochs=6, device=first)
    near = 1e-6 if first == then == "cpu" else 1e-2

    def make() -> Scp | Temi:
        if objective == "scp":
            return scp_head(pairs, training)
        return Temi(torch.from_numpy(vectors), K, TemiOptions(heads=3), seed=0)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train(pairs, make(), training)
    file = tmp_path / "seed.pt"
    with pytest.raises(KeyboardInterrupt):
        train(pairs, make(), training, checkpoint=file, progress=stop)
    resumed: list[int] = []
    elsewhere = replace(training, device=then)
    again = train(
        pairs, make(), elsewhere, checkpoint=file, progress=lambda done, _: resumed.append(done)
    )
    assert resumed == [4, 5, 6]
    np.testing.assert_allclose(again.curve, whole.curve, rtol=near)
    np.testing.assert_allclose(
        again.network.probabilities(vectors), whole.network.probabilities(vectors), atol=near
    )


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """Another option or other vectors: the file is named, and stays as it is."""
    vectors, _ = round_groups()
    pairs = neighbour_pairs(vectors)
    file = tmp_path / "seed.pt"
    training = Training(K, batch=128, epochs=2)
    train(pairs, scp_head(pairs, training), training, checkpoint=file)
    before = file.read_bytes()
    other = Training(K, batch=128, epochs=3)
    with pytest.raises(InvalidArgument, match=r"seed\.pt: expected one of this training"):
        train(pairs, scp_head(pairs, other), other, checkpoint=file)
    assert file.read_bytes() == before


class Recorder:
    """An objective that notes how it is called; its one weight has the gradient 1."""

    terms = ("total", "row")

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.views: list[torch.Tensor] = []
        self.calls: list[str] = []

    def loss(self, views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self.module.training
        self.views.append(views)
        self.calls.append("loss")
        return self.module.weight.sum(), views[0, 0]

    def stepped(self) -> None:
        self.calls.append("stepped")

    def network(self) -> Network:
        assert not self.module.training
        return Network(())


def numbered(n: int) -> Pairs:
    """Pictures whose vectors are their own numbers, with three neighbours each."""
    neighbours = (np.arange(n)[:, None] + [1, 2, 3]) % n
    return Pairs(np.arange(n, dtype=np.float32)[:, None], n, neighbours.astype(np.int32))


def test_each_epoch_has_its_own_pairs_in_batches() -> None:
    """The first of each pair, then the second, in the epoch's order; the rest fills no batch."""
    pairs, recorder = numbered(10), Recorder()
    done = train(pairs, recorder, Training(2, batch=4, epochs=3, seed=7))
    assert recorder.calls == ["loss", "stepped"] * 6
    for epoch in range(3):
        drawn = pairs.epoch(7, epoch)
        for step in range(2):
            rows = slice(4 * step, 4 * step + 4)
            expected = np.concatenate([drawn.first[rows], drawn.second[rows]])
            np.testing.assert_array_equal(recorder.views[2 * epoch + step][:, 0], expected)
    assert len(done.curve) == 3
    means = [(recorder.views[2 * e][0, 0] + recorder.views[2 * e + 1][0, 0]) / 2 for e in range(3)]
    assert [row[1] for row in done.curve] == pytest.approx([mean.item() for mean in means])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_each_step_has_its_own_rate(schedule: RatePlan) -> None:
    """Adam moves a weight with a steady gradient by the rate: in all by the sum of the rates."""
    recorder = Recorder()
    before = recorder.module.weight.item()
    training = Training(2, batch=4, epochs=5, learning_rate=0.01, schedule=schedule)
    train(numbered(8), recorder, training)
    rates = [scheduled_rate(training, step, 10) for step in range(10)]
    assert before - recorder.module.weight.item() == pytest.approx(sum(rates), rel=1e-4)


@pytest.mark.parametrize(
    ("least_steps", "batch", "epochs"), [(1, 4, 2), (5, 4, 3), (6, 4, 3), (7, 4, 4), (3, 99, 3)]
)
def test_few_pictures_are_passed_over_until_the_least_steps(
    least_steps: int, batch: int, epochs: int
) -> None:
    """Whole epochs, as many as take them; a batch has no more pairs than there are pictures."""
    told: list[tuple[int, int]] = []
    recorder = Recorder()
    training = Training(2, batch=batch, epochs=2, least_steps=least_steps)
    train(numbered(8), recorder, training, progress=lambda *done: told.append(done))
    assert told == [(done + 1, epochs) for done in range(epochs)]
    assert len(recorder.views[0]) == 2 * min(batch, 8)


def test_a_fingerprint_is_of_data_and_training_but_not_of_the_device() -> None:
    """Whatever decides what comes of a training changes it."""
    training, pairs = Training(2), numbered(8)
    mark = fingerprint(pairs, training)
    assert fingerprint(pairs, replace(training, device="cuda")) == mark
    others = [
        {"clusters": 3},
        {"objective": "temi"},
        {"epochs": 3},
        {"least_steps": 3},
        {"batch": 3},
        {"learning_rate": 3.0},
        {"schedule": "constant"},
        {"seed": 3},
        {"settings": {"alpha": 3}},
        {"amp": True},
    ]
    marks = {fingerprint(pairs, replace(training, **each)) for each in others}  # type: ignore[arg-type]
    assert len({mark, fingerprint(numbered(9), training), *marks}) == 12
    assert len(others) == len(fields(Training)) - 1


def test_checkpoints_are_not_written_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an epoch that ends at once; always at the end, and then nothing is left to do."""
    monkeypatch.setattr(loop, "_CHECKPOINT_EVERY_S", math.inf)
    file = tmp_path / "seed.pt"
    there: list[bool] = []
    for _ in range(2):
        train(
            numbered(8),
            Recorder(),
            Training(2, batch=4, epochs=3),
            checkpoint=file,
            progress=lambda *_: there.append(file.exists()),
        )
    assert there == [False, False, True]
    assert list(tmp_path.iterdir()) == [file]
