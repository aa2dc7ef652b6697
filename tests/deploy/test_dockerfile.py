from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedder.encoding.runtime import RuntimeConfig
from shoal.errors import ConfigError
from shoal.rpc.server import ServerConfig

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TARGETS = ("embedder", "clusterer", "search", "embedder-gpu", "all")

Stages = Mapping[str, Any]
"""``conftest.Stage`` by name."""


def copied(stages: Stages) -> set[str]:
    """What COPY takes from the context, all stages together."""
    sources: set[str] = set()
    for stage in stages.values():
        for instruction, value in stage.own:
            words = value.split()
            if instruction == "COPY" and not any(word.startswith("--from=") for word in words):
                sources.update(word for word in words[:-1] if not word.startswith("--"))
    return sources


def test_dockerfile_passes_hadolint() -> None:
    """The linter has nothing to say about the Dockerfile, at any severity."""
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", DOCKERFILE],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "")


def test_targets_are_one_per_service_and_all_is_the_default(
    stages: Stages, targets: Stages
) -> None:
    """There is one target per service, one for the GPU, and `all`, which no --target builds."""
    assert set(targets) == set(TARGETS)
    assert list(stages)[-1] == "all"


def test_bases_are_pinned_to_a_patch_version(stages: Stages) -> None:
    """An image from elsewhere has a tag with at least major, minor and patch."""
    bases = {stage.base for stage in stages.values()}
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+", base) for base in bases), bases


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_as_a_numeric_user_that_is_not_root(stages: Stages, target: str) -> None:
    """USER is UID:GID in numbers, not 0: Kubernetes can check it without a passwd file."""
    user, _, group = stages[target].values("USER")[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_image_contains_no_build_tools(stages: Stages, target: str) -> None:
    """Nothing is compiled or installed by pip in a stage that is shipped, only copied into it."""
    runs = " ".join(stages[target].values("RUN"))
    assert not re.search(r"\bpip\b|build-essential|\bgcc\b|\bvenv\b", runs)
    assert any("/opt/shoal /opt/shoal" in copy for copy in stages[target].values("COPY"))


@pytest.mark.parametrize("target", TARGETS)
def test_image_sends_sigterm_to_shoal_itself(stages: Stages, target: str) -> None:
    """ENTRYPOINT is the program in exec form, so that no shell stands between it and signals."""
    assert stages[target].command("ENTRYPOINT") == ["shoal"]
    assert stages[target].values("STOPSIGNAL") == ["SIGTERM"]
    assert "PYTHONUNBUFFERED=1" in " ".join(stages[target].values("ENV"))


@pytest.mark.parametrize("target", TARGETS)
def test_image_listens_where_it_exposes_and_only_with_a_token(
    stages: Stages, target: str, parse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMD is a line that `shoal` takes; what it listens on is exposed, and asks for a token."""
    monkeypatch.setenv("SHOAL_STORE_URL", "http://qdrant:6333")
    monkeypatch.setenv("SHOAL_TOKEN", "token")
    _, context = parse(tuple(stages[target].command("CMD")))
    options = context.params
    listening = {int(options[name].rpartition(":")[2]) for name in ("address", "metrics_address")}
    assert stages[target].ports == listening
    assert options["token"] == ("token",)
    with pytest.raises(ConfigError, match="token"):
        ServerConfig(address=options["address"]).validate()


@pytest.mark.parametrize("target", TARGETS)
def test_image_has_no_secret_built_in(stages: Stages, target: str) -> None:
    """No ENV or ARG of an image sets an option of Shoal: all come from where it is deployed.

    But for the GPU image, which is for GPUs.
    """
    said = " ".join([*stages[target].values("ENV"), *stages[target].values("ARG")])
    found = set(re.findall(r"SHOAL_\w+=\w+", said))
    assert found == (
        {"SHOAL_PROVIDER=cuda", "SHOAL_REQUIRE_GPU=1"} if target == "embedder-gpu" else set()
    )


@pytest.mark.parametrize("arguments", [(), ("serve", "embedder", "--max-batch", "32")])
def test_gpu_image_requires_a_gpu_whatever_a_pod_says(
    stages: Stages, parse: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """With the image's own arguments and with those of a pod that forgets the GPU."""
    for each in re.findall(r"SHOAL_\w+=\w+", " ".join(stages["embedder-gpu"].values("ENV"))):
        monkeypatch.setenv(*each.split("="))
    monkeypatch.setenv("SHOAL_STORE_URL", "http://qdrant:6333")
    command = arguments or tuple(stages["embedder-gpu"].command("CMD"))
    _, context = parse(command)
    assert context.params["require_gpu"] is True
    assert context.params["provider"] == "cuda"
    _, context = parse((*command, "--provider", "cpu"))
    with pytest.raises(ConfigError, match="a GPU is required"):
        RuntimeConfig(
            provider=context.params["provider"], require_gpu=context.params["require_gpu"]
        )


def test_context_is_what_is_copied_and_nothing_else(stages: Stages) -> None:
    """.dockerignore shuts out everything but the sources of COPY, all of which exist."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied(stages)
    assert all((ROOT / source).exists() for source in copied(stages))


def test_wheel_is_built_from_all_that_pyproject_names(stages: Stages) -> None:
    """Each package, the readme and the license that pyproject.toml names reach the builder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*packages, project["project"]["readme"], "LICENSE"} <= copied(stages)


def test_extras_that_are_installed_exist(stages: Stages) -> None:
    """Each image installs extras of pyproject.toml, and one ONNX Runtime at most."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {
        name: set(match[1].split(","))
        for name, stage in stages.items()
        for _, value in stage.own
        if (match := re.search(r"\.whl\)\[([\w,]+)\]", value))
    }
    assert asked == {
        "embedder-venv": {"cpu", "text"},
        "clusterer-venv": {"cluster", "cpu"},  # a trained head is applied by ONNX Runtime
        "all-venv": {"cpu", "cluster", "text"},
        "embedder-gpu-venv": {"gpu", "text"},
    }
    assert set().union(*asked.values()) <= set(project["optional-dependencies"])
