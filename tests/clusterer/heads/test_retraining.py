"""A trained head that is trained on: nothing is lost on the way, and it follows what drifts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_classes import Classes, accuracy
from made_heads import made_manifest
from reclustering import DIM, Bench, blobs
from serving import serving

from clusterer.config import ClustererConfig
from clusterer.fits import Fit, FitPlan, Surroundings, choose_vector, keep_fit, plan_fit, run_fit
from clusterer.fits.head import HeadFitOptions
from clusterer.fits.models import unpack
from clusterer.heads.ensemble import Quality, ensemble
from clusterer.heads.graph import from_onnx, to_onnx
from clusterer.heads.loop import Training, train
from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.objectives import OBJECTIVES, ObjectiveName
from clusterer.heads.options import HeadOptions
from clusterer.heads.pairs import Pairs, nearest_neighbours
from clusterer.heads.retraining import (
    further_options,
    further_training,
    is_better,
    least_points,
    retrain,
)
from clusterer.heads.scp import Scp, ScpOptions
from clusterer.heads.store import HeadStore
from clusterer.heads.temi import Temi, TemiOptions
from clusterer.runs.task import Outcome
from clusterer.service import ClustererService
from shoal.errors import (
    ArtefactError,
    ConfigError,
    Conflict,
    EncoderMismatch,
    InvalidArgument,
    NotEnoughPoints,
)
from shoal.store.model import Collection
from shoal.v1 import clusterer_pb2 as pb
from shoal.v1 import clusterer_pb2_grpc
from shoal.values import VectorInfo
from shoal.vectors import Vectors, unit

SPEC = VectorInfo("toy", DIM, "f" * 64)
K = 5
in_memory = pytest.mark.parametrize("store", ["memory"], indirect=True)
"""What a head does is the same on every store."""


def data(*, shift: float = 0.0) -> tuple[Vectors, Classes]:
    """500 vectors of five kinds; ``shift`` moves all of them in one direction."""
    vectors = blobs(500, spread=0.2) + shift * unit(np.random.default_rng(5).normal(size=DIM))
    return unit(vectors), np.arange(500) % K


def options(objective: ObjectiveName = "temi") -> HeadOptions:
    epochs = {"scp": 12, "temi": 100}[objective]
    return HeadOptions(objective=objective, epochs=epochs, batch=100, seeds=2, keep=2)


def head(objective: ObjectiveName) -> Network:
    """A head of two seeds, smaller than the defaults make it."""
    vectors, _ = data()
    pairs = Pairs(vectors, len(vectors), nearest_neighbours(vectors, 10))
    settings = {"scp": asdict(ScpOptions(width=256)), "temi": asdict(TemiOptions(heads=4))}
    rate, epochs = OBJECTIVES[objective].learning_rate, {"scp": 12, "temi": 100}[objective]
    networks = []
    for seed in range(2):
        training = Training(
            K,
            objective=objective,
            epochs=epochs,
            batch=100,
            learning_rate=rate,
            seed=seed,
            settings=settings[objective],
        )
        made = OBJECTIVES[objective].new(vectors, training)
        networks.append(train(pairs, made, training).network)
    return ensemble(networks, [each.probabilities(vectors) for each in networks])


@pytest.fixture(scope="module")
def trained() -> Network:
    return head("temi")


def on_blobs() -> Network:
    """A head for ``blobs``, as TEMI has them: one cluster around each of five directions."""
    weight = np.asarray(10 * blobs(5, spread=0).T, dtype=np.float32)
    layers = (Layer(weight, np.zeros(5, np.float32)),)
    return Network((Branch(np.zeros(DIM, np.float32), unit=True, layers=layers),))


def keep(place: Path, **options: object) -> str:
    """Puts the head for blobs into ``place``; returns its id."""
    graph = to_onnx(on_blobs())
    manifest = made_manifest("toys", graph, SPEC, options={"neighbours": 10, **options})
    return HeadStore(place).put(manifest, graph)


def plan(place: Path) -> FitPlan:
    return plan_fit(HeadFitOptions("toys", retrain=True, seed=1), Surroundings(str(place), SPEC))


def test_a_graph_gives_back_its_network(trained: Network) -> None:
    """What was written is read again, number by number, groups included; another file is not."""
    grouped = Network(trained.branches, np.array([0, 1, 0, 1, 2], np.int32))
    for network in (trained, grouped):
        again = from_onnx(to_onnx(network))
        assert to_onnx(again) == to_onnx(network)
        assert again.clusters == network.clusters
    with pytest.raises(ArtefactError, match="expected a graph that Shoal wrote"):
        from_onnx(b"not a graph")
    with pytest.raises(ArtefactError, match="without branches"):
        from_onnx(b"")


def test_a_head_that_trains_again_begins_as_it_was(trained: Network) -> None:
    """SCP's batch norm, made anew of other vectors, and TEMI's teacher give what they gave."""
    later, _ = data(shift=0.5)
    tensor = torch.from_numpy(later)
    first = torch.from_numpy(data()[0])
    made = Scp(first, K, ScpOptions(width=16), seed=1)
    made.module(first)  # moves the running statistics away from 0 and 1
    network = made.network()
    again = Scp.of(network.branches[0], tensor, alpha=5.0).network()
    np.testing.assert_allclose(again.probabilities(later), network.probabilities(later), atol=1e-4)
    temi = Temi.of(trained.branches[0], tensor, TemiOptions()).network()
    alone = Network(trained.branches[:1])
    np.testing.assert_allclose(temi.probabilities(later), alone.probabilities(later), atol=1e-4)


@pytest.mark.parametrize("objective", ["scp", "temi"])
def test_it_follows_a_shift_and_clusters_stay(objective: ObjectiveName, trained: Network) -> None:
    """All vectors move: more of them are right than before, under the clusters that they had."""
    network = trained if objective == "temi" else head("scp")
    later, classes = data(shift=1.0)
    before = network.probabilities(later).argmax(axis=1)
    found = retrain(network, later, options(objective))
    after = found.network.probabilities(later).argmax(axis=1)
    assert found.after.rank() > found.before.rank()
    assert accuracy(classes, after) > accuracy(classes, before) + 0.08
    # The same cluster for the same kind, although no id was matched.
    then = network.probabilities(data()[0]).argmax(axis=1)
    assert np.mean(after == then) > 0.95


@pytest.mark.parametrize(
    ("after", "better"),
    [
        (Quality(0.6, 0.1, 4), True),
        (Quality(0.6, 0.1, 5), True),
        (Quality(0.6, 0.9, 3), False),
        (Quality(0.5, 0.9, 4), False),
        (Quality(0.4, 0.9, 5), False),
    ],
)
def test_a_head_is_better_if_neighbours_agree_more_in_no_fewer_clusters(
    after: Quality, *, better: bool
) -> None:
    """One more cluster is no gain by itself; the same agreement is none."""
    assert is_better(after, Quality(0.5, 0.5, 4)) is better


@pytest.mark.parametrize(("objective", "rate", "steps"), [("scp", 2e-4, 100), ("temi", 2e-3, 300)])
def test_training_on_is_short_and_careful(
    objective: ObjectiveName, rate: float, steps: int
) -> None:
    """A fifth of the first rate, ten epochs, fewer steps; what is given is taken."""
    found = further_training(K, HeadOptions(objective=objective), "cpu")
    assert (found.epochs, found.least_steps) == (10, steps)
    assert found.learning_rate == pytest.approx(rate)
    told = HeadOptions(
        objective=objective, learning_rate=0.5, epochs=7, batch=9, schedule="constant", seed=5
    )
    assert further_training(9, told, "cuda:1") == Training(
        9,
        objective=objective,
        epochs=7,
        least_steps=1,
        batch=9,
        learning_rate=0.1,
        schedule="constant",
        seed=5,
        settings=OBJECTIVES[objective].settings(9, None),
        device="cuda:1",
    )


def test_a_head_is_trained_on_as_it_was_trained() -> None:
    """By its own objective and options, with the run's seed; an old manifest may lack them."""
    said = {
        "clusters": 6,
        "neighbours": 7,
        "alpha": 0.5,
        "learning_rate": 0.25,
        "schedule": "constant",
        "epochs": 99,
    }
    found = further_options(made_manifest("toys", b"", SPEC, objective="scp", options=said), 3)
    assert found == HeadOptions(
        objective="scp", neighbours=7, alpha=0.5, learning_rate=0.25, schedule="constant", seed=3
    )
    old = further_options(made_manifest("toys", b"", SPEC), 3)
    assert old == HeadOptions(objective="temi", seed=3)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 51),
        ({"neighbours": 7}, 11),
        ({"neighbours": 20}, 21),
        ({"neighbours": 7, "clusters": 30}, 31),
    ],
)
def test_training_on_needs_more_points_than_outputs_and_neighbours(
    options: dict[str, int], least: int
) -> None:
    """And than the ten that judge it; unknown neighbours count as the most that there may be."""
    assert least_points(made_manifest("toys", b"", SPEC, options=options)) == least


