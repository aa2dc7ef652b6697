"""A file that has the name of one of Shoal's packages is noticed before anything is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import shoal
from shoal.app.packages import PACKAGES, check_packages
from shoal.errors import ConfigError

ROOT = Path(shoal.__file__).parents[1]


def run_python(*arguments: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Python with ``path`` before this checkout on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_own_packages_pass() -> None:
    """As they lie beside ``shoal``."""
    check_packages()


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("kind", ["module", "package"])
def test_command_names_what_hides_a_package(tmp_path: Path, name: str, kind: str) -> None:
    """One line says which file it is and which one was expected; the file is not run."""
    fake = tmp_path / (name if kind == "package" else f"{name}.py")
    if kind == "package":
        fake.mkdir()
    file = fake / "__init__.py" if kind == "package" else fake
    file.write_text("raise SystemExit('this is not Shoal')\n")
    done = run_python("-m", "shoal", "clusters", cwd=ROOT / "docs", path=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"shoal: error: {fake} hides Shoal's package {name}, ")
    assert f"which is {ROOT / name}:" in line


def test_command_names_what_hides_a_package_where_it_runs(tmp_path: Path) -> None:
    """With ``python -m``, the working directory comes first on the path."""
    (tmp_path / "search.py").touch()
    done = run_python("-m", "shoal", "up", "--data", "data", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / "search.py") in done.stderr
    assert not (tmp_path / "data").exists()


def test_server_in_a_program_checks_too(tmp_path: Path) -> None:
    """Who starts Shoal without its command line gets a ConfigError."""
    (tmp_path / "clusterer.py").touch()
    program = (
        "from pathlib import Path\n"
        "from shoal.app.config import LocalConfig\n"
        "from shoal.app.local import background\n"
        "with background(LocalConfig(Path('data'))): pass\n"
    )
    done = run_python("-c", program, cwd=tmp_path, path=tmp_path)
    assert "ConfigError: " in done.stderr.splitlines()[-1]
    assert str(tmp_path / "clusterer.py") in done.stderr
    assert not (tmp_path / "data").exists()


def test_directory_without_python_hides_nothing(tmp_path: Path) -> None:
    """A folder that happens to be called ``search`` is no package."""
    (tmp_path / "search").mkdir()
    done = run_python("-m", "shoal", "clusters", "--help", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An incomplete installation is not taken for a hidden package."""
    monkeypatch.setattr("shoal.app.packages.PACKAGES", (*PACKAGES, "not_installed"))
    with pytest.raises(ConfigError, match="package not_installed is missing: install Shoal again"):
        check_packages()


def test_packages_of_one_distribution_may_lie_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distribution's own list of files decides; a file that is not in it is refused."""
    apart = tmp_path / "apart"
    (apart / "search").mkdir(parents=True)
    (apart / "search" / "__init__.py").touch()
    monkeypatch.syspath_prepend(apart)
    monkeypatch.delitem(sys.modules, "search", raising=False)
    own = metadata.PackagePath("search/__init__.py")
    own.dist = _Distribution(apart)
    monkeypatch.setattr(metadata, "files", lambda _: [own])
    check_packages()
    own.dist = _Distribution(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="apart/search hides"):
        check_packages()


class _Distribution(metadata.Distribution):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read_text(self, filename: str) -> None:
        raise NotImplementedError(filename)

    def locate_file(self, path: object) -> Path:
        return self._directory / str(path)
