"""A trained head applied to a collection by runs, and to what comes in after them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_heads import made_manifest
from reclustering import DIM, Bench, blobs

from clusterer.fits import FitPlan, Surroundings, plan_fit, run_fit
from clusterer.fits.child import fit_in_child
from clusterer.fits.head import HeadFitOptions, missing_package
from clusterer.fits.models import Head, pack, unpack
from clusterer.heads.graph import to_onnx
from clusterer.heads.network import Branch, Layer, Network
from clusterer.heads.store import HeadStore
from clusterer.runs.newcomers import Newcomers
from shoal.errors import EncoderMismatch, FitFailed, InvalidArgument, NotFound, Unsupported
from shoal.values import VectorInfo
from shoal.vectors import Vectors

SPEC = VectorInfo("toy", DIM, "f" * 64)
CENTRES = blobs(5, spread=0)
in_memory = pytest.mark.parametrize("store", ["memory"], indirect=True)
"""What a head does is the same on every store."""


def network(centres: Vectors = CENTRES) -> Network:
    """Six clusters: one around each of five directions, and one that nothing is in."""
    weight = np.concatenate([20 * centres.T, np.zeros((DIM, 1))], axis=1).astype(np.float32)
    bias = np.array([0] * 5 + [-50], np.float32)
    return Network((Branch(np.zeros(DIM, np.float32), unit=False, layers=(Layer(weight, bias),)),))


def keep(place: Path, made: Network | None = None, name: str = "toys") -> str:
    """Puts a head into ``place``; returns its id."""
    graph = to_onnx(made or network())
    manifest = made_manifest(name, graph, SPEC, clusters=6, created_at=time.time())
    return HeadStore(place).put(manifest, graph)


def head_plan(place: Path, head: str = "toys", spec: VectorInfo = SPEC) -> FitPlan:
    return plan_fit(HeadFitOptions(head), Surroundings(str(place), spec))


def test_a_head_is_applied_without_torch(tmp_path: Path) -> None:
    """ONNX Runtime is all that it takes, though torch is installed here."""
    np.save(tmp_path / "vectors.npy", blobs(20))
    keep(tmp_path / "heads")
    program = f"""
import sys
import numpy as np
from clusterer.fits import Surroundings, plan_fit, run_fit
from clusterer.fits.head import HeadFitOptions
from shoal.values import VectorInfo

