"""The ``shoal`` command's own surroundings: the environment of the libraries that it loads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def seen_by_libraries(**environment: str) -> str:
    """OMP_WAIT_POLICY as NumPy, PyTorch and scikit-learn find it in a process of ``shoal``."""
    program = (
        "import os, sys; from shoal.app.cli.root import main; "
        "print(os.environ['OMP_WAIT_POLICY'], {'numpy', 'torch', 'sklearn'} & set(sys.modules))"
    )
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_no_command_spins_beside_others(environment: dict[str, str], policy: str) -> None:
    """OpenMP's threads wait without spinning, unless the user says otherwise; in time to count."""
    assert seen_by_libraries(**environment) == f"{policy} set()"
