"""The package that users install: what is in it, and that it works without the checkout."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tour import write_digits

if TYPE_CHECKING:
    from tests.packaging.conftest import Built, Installed

ROOT = Path(__file__).parents[2]
PACKAGES = ("shoal", "embedder", "clusterer", "search")
PROGRAM = """
from __future__ import annotations

import asyncio

from shoal.client import Client, IngestItem, KMeans, SearchResult
from shoal.client.aio import AsyncClient


def found(address: str, image: bytes) -> SearchResult:
    with Client(address) as shoal:
        for outcome in shoal.ingest([IngestItem(image, key="one")]):
            print(outcome.status)
        shoal.cluster(KMeans(k=2))
        return shoal.search(image, within="auto", limit=3)


async def found_too(address: str, image: bytes) -> SearchResult:
    async with AsyncClient(address) as shoal:
        return await shoal.search(image, within="auto", limit=3)


if __name__ == "__main__":
    print(found("localhost:7800", b"").run, asyncio.run(found_too("localhost:7800", b"")).run)
"""


def tracked() -> set[str]:
    """The files of the four packages that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\n")) - {""}


def test_wheel_has_every_file_of_the_packages_and_nothing_else(built: Built) -> None:
    """Code, the bundled encoder and py.typed; no tests, no docs, no stray file."""
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == tracked()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "embedder/encoders/efficientnet-lite0/image.onnx" in names


def test_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    """Whoever builds from the sdist gets the files that are in the wheel."""
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
        timeout=240,
    )
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as second, zipfile.ZipFile(built.wheel) as first:
        sums = [
            {each.filename: each.CRC for each in archive.infolist()} for archive in (first, second)
        ]
    assert sums[0] == sums[1]


def test_wheel_says_its_license_and_its_command(built: Built) -> None:
    """Apache-2.0, and ``shoal``."""
    with zipfile.ZipFile(built.wheel) as archive:
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        (entries,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        said = email.message_from_bytes(archive.read(metadata))
        assert "shoal = shoal.app.cli:main" in archive.read(entries).decode()
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == ">=3.11"


def test_demo_runs_from_the_wheel_alone(installed: Installed, tmp_path: Path) -> None:
    """Embedder, clusterer, search and the bundled encoder work where there is no checkout."""
    where = installed.run("-c", "import shoal, search; print(shoal.__file__)", cwd=tmp_path)
    assert str(installed.packages) in where.stdout
    pictures = tmp_path / "pictures"
    write_digits(pictures, 60)
    done = installed.run("-m", "shoal", "demo", "--images", "pictures", "-k", "3", cwd=tmp_path)
    assert "contact sheet: shoal-demo/contact-sheet.png" in done.stdout, done.stderr
    assert (tmp_path / "shoal-demo" / "contact-sheet.png").exists()


def test_program_of_a_user_passes_strict_types(installed: Installed, tmp_path: Path) -> None:
    """py.typed reaches users: both clients are typed for whoever has the wheel only."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null"]
    done = subprocess.run(
        [*command, "--python-executable", str(installed.python), program.name],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    wrong = PROGRAM.replace("limit=3", "limit='three'")
    program.write_text(wrong)
    again = subprocess.run(
        [*command, "--python-executable", str(installed.python), program.name],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert again.returncode == 1, "a wrong argument is not noticed: the types do not arrive"


@pytest.mark.parametrize("name", ["embedder", "clusterer", "search"])
def test_another_package_of_a_services_name_is_refused(
    installed: Installed, tmp_path: Path, name: str
) -> None:
    """``search`` and the others are common names: a stranger's is named, not imported."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    done = installed.run("-m", "shoal", "clusters", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert f"{name}.py" in done.stderr
    assert "the wrong one" not in done.stderr