def test_a_head_that_gets_no_better_stays(trained: Network) -> None:
    """Training that ruins it (a rate of 50) is thrown away."""
    vectors, _ = data()
    ruined = HeadOptions(objective="temi", epochs=2, learning_rate=50.0)
    assert retrain(trained, vectors, ruined).network is trained
    with pytest.raises(NotEnoughPoints, match="at least 11 points, got 8"):
        retrain(trained, vectors[:8], options())


@in_memory
def test_a_run_trains_on_and_its_head_is_kept_once_it_is_active(
    bench: Bench, tmp_path: Path
) -> None:
    """A plan keeps nothing; a run's head is the next one's beginning, and lies with the run."""
    first = keep(tmp_path)
    drifted = unit(blobs(200) + 0.8 * unit(np.ones(DIM)))
    ids = bench.put(drifted)
    _, execute = bench.start(bench.task(0, fit=plan(tmp_path), plan_only=True))
    assert execute() == Outcome.PLANNED
    assert [each.id for each in HeadStore(tmp_path).manifests()] == [first]
    run = bench.recluster(0, fit=plan(tmp_path))
    newest, oldest = HeadStore(tmp_path).manifests()
    assert (newest.parent, oldest.id) == (first, first)
    assert run.progress.facts["head"] == newest.id
    assert json.loads(json.dumps(run.progress.facts)) == run.progress.facts  # as a child gives them
    assert newest.options["neighbours"] == 10
    assert newest.metrics["agreement"] > newest.metrics["agreement_before"] > 0
    assert newest.curves.keys() == {"1"}  # of the run's seed, for the head's one branch
    assert all(len(row) == len(newest.terms) for row in newest.curves["1"])
    labels = bench.labels()
    expected = from_onnx(HeadStore(tmp_path).graph(newest)).probabilities(drifted).argmax(axis=1)
    pairs = {(int(want), labels[point]) for want, point in zip(expected, ids, strict=True)}
    assert len(pairs) == len(set(labels.values())) == 5
    assert plan(tmp_path).options.head == newest.id
    model, _ = unpack(bench.clusterings.model("default", run.task.run))
    # One that comes of the first does not take the newer one's place.
    late = newest.model_copy(update={"name": "toys", "created_at": time.time(), "parent": first})
    with pytest.raises(Conflict, match=rf"comes of {first}, and {newest.id} is newer"):
        keep_fit(plan(tmp_path), model, {"manifest": late.model_dump()})
    for made in range(1, 12):  # of many that came about so the newest ten stay
        update = {"parent": newest.id, "created_at": newest.created_at + made}
        newest = newest.model_copy(update=update)
        keep_fit(plan(tmp_path), model, {"manifest": newest.model_dump()})
    there = HeadStore(tmp_path).manifests()
    assert (len(there), there[0].id, there[-1].id) == (11, newest.id, first)