spec = VectorInfo("toy", {DIM}, "f" * 64)
plan = plan_fit(HeadFitOptions("toys"), Surroundings(sys.argv[1] + "/heads", spec))
vectors = np.load(sys.argv[1] + "/vectors.npy")
labels = run_fit(plan, vectors, None).model.assign(vectors)[0]
assert "onnxruntime" in sys.modules
print(len(set(labels.tolist())), "torch" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert said.stdout.split() == ["5", "False"], said.stderr


@in_memory
def test_a_run_gives_every_point_the_heads_cluster(bench: Bench, tmp_path: Path) -> None:
    """Labels are the head's; a cluster that it never gives is none; the next run moves nothing."""
    keep(tmp_path)
    bench.fit = fit_in_child
    vectors = blobs(200)
    ids = bench.put(vectors)
    run = bench.recluster(0, fit=head_plan(tmp_path))
    assert run.progress.plan is not None
    assert run.progress.plan.clusters == 5
    expected = network().probabilities(vectors).argmax(axis=1)
    labels = bench.labels()
    pairs = {(int(want), labels[point]) for want, point in zip(expected, ids, strict=True)}
    assert len(pairs) == len(np.unique(expected)) == 5
    again = bench.recluster(0, fit=head_plan(tmp_path))
    assert again.progress.plan is not None
    assert again.progress.plan.moved == 0
    assert bench.labels() == labels


@in_memory
def test_newcomers_get_the_heads_cluster_without_its_file(bench: Bench, tmp_path: Path) -> None:
    """The head lies with the run: whatever becomes of its file, what comes in is assigned."""
    name = keep(tmp_path)
    ids = bench.put(blobs(100))
    bench.recluster(0, fit=head_plan(tmp_path))
    for file in (tmp_path / name).iterdir():
        file.unlink()
    labels = bench.labels()
    late = bench.put(blobs(10, seed=1), first=100)
    newcomers = Newcomers(bench.store, "toys", "default")
    assert newcomers.assign(block_size=64, check=lambda: None) == 10
    now = bench.labels()
    assert [now[point] for point in late] == [labels[point] for point in ids[:10]]


def test_confidence_is_the_share_of_votes() -> None:
    """Softmax of the head, over the clusters that there are; and it survives being stored."""
    vectors = blobs(20)
    model = Head(CENTRES, np.frombuffer(to_onnx(network()), np.uint8), np.arange(5, dtype=np.int32))
    found = model.assign(vectors)
    votes = network().probabilities(vectors)[:, :5]
    votes /= votes.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(found.labels, votes.argmax(axis=1))
    np.testing.assert_allclose(found.confidence, votes.max(axis=1), atol=1e-5)
    stored, ids = unpack(pack(model, np.arange(5, dtype=np.int32)))
    np.testing.assert_array_equal(stored.assign(vectors).labels, found.labels)
    np.testing.assert_array_equal(ids, np.arange(5))


def test_what_cannot_be_applied_is_refused(tmp_path: Path) -> None:
    """No place, no name, no such head, another encoder: before anything is read."""
    name = keep(tmp_path)
    with pytest.raises(Unsupported, match="told of no place with heads"):
        plan_fit(HeadFitOptions("toys"))
    with pytest.raises(InvalidArgument, match="expected a head's name or hash, got none"):
        head_plan(tmp_path, "")
    with pytest.raises(NotFound, match=f"'nope'.*{name}"):
        head_plan(tmp_path, "nope")
    with pytest.raises(EncoderMismatch, match="expected vectors of encoder toy"):
        head_plan(tmp_path, "toys", replace(SPEC, fingerprint="e" * 64))


def test_the_head_that_was_planned_is_the_one_that_runs(tmp_path: Path) -> None:
    """A newer head of the same name, trained between plan and fit, is not taken."""
    first = keep(tmp_path)
    plan = head_plan(tmp_path)
    keep(tmp_path, network(np.roll(CENTRES, 1, axis=0)))
    assert plan.options.head == first
    assert run_fit(plan, blobs(50), None).facts["head"] == first


def test_a_cluster_without_a_direction_is_left_out(tmp_path: Path) -> None:
    """Its vectors cancel out: they go to their next likeliest cluster; with no other it fails."""
    weight = np.zeros((DIM, 2), np.float32)
    weight[0] = (40, 0)  # the first cluster has what points along the first axis
    layer = Layer(weight, np.array([0, 20], np.float32))
    two = Network((Branch(np.zeros(DIM, np.float32), unit=False, layers=(layer,)),))
    keep(tmp_path, two)
    axes = np.eye(DIM, dtype=np.float32)
    vectors = np.stack([axes[0], axes[1], -axes[1]])
    fit = run_fit(replace(head_plan(tmp_path), duplicate_cosine=2), vectors, None)
    assert isinstance(fit.model, Head)
    assert fit.model.columns.tolist() == [0]
    np.testing.assert_array_equal(fit.model.centroids, axes[:1])
    assert fit.model.assign(vectors).labels.tolist() == [0, 0, 0]
    with pytest.raises(FitFailed, match="cancel out"):
        run_fit(replace(head_plan(tmp_path), duplicate_cosine=2), vectors[1:], None)


def test_a_missing_package_of_training_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch first, then onnx; none where both are installed."""
    assert missing_package() == ""
    find = importlib.util.find_spec
    for lacking, named in (({"onnx"}, "onnx"), ({"torch", "onnx"}, "torch")):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, lacking=lacking: None if name in lacking else find(name),
        )
        assert missing_package() == named
