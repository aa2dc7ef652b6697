from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from reclustering import blobs
from threadpoolctl import threadpool_info

from clusterer.fits import Fit, FitPlan, child, child_main, plan_to_json, run_fit
from clusterer.fits.child import fit_in_child
from clusterer.fits.hdbscan import HdbscanOptions
from clusterer.fits.kmeans import KMeansOptions
from clusterer.fits.models import Centroids, pack
from shoal.errors import Cancelled, FitFailed, NotEnoughPoints

OPTIONS = KMeansOptions(5, n_init=1, max_iterations=10, seed=3)


def nothing() -> None:
    """A check that never objects."""


def test_child_fit_equals_the_fit_in_this_process(tmp_path: Path) -> None:
    """From the same warm start it gives the same centroids, and leaves no files behind."""
    vectors = blobs(200)
    plan = FitPlan(OPTIONS, least_points=5)
    warm = run_fit(plan, vectors, None).model.centroids
    fit = fit_in_child(plan, vectors, warm=warm, scratch=tmp_path, check=nothing)
    here = run_fit(plan, vectors, warm)
    assert here.facts["warm"] == 1
    np.testing.assert_allclose(fit.model.centroids, here.model.centroids)
    assert fit.labels is here.labels is None
    assert fit.facts == here.facts
    assert list(tmp_path.iterdir()) == []


def test_child_gives_back_the_labels_of_a_density_method(tmp_path: Path) -> None:
    """They are the method's own, and not what the model says."""
    vectors = blobs(200, spread=0.3)
    dense = FitPlan(HdbscanOptions(min_cluster_size=20), least_points=20)
    fit = fit_in_child(dense, vectors, warm=None, scratch=tmp_path, check=nothing)
    assert fit.labels is not None
    np.testing.assert_array_equal(fit.labels, run_fit(dense, vectors, None).labels)


def test_a_fit_that_did_not_converge_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning; no word of a fit that did, or that cannot say."""
    (tmp_path / "model.npz").write_bytes(pack(Centroids(blobs(2)), np.arange(2, dtype=np.int32)))
    for facts in ({}, {"converged": True}):
        (tmp_path / "result.json").write_text(json.dumps(facts))
        assert child._result(tmp_path, "kmeans").facts == facts
    assert not caplog.records
    (tmp_path / "result.json").write_text('{"converged": false}')
    child._result(tmp_path, "kmeans")
    assert caplog.messages == ["the fit ended before it converged"]


@pytest.mark.parametrize(
    ("reason", "kind"), [("NOT_ENOUGH_POINTS", NotEnoughPoints), ("FIT_FAILED", FitFailed)]
)
def test_a_childs_error_is_of_the_kind_that_it_names(
    tmp_path: Path, reason: str, kind: type[Exception]
) -> None:
    """The reason decides, and the words are the child's."""
    (tmp_path / "error.json").write_text(json.dumps({"reason": reason, "message": "no more"}))
    found = child._failure(tmp_path, 1, tmp_path / "log")
    assert type(found) is kind
    assert found.message == "no more"


def test_a_child_that_says_nothing_is_told_by_its_end(tmp_path: Path) -> None:
    """By its signal or its status, and the end of what it printed."""
    log = tmp_path / "log"
    log.write_text("")
    killed = child._failure(tmp_path, -9, log).message
    assert killed == "the fit's process ended with signal 9: it printed nothing"
    log.write_text("begin" + 3000 * "x" + "end")
    ended = child._failure(tmp_path, 7, log).message
    assert ended.startswith("the fit's process ended with status 7: x")
    assert ended.endswith("end")
    assert len(ended) < 2100


def test_child_fits_with_one_thread_per_matrix_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLAS threads wait for each other by spinning: beside a busy process a fit would crawl."""
    np.save(tmp_path / "sample.npy", blobs(20))
    (tmp_path / "request.json").write_text(json.dumps(plan_to_json(FitPlan(OPTIONS, 1))))
    pools: list[int] = []

    def look(*_: object) -> Fit:
        pools.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return Fit(Centroids(blobs(2)))

    monkeypatch.setattr(child_main, "run_fit", look)
    monkeypatch.setattr(child_main.os, "nice", lambda _: 0)
    monkeypatch.setattr(child_main, "_die_with_parent", lambda: None)
    assert child_main.main(tmp_path) == 0
    assert pools
    assert set(pools) == {1}


def test_child_domain_error_comes_back_as_itself(tmp_path: Path) -> None:
    """What the method objects to reaches the caller with its own type and words."""
    plan = FitPlan(OPTIONS, least_points=5)
    with pytest.raises(NotEnoughPoints, match="k = 5"):
        fit_in_child(plan, blobs(2), warm=None, scratch=tmp_path, check=nothing)


def test_child_that_dies_is_a_fit_failed_with_its_last_words(tmp_path: Path) -> None:
    """A crash of the child is an error that carries what it printed."""

    @dataclass(frozen=True)
    class Unknown:
        method: ClassVar[str] = "no-such-method"
        seed: int = 0

    plan = FitPlan(Unknown(), least_points=1)
    with pytest.raises(FitFailed, match="no-such-method"):
        fit_in_child(plan, blobs(2), warm=None, scratch=tmp_path, check=nothing)


def child_of_this_fit(scratch: Path) -> int | None:
    """The process that runs a fit in ``scratch``: other tests' servers may be children too."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"clusterer.fits.child_main" in command and bytes(scratch) in command:
            return int(pid)
    return None


def test_child_is_out_of_the_way_and_killed_when_the_check_objects(tmp_path: Path) -> None:
    """It yields to serving, waits without spinning, imports nothing from where it runs.

    No Ctrl-C of the parent reaches it; cancelling kills it at once and cleans up.
    """
    running = []

    def object_once_it_is_nice() -> None:
        pid = child_of_this_fit(tmp_path)
        if pid is None:  # it is still a copy of this process
            return
        if os.getpriority(os.PRIO_PROCESS, pid) >= os.nice(0) + 10:
            running.append(pid)
            raise Cancelled("enough")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_WAIT_POLICY=passive" in environment
        assert b"-P" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert os.getsid(pid) == pid
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
        assert ticks < 60 * os.sysconf("SC_CLK_TCK"), "it has begun, and is not nice"

    plan = FitPlan(replace(OPTIONS, n_init=10_000), least_points=5)
    with pytest.raises(Cancelled):
        fit_in_child(plan, blobs(5000), warm=None, scratch=tmp_path, check=object_once_it_is_nice)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.getpriority(os.PRIO_PROCESS, running[0])


def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed takes its fit along: the child's standard input closes."""
    np.save(tmp_path / "sample.npy", blobs(20_000, spread=2.0))
    (tmp_path / "request.json").write_text(
        '{"method": "kmeans", "options": {"k": 200, "n_init": 1000, '
        '"max_iterations": 1000, "seed": 0}, "least_points": 200}'
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "clusterer.fits.child_main", str(tmp_path)], stdin=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.close()  # what the kernel does when the parent is killed
    assert child.wait(timeout=60) == 3
