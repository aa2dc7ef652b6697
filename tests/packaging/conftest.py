"""The built wheel, and an environment that has Shoal from nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Built:
    """The files that ``python -m build`` made."""

    wheel: Path
    sdist: Path


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel and what it depends on, and nothing of the checkout."""

    python: Path
    packages: Path

    def run(
        self, *arguments: str, cwd: Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs this environment's Python with ``arguments`` in ``cwd``."""
        kept = ("PATH", "HOME", "TMPDIR", "OMP_WAIT_POLICY")
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd,
            env={name: os.environ[name] for name in kept if name in os.environ},
            capture_output=True,
            text=True,
            timeout=240,
            check=check,
        )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the sdist of this checkout."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(directory), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=240,
    )
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own; its dependencies are those of the tests.

    Python does not read the ``.pth`` files of a directory that a ``.pth`` file names, so the
    checkout, which is installed in that way, is not to be found.
    """
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "lib" / version / "site-packages"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--disable-pip-version-check", "--target", str(packages), str(built.wheel)),
        ],
        check=True,
        timeout=120,
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(directory / "bin" / "python", packages)
