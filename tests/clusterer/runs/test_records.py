from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from clusterer.fits import FitPlan, MethodOptions
from clusterer.fits.head import HeadFitOptions
from clusterer.fits.kmeans import KMeansOptions
from clusterer.runs import records
from clusterer.runs.plan import Plan, Quality
from clusterer.runs.task import Outcome, RunProgress, Stage, Task
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Gates, Lineage, LineageKind

PLAN = Plan(
    points=10,
    clusters=3,
    moved=4,
    moved_share=0.5,
    to_write=6,
    noise=2,
    agreement=0.25,
    quality=Quality(inertia=1.5, silhouette=0.75, confidence=0.5, centroid_drift=0.125),
    largest_share=0.5,
    lineage=(
        Lineage(7, "continued", 5, (7, 3), 0.5),
        Lineage(8, "born", 3),
        Lineage(9, "split", 2, (3,)),
        Lineage(10, "merged", 2, (1, 2)),
        Lineage(3, "retired", 4, (7,)),
    ),
)


def task(options: MethodOptions) -> Task:
    return Task(
        run="r",
        collection="toys",
        clustering="default",
        vector="toy",
        fit_plan=FitPlan(options, 1),
        sample_size=99,
        seed=0,
        warm_start=True,
        plan_only=False,
        force=False,
        gates=Gates(),
        noise_only=True,
    )


def test_new_run_holds_the_request_with_its_defaults_filled_in() -> None:
    """The config is as requested, but for the size, the vector and the head, which are decided."""
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=7), seed=5)
    run = records.new_run(task(KMeansOptions(7)), config)
    filled = pb.ClusteringConfig(kmeans=pb.KMeans(k=7), seed=5, sample_size=99, vector="toy")
    assert run == pb.Run(
        id="r", collection="toys", clustering="default", config=filled, noise_only=True
    )
    assert config == pb.ClusteringConfig(kmeans=pb.KMeans(k=7), seed=5)


def test_new_run_of_a_head_names_the_one_that_was_found() -> None:
    """The request's name may mean another head tomorrow."""
    config = pb.ClusteringConfig(scp=pb.ScpHead(head="toys", retrain=True))
    run = records.new_run(task(HeadFitOptions("toys-1234", retrain=True)), config)
    assert run.config.scp == pb.ScpHead(head="toys-1234", retrain=True)
    assert config.scp.head == "toys"


def test_begun_and_copied_runs_leave_the_callers_message() -> None:
    """What becomes of a run does not show in the message that it was asked for with."""
    message = pb.Run(id="r")
    begun = records.begun(message, 12.5)
    assert (begun.id, begun.state) == ("r", pb.RUN_STATE_RUNNING)
    assert begun.created_at.ToNanoseconds() == 12_500_000_000
    copy = records.copied(begun)
    assert copy == begun
    copy.state = pb.RUN_STATE_FAILED
    assert begun.state == pb.RUN_STATE_RUNNING
    assert message == pb.Run(id="r")


def test_progress_is_copied_whole() -> None:
    """Stage, units, times, points and the base run; a second copy replaces the first."""
    progress = RunProgress(
        stage="assign",
        done=3,
        total=9,
        stage_s={"sample": 0.25, "fit": 2.0},
        points_written=4,
        base_run="before",
    )
    run = pb.Run()
    for _ in range(2):
        records.set_progress(run, progress)
        assert (run.stage, run.stage_done, run.stage_total) == (pb.RUN_STAGE_ASSIGN, 3, 9)
        assert [(t.stage, t.duration.ToNanoseconds() / 1e9) for t in run.stage_times] == [
            (pb.RUN_STAGE_SAMPLE, 0.25),
            (pb.RUN_STAGE_FIT, 2.0),
        ]
    assert (run.points_written, run.base_run) == (4, "before")
    assert not run.HasField("plan")
    records.set_progress(run, RunProgress())
    assert run.stage == pb.RUN_STAGE_UNSPECIFIED


