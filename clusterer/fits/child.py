"""Starts a fit in a child process and waits for it.

A fit holds the processor for minutes, and a fork of a process with an open embedded store hangs.
So the fit gets a fresh interpreter and its input as files, and serving never stalls.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from clusterer.fits import Fit, FitPlan, plan_to_json
from clusterer.fits.models import unpack
from shoal.errors import FitFailed, NotEnoughPoints
from shoal.vectors import Vectors


class Fitter(Protocol):
    """The function that gives a run its fit; services use :func:`fit_in_child`."""

    def __call__(
        self,
        plan: FitPlan,
        sample: Vectors,
        *,
        warm: Vectors | None,
        scratch: Path | None,
        check: Callable[[], None],
    ) -> Fit:
        """Runs ``plan`` on ``sample`` (N, D)."""


_LOG = logging.getLogger(__name__)

_POLL_S = 0.1
_STDERR_TAIL = 2_000


def fit_in_child(
    plan: FitPlan,
    sample: Vectors,
    *,
    warm: Vectors | None,
    scratch: Path | None,
    check: Callable[[], None],
) -> Fit:
    """Runs ``plan`` on ``sample`` (N, D) in a child process.

    Args:
        plan: the method and its options.
        sample: float32 (N, D), unit length.
        warm: centroids (K, D) of the active run, or None.
        scratch: directory for the files that parent and child share.
        check: called about ten times a second; its exceptions kill the child and pass on.

    Raises:
        FitFailed: the child died, or could not be started.
        NotEnoughPoints: fewer points than the method needs.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-fit-", dir=scratch) as name:
        directory = Path(name)
        (directory / "request.json").write_text(json.dumps(plan_to_json(plan)))
        np.save(directory / "sample.npy", sample)
        if warm is not None:
            np.save(directory / "warm.npy", warm)
        _supervise(directory, check)
        return _result(directory, plan.method)


def _result(directory: Path, method: str) -> Fit:
    """The fit that the child left in ``directory``; a warning says if it did not converge."""
    facts = json.loads((directory / "result.json").read_text())
    if not facts.get("converged", True):
        _LOG.warning("the fit ended before it converged", extra={"method": method})
    labels = directory / "labels.npy"
    return Fit(
        unpack((directory / "model.npz").read_bytes())[0],
        np.load(labels) if labels.exists() else None,
        facts,
    )


def _supervise(directory: Path, check: Callable[[], None]) -> None:
    log = directory / "stderr.txt"
    # OpenMP's threads (PyTorch's, scikit-learn's) wait for each other by spinning unless told not
    # to. Beside one busy process the training of a head took 85 seconds so, and 18 without.
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
            # -P imports nothing from the working directory; a new session gets no Ctrl-C of ours.
            [sys.executable, "-P", "-m", "clusterer.fits.child_main", str(directory)],
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            stdin=subprocess.PIPE,
            start_new_session=True,
            stdout=errors,
            stderr=errors,
        ) as child,
    ):
        try:
            while child.poll() is None:
                check()
                try:
                    child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise _failure(directory, child.returncode, log)


def _failure(directory: Path, status: int, log: Path) -> FitFailed | NotEnoughPoints:
    error = directory / "error.json"
    if error.exists():
        told = json.loads(error.read_text())
        kind = NotEnoughPoints if told["reason"] == NotEnoughPoints.reason else FitFailed
        return kind(told["message"])
    tail = log.read_text(errors="replace")[-_STDERR_TAIL:].strip()
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return FitFailed(f"the fit's process ended with {how}: {tail or 'it printed nothing'}")
