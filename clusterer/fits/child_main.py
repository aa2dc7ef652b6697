"""The child process of a fit: ``python -m clusterer.fits.child_main DIRECTORY``.

The directory is the whole interface. The input is ``request.json`` (method, options),
``sample.npy`` and perhaps ``warm.npy``. The output is ``model.npz``, perhaps ``labels.npy``, and
``result.json``; or ``error.json``. The child lives no longer than its parent: it watches its
standard input, which closes when the parent dies, however it dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from clusterer.fits import plan_from_json, run_fit
from clusterer.fits.models import pack
from shoal.errors import ShoalError

_NICENESS = 10
"""The child's niceness: serving comes first, and the fit takes the remaining processor time."""


def main(directory: Path) -> int:
    """Runs the fit that ``directory`` describes; the exit status is 0, or 1 with error.json."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    request = json.loads((directory / "request.json").read_text())
    sample = np.load(directory / "sample.npy")
    warm_file = directory / "warm.npy"
    warm = np.load(warm_file) if warm_file.exists() else None
    try:
        # One thread for each matrix product: several would wait for each other by spinning, and
        # beside one busy process a fit of 7 seconds took 200. scikit-learn's loops stay parallel.
        with threadpool_limits(1, user_api="blas"):
            fit = run_fit(plan_from_json(request), sample, warm)
    except ShoalError as exc:
        (directory / "error.json").write_text(
            json.dumps({"reason": exc.reason, "message": exc.message})
        )
        return 1
    (directory / "model.npz").write_bytes(
        pack(fit.model, np.arange(len(fit.model.centroids), dtype=np.int32))
    )
    if fit.labels is not None:
        np.save(directory / "labels.npy", fit.labels)
    (directory / "result.json").write_text(json.dumps(dict(fit.facts)))
    return 0


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin: its lock would outlive a clean exit
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
