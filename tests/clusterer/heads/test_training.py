"""From pairs to a head: seeds, their choice, and what the head says of itself."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hard_classes import accuracy
from round_groups import K, neighbour_pairs, round_groups

from clusterer.heads.ensemble import Quality
from clusterer.heads.graph import to_onnx
from clusterer.heads.loop import Training
from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.objectives import OBJECTIVES, ObjectiveName
from clusterer.heads.options import HeadOptions
from clusterer.heads.training import (
    HeadReport,
    SeedReport,
    TrainedHead,
    check_device,
    first_training,
    train_head,
    training_key,
)
from shoal.errors import ConfigError, FitFailed, InvalidArgument, NotEnoughPoints
from shoal.values import VectorInfo
from shoal.vectors import Vectors

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"schedule": "step"}, "schedule: expected one of cosine, constant, got 'step'"),
        ({"objective": "dec"}, "objective: expected one of scp, temi, got 'dec'"),
        ({"neighbours": -1}, "neighbours: expected at least 0"),
        ({"alpha": -0.1}, "alpha: expected at least 0"),
        ({"alpha": math.nan}, "alpha: expected"),
        ({"learning_rate": -0.1}, "learning_rate: expected at least 0"),
        ({"learning_rate": math.inf}, "learning_rate: expected a finite number, got inf"),
        ({"epochs": -1}, "epochs: expected at least 0"),
        ({"batch": 1}, "batch: expected at least 2, got 1"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"seed": 2**64}, "seed: expected 0 to"),
        ({"seeds": 0}, "seeds: expected at least 1"),
        ({"keep": 0}, "keep: expected at least 1"),
    ],
)
def test_options_out_of_range_are_named(wrong: dict[str, Any], words: str) -> None:
    """Before anything is read; the border itself is allowed."""
    with pytest.raises(ConfigError, match=words):
        HeadOptions(**wrong)


def test_options_on_their_borders_are_allowed() -> None:
    """The least of each."""
    HeadOptions(neighbours=0, alpha=0, learning_rate=0, epochs=0, batch=2, seed=0, seeds=1, keep=1)
    HeadOptions(seed=2**64 - 1)


@pytest.mark.parametrize("objective", ["scp", "temi"])
def test_half_precision_changes_no_cluster(objective: ObjectiveName) -> None:
    """--amp: the same head but for what bfloat16 rounds."""
    vectors, _ = round_groups()
    votes = [head_by(vectors, objective, amp=amp) for amp in (False, True)]
    np.testing.assert_array_equal(votes[0].argmax(axis=1), votes[1].argmax(axis=1))
    np.testing.assert_allclose(votes[1], votes[0], atol=0.05)
    assert (votes[1] != votes[0]).any()


@needs_gpu
@pytest.mark.parametrize("objective", ["scp", "temi"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_gpu_gives_the_head_that_a_cpu_gives(objective: ObjectiveName, *, amp: bool) -> None:
    """One seed: the same clusters, and nearly the same votes, in half precision too."""
    vectors, _ = round_groups()
    votes = [head_by(vectors, objective, device="cpu")]
    votes.append(head_by(vectors, objective, device="cuda", amp=amp))
    np.testing.assert_array_equal(votes[0].argmax(axis=1), votes[1].argmax(axis=1))
    np.testing.assert_allclose(votes[1], votes[0], atol=0.05)


def head_by(vectors: Vectors, objective: ObjectiveName, **how: Any) -> np.ndarray:
    """The votes for ``vectors`` of a head trained on their neighbours."""
    options = HeadOptions(objective, epochs=8, seeds=1, keep=1, **{"device": "cpu", **how})
    return train_head(neighbour_pairs(vectors), K, options).network.probabilities(vectors)


@pytest.mark.parametrize(("objective", "rate", "steps"), [("scp", 1e-3, 300), ("temi", 1e-2, 1500)])
def test_a_training_has_the_objectives_defaults_unless_told(
    objective: ObjectiveName, rate: float, steps: int
) -> None:
    """Rate, epochs and least steps; given epochs are exactly what is trained."""
    found = first_training(K, HeadOptions(objective=objective), "cpu")
    assert (found.learning_rate, found.epochs, found.least_steps) == (rate, 30, steps)
    assert found.settings == OBJECTIVES[objective].settings(K, None)
    told = HeadOptions(
        objective=objective,
        learning_rate=0.5,
        epochs=7,
        batch=9,
        schedule="constant",
        seed=5,
        amp=True,
        alpha=3,
    )
    assert first_training(9, told, "cuda:1") == Training(
        9,
        objective=objective,
        epochs=7,
        least_steps=1,
        batch=9,
        learning_rate=0.5,
        schedule="constant",
        seed=5,
        settings=OBJECTIVES[objective].settings(9, 3),
        device="cuda:1",
        amp=True,
    )


def test_a_training_has_a_name_of_what_decides_it() -> None:
    """Other pairs, clusters or options have another; the device does not matter."""
    vectors, _ = round_groups(40)
    pairs, options = neighbour_pairs(vectors), HeadOptions()
    key = training_key(pairs, K, options)
    assert training_key(pairs, K, replace(options, device="cuda")) == key
    others = {
        training_key(neighbour_pairs(vectors, 4), K, options),
        training_key(pairs, K + 1, options),
        *(
            training_key(pairs, K, replace(options, **each))  # type: ignore[arg-type]
            for each in (
                {"objective": "temi"},
                {"neighbours": 3},
                {"alpha": 3.0},
                {"learning_rate": 3.0},
                {"schedule": "constant"},
                {"epochs": 3},
                {"batch": 3},
                {"seed": 3},
                {"seeds": 3},
                {"keep": 4},
                {"amp": True},
                {"merge": True},
            )
        ),
    }
    assert len({key, *others}) == 1 + 2 + len(fields(HeadOptions)) - 1


def test_a_trained_head_knows_its_manifest() -> None:
    """All that was chosen and measured, as it has always been written."""
    layer = Layer(np.ones((3, 6), np.float32), np.zeros(6, np.float32))
    network = Network(
        (Branch(np.zeros(3, np.float32), unit=True, layers=(layer,)),),
        np.array([0, 1, 1, 0, 2, 2], np.int32),
    )
    reports = tuple(
        SeedReport(seed, {"total": 0.5}, Quality(seed / 16, 0.25, 4), ((1.0,), (0.5,)))
        for seed in (7, 8)
    )
    report = HeadReport(
        reports, (8,), Quality(0.9, 0.8, 3), ("total",), pairs="both", pictures=40, views=3
    )
    head = TrainedHead(network, HeadOptions(objective="temi", seed=7, seeds=2), report)
    manifest = head.manifest("toys", VectorInfo("toy", 3, "f" * 64))
    assert manifest.graph_sha256 == hashlib.sha256(to_onnx(network)).hexdigest()
    assert head.graph == to_onnx(network)
    told = manifest.model_dump(exclude={"graph_sha256", "created_at"})
    assert list(told["options"]) == ["clusters", *(each.name for each in fields(HeadOptions))]
    assert told == {
        "format": 1,
        "name": "toys",
        "clusters": 3,
        "vector": {"name": "toy", "dim": 3, "fingerprint": "f" * 64},
        "objective": "temi",
        "pairs": "both",
        "parent": "",
        "options": {"clusters": 6, **asdict(head.options)},
        "metrics": {"agreement": 0.9, "cohesion": 0.8, "used": 3, "pictures": 40, "views": 3},
        "terms": ["total"],
        "curves": {"7": [[1.0], [0.5]], "8": [[1.0], [0.5]]},
        "seeds": [
            {"seed": 7, "agreement": 0.4375, "cohesion": 0.25, "used": 4, "kept": False},
            {"seed": 8, "agreement": 0.5, "cohesion": 0.25, "used": 4, "kept": True},
        ],
    }
    with pytest.raises(InvalidArgument, match="head name"):
        head.manifest("../toys", VectorInfo("toy", 3, "f" * 64))


def test_a_device_must_be_there() -> None:
    """Auto is the best that there is; what is not there is named with what is."""
    assert check_device("cpu") == "cpu"
    assert check_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match=r"device: expected auto or .*\(cpu.*\), got 'tpu'"):
        check_device("tpu")


def test_seeds_follow_each_other_and_keep_their_checkpoints(tmp_path: Path) -> None:
    """The first seed and the next ones, a file for each; progress counts heads and epochs."""
    vectors, _ = round_groups(60)
    options = HeadOptions(epochs=2, batch=30, seed=5, seeds=2, keep=2, device="cpu")
    told: list[tuple[int, int, int]] = []
    made = train_head(
        neighbour_pairs(vectors),
        K,
        options,
        checkpoints=tmp_path,
        progress=lambda *done: told.append(done),
    )
    assert told == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["seed-5.pt", "seed-6.pt"]
    assert [each.seed for each in made.report.seeds] == [5, 6]
    assert sorted(made.report.kept) == [5, 6]
    assert len(made.network.branches) == 2
    assert (made.report.pictures, made.report.views, made.report.pairs) == (60, 1, "neighbours")
    first, last = made.report.seeds[0].curve[0][0], made.report.seeds[0].losses["total"]
    assert made.report.seeds[0].curve[-1][0] == last != first


def test_a_head_is_made_of_the_best_seeds() -> None:
    """Seeds are judged without labels; the report says which were kept."""
    vectors, classes = round_groups()
    options = HeadOptions(epochs=2, batch=128, seeds=2, keep=1, neighbours=5, device="cpu")
    made = train_head(neighbour_pairs(vectors), K, options)
    network, report = made.network, made.report
    assert len(network.branches) == 1
    assert [each.seed for each in report.seeds] == [0, 1]
    ranks = [each.quality.rank() for each in report.seeds]
    assert report.kept == (int(ranks[1] > ranks[0]),)
    with pytest.raises(FitFailed, match="seed 0: the training diverged"):
        train_head(neighbour_pairs(vectors), K, replace(options, learning_rate=1e30))
    assert accuracy(classes, network.probabilities(vectors).argmax(axis=1)) >= 0.98
    with pytest.raises(NotEnoughPoints, match="expected at least 11 pictures, got 10"):
        train_head(neighbour_pairs(vectors[:10]), K, options)
    with pytest.raises(InvalidArgument, match="clusters: expected at least 2, got 1"):
        train_head(neighbour_pairs(vectors), 1, options)