@pytest.mark.parametrize("store", ["embedded"], indirect=True)
def test_a_schedule_trains_the_head_on_when_drift_says_so(bench: Bench, tmp_path: Path) -> None:
    """The service does all of it: applies the head, sees the drift, trains, applies the new one.

    What comes in goes by the head too, all the while.
    """
    first = keep(tmp_path)
    bench.put(blobs(200, spread=0.05))
    config = ClustererConfig(assign_interval_s=0.05, heads=str(tmp_path), block_size=64)
    request = pb.CreateRunRequest(
        collection="toys", config=pb.ClusteringConfig(scp=pb.ScpHead(head="toys"), seed=1)
    )
    with serving(lambda: [ClustererService(config, bench.store)]) as served:
        stub = clusterer_pb2_grpc.ClustererServiceStub(served.channel)
        *_, run = stub.WatchRun(
            pb.WatchRunRequest(collection="toys", run=stub.CreateRun(request).id)
        )
        assert run.state == pb.RUN_STATE_SUCCEEDED, run.error_message
        request.config.scp.retrain = True
        schedule = pb.Schedule(request=request, only_if_due=True)
        schedule.interval.FromSeconds(1)
        asked = pb.GetClusteringRequest(collection="toys")
        stub.SetSchedule(pb.SetScheduleRequest(collection="toys", schedule=schedule))
        first_time = stub.GetClustering(asked).schedule.next_at.ToNanoseconds()
        wait_until(lambda: stub.GetClustering(asked).schedule.next_at.ToNanoseconds() > first_time)
        assert stub.GetClustering(asked).schedule.last_run == ""  # there was nothing to do
        assert bench.state.pointer.active_run == run.id

        drifted = unit(blobs(600, seed=3) + 1.8 * unit(np.ones(DIM)))
        late = bench.put(drifted, first=500)
        wait_until(lambda: None not in bench.labels().values())
        of_first = from_onnx(HeadStore(tmp_path).graph(HeadStore(tmp_path).find(first)))
        votes = of_first.probabilities(drifted).argmax(axis=1)
        labels = bench.labels()
        assert len(
            {(int(vote), labels[one]) for vote, one in zip(votes, late, strict=True)}
        ) == len(np.unique(votes))
        wait_until(lambda: HeadStore(tmp_path).find("toys").parent == first)
        assert bench.state.pointer.active_run != run.id


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 200
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_head_that_gets_no_better_is_applied_as_it_is(tmp_path: Path) -> None:
    """Too high a rate ruins it: the run has the old head, and nothing to keep."""
    first = keep(tmp_path, learning_rate=250.0)
    fit = run_fit(plan(tmp_path), blobs(200), None)
    assert fit.facts["head"] == first
    keep_fit(plan(tmp_path), fit.model, fit.facts)
    assert [each.id for each in HeadStore(tmp_path).manifests()] == [first]