@pytest.mark.parametrize("stage", get_args(Stage))
def test_every_stage_has_its_word_of_the_contract(stage: Stage) -> None:
    """A stage and its value on the wire have one name."""
    run = pb.Run()
    records.set_progress(run, RunProgress(stage=stage))
    assert pb.RunStage.Name(run.stage) == f"RUN_STAGE_{stage.upper()}"


def test_every_outcome_has_its_word_of_the_contract() -> None:
    """An outcome and its state on the wire have one name."""
    for outcome in Outcome:
        assert pb.RunState.Name(records.OUTCOME[outcome]) == f"RUN_STATE_{outcome.upper()}"


def test_plan_is_copied_whole() -> None:
    """Numbers, qualities, objections and the lineage in its order."""
    run = pb.Run()
    records.set_progress(run, RunProgress(plan=PLAN, objections=("too much",)))
    told = run.plan
    for name in ("points", "clusters", "moved", "moved_share", "to_write", "noise", "agreement"):
        assert getattr(told, name) == getattr(PLAN, name), name
    for name in ("inertia", "silhouette", "confidence", "centroid_drift"):
        assert getattr(told, name) == getattr(PLAN.quality, name), name
    assert list(told.objections) == ["too much"]
    assert [
        Lineage(
            line.cluster,
            pb.LineageKind.Name(line.kind).removeprefix("LINEAGE_KIND_").lower(),  # type: ignore[arg-type]
            line.size,
            tuple(line.related),
            line.overlap,
        )
        for line in told.lineage
    ] == list(PLAN.lineage)
    assert {line.kind for line in PLAN.lineage} == set(get_args(LineageKind)) - {"unspecified"}


def test_facts_of_a_fit_come_with_the_plan() -> None:
    """Duplicates, layers, the head, the votes and the elbow; a fact of its own stays out."""
    count = {
        "k": 5,
        "votes": [{"estimator": "eigengap", "k": 4}, {"estimator": "hdbscan", "k": 6}],
        "disagree": True,
        "elbow": [[2, 9.5], [4, 3.25]],
    }
    facts = {"duplicates": 3, "layers": [9, 4], "head": "h", "count": count, "inertia": 1.0}
    run = pb.Run()
    records.set_progress(run, RunProgress(plan=PLAN, facts=facts))
    told = run.plan
    assert (told.duplicates, list(told.layers), told.head) == (3, [9, 4], "h")
    assert [(vote.estimator, vote.k) for vote in told.votes] == [("eigengap", 4), ("hdbscan", 6)]
    assert told.votes_disagree
    assert [(point.k, point.inertia) for point in told.elbow] == [(2, 9.5), (4, 3.25)]
    records.set_progress(run, RunProgress(plan=PLAN))
    assert (run.plan.duplicates, list(run.plan.layers), run.plan.head) == (0, [], "")
    assert not run.plan.votes_disagree


def test_unknown_qualities_are_absent() -> None:
    """A first run agrees with none and drifts from none; one cluster has no silhouette."""
    quality = Quality(1.0, None, 0.5, None)
    plan = Plan(1, 1, 0, 0.0, 1, 0, None, quality, 1.0, ())
    run = pb.Run()
    records.set_progress(run, RunProgress(plan=plan))
    for name in ("silhouette", "agreement", "centroid_drift"):
        assert not run.plan.HasField(name)


def test_record_is_the_message_and_back() -> None:
    """With what it is found and sorted by; fields of a later version are left out."""
    run = records.begun(pb.Run(id="r", clustering="default", points_written=2**40), 12.5)
    payload = records.to_record(run)
    assert (payload["clustering"], payload["created_at"]) == ("default", 12.5)
    assert records.from_record(payload) == run
    record = payload["record"]
    assert isinstance(record, dict)
    later = {**payload, "record": {**record, "color": "red"}}
    assert records.from_record(later) == run
    assert np.isclose(records.timestamp(0.1).ToNanoseconds(), 1e8)
