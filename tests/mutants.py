"""How many one-line sabotages the tests notice: ``python tests/mutants.py [MODULE...]``.

Each module that holds promises is mutated by mutmut, in a copy of the checkout, and tested with the
files that own it. Prints a row a module and the mutants that survived; the exit status is 1 if a
module's score is below LEAST. ``docs/mutants.md`` has the scores and the survivors that change
nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LEAST: Final = 0.9
"""Share of the mutants of a module that its tests must kill; some mutants change nothing."""

OWNERS: Final = {
    "clusterer/runs/matching.py": ("tests/clusterer/runs/test_matching.py",),
    "clusterer/runs/writeback.py": ("tests/clusterer/runs/test_writeback.py",),
    "clusterer/runs/lease.py": ("tests/clusterer/runs/test_lease.py",),
    "clusterer/upkeep/drift.py": ("tests/clusterer/upkeep/test_drift.py",),
    "clusterer/upkeep/schedule.py": ("tests/clusterer/upkeep/test_schedule.py",),
    "embedder/flow/admission.py": ("tests/embedder/flow/test_admission.py",),
    "embedder/flow/batching.py": ("tests/embedder/flow/test_batching.py",),
    "embedder/locations/addresses.py": ("tests/embedder/locations/test_addresses.py",),
    "search/filters.py": ("tests/search/test_filters.py",),
    "search/query.py": ("tests/search/test_query.py",),
    "shoal/app/cli/options/derive.py": ("tests/app/cli/options",),
    "shoal/settings.py": ("tests/test_settings.py",),
    "shoal/store/filters.py": ("tests/store/test_filters.py",),
    "shoal/store/payloads.py": ("tests/store/test_payloads.py",),
}
"""The modules that hold promises, and the tests of each."""

_PACKAGES = ("shoal", "embedder", "clusterer", "search")


@dataclass(frozen=True, slots=True)
class Score:
    """What became of a module's mutants."""

    module: str
    killed: int
    total: int
    survivors: tuple[str, ...]

    @property
    def share(self) -> float:
        """Killed mutants among all."""
        return self.killed / self.total if self.total else 1.0


def score(module: str) -> Score:
    """The score of one module, measured in a copy of the tracked files."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        _copied(tracked, copy)
        with (copy / "pyproject.toml").open("a") as config:
            config.write(_settings(module))
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": ""}
        done = _mutmut(copy, environment, "run", "--max-children", "1")
        _mutmut(copy, environment, "export-cicd-stats")
        stats = copy / "mutants" / "mutmut-cicd-stats.json"
        if not stats.exists():
            raise SystemExit(f"{module}: mutmut failed:\n{done[-2000:]}")
        counts = json.loads(stats.read_text())
        listed = _mutmut(copy, environment, "results").split("\n")
        names = [line.partition(":")[0].strip() for line in listed if "survived" in line]
        shown = tuple(_change(_mutmut(copy, environment, "show", each)) for each in names)
    killed = counts["killed"] + counts["timeout"] + counts["segfault"]
    return Score(module, killed, counts["total"], shown)


def _copied(tracked: bytes, copy: Path) -> None:
    """Copies the ``tracked`` files, separated by zeros, to ``copy``."""
    for name in tracked.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def _settings(module: str) -> str:
    """The settings of mutmut for ``module``."""
    package = module.partition("/")[0]
    others = [each for each in (*_PACKAGES, "tests", "docs", "proto") if each != package]
    return f"""
[tool.mutmut]
source_paths = {json.dumps([package])}
only_mutate = {json.dumps([module])}
pytest_add_cli_args_test_selection = {json.dumps(list(OWNERS[module]))}
pytest_add_cli_args = ["-p", "no:cacheprovider", "--timeout", "60"]
also_copy = {json.dumps(others)}
"""


def _mutmut(directory: Path, environment: dict[str, str], *arguments: str) -> str:
    """What mutmut prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def _change(shown: str) -> str:
    """The lines that a mutant takes away and puts in."""
    lines = [line for line in shown.split("\n") if line[:1] in {"+", "-"}]
    changed = [line[1:].strip() for line in lines if line[:3] not in {"+++", "---"}]
    return "  ->  ".join(filter(None, changed))


def main(modules: list[str]) -> int:
    """Prints the scores of ``modules``, of all by default; 1 if one is too low."""
    low = False
    for unknown in (module for module in modules if module not in OWNERS):
        raise SystemExit(f"{unknown}: expected one of {', '.join(OWNERS)}")
    for module in modules or OWNERS:
        found = score(module)
        print(f"{module}: {found.killed} of {found.total} killed, {found.share:.1%}", flush=True)  # noqa: T201 - a script
        for survivor in found.survivors:
            print(f"    {survivor}", flush=True)  # noqa: T201 - a script
        low |= found.share < LEAST
    return int(low)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