@in_memory
def test_a_head_that_cannot_be_kept_does_not_undo_the_run(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The place is gone after the fit: the run has succeeded, and the log says what is missing."""
    keep(tmp_path / "heads")
    bench.put(unit(blobs(200) + 0.8 * unit(np.ones(DIM))))

    def fit(planned: FitPlan, sample: Vectors, **_: object) -> Fit:
        found = run_fit(planned, sample, None)
        shutil.rmtree(tmp_path / "heads")
        (tmp_path / "heads").write_text("a file")
        return found

    run, execute = bench.start(bench.task(0, fit=plan(tmp_path / "heads")), fit=fit)
    assert execute() == Outcome.SUCCEEDED
    assert bench.state.pointer.active_run
    assert "its head was not kept" in caplog.text
    assert "manifest" in run.progress.facts


def test_a_server_without_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read, and only if it is to be trained on."""
    keep(tmp_path)
    monkeypatch.setattr("clusterer.fits.head.missing_package", lambda: "torch")
    with pytest.raises(ConfigError, match="this server has no torch"):
        plan(tmp_path)
    assert plan_fit(HeadFitOptions("toys"), Surroundings(str(tmp_path), SPEC)).least_points == 1


def test_a_head_knows_its_vector_by_the_encoder(tmp_path: Path) -> None:
    """Not by its name; what no vector fits is for the check of the head to refuse."""
    keep(tmp_path)
    options = HeadFitOptions("toys")
    other = VectorInfo("other", DIM, "e" * 64)
    renamed = VectorInfo("renamed", DIM, SPEC.fingerprint)

    def found(*specs: VectorInfo, name: str = "") -> str:
        collection = Collection("c", specs, (), 0.0)
        return choose_vector(name, options, collection, str(tmp_path)).name

    assert found(other, SPEC) == "toy"
    assert found(other, renamed) == "renamed"
    assert found(other) == "other"
    with pytest.raises(EncoderMismatch):
        plan_fit(options, Surroundings(str(tmp_path), other))
    with pytest.raises(InvalidArgument, match="no vector 'nope'"):
        found(SPEC, name="nope")
