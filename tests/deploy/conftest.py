"""What is deployed, read from the files: images of the Dockerfile, containers of the rest."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]

from shoal.app.cli import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SECRET = "a-secret-value"


@dataclass(frozen=True, slots=True)
class Stage:
    """One ``FROM`` of the Dockerfile, with what it inherits from the stages that it is from."""

    name: str
    parent: str
    base: str
    """The image outside of this file that it is from in the end."""
    own: tuple[tuple[str, str], ...]
    """Its own instructions and their values, in order."""
    all: tuple[tuple[str, str], ...]
    """Those and the inherited ones before them."""

    def values(self, instruction: str) -> list[str]:
        """The values of one kind of instruction, inherited ones first."""
        return [value for name, value in self.all if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """The exec form of ENTRYPOINT or CMD."""
        value = json.loads(self.values(instruction)[-1])
        assert isinstance(value, list)
        return value

    @property
    def ports(self) -> set[int]:
        """What it says it listens on."""
        return {int(port) for line in self.values("EXPOSE") for port in line.split()}


@dataclass(frozen=True, slots=True)
class Container:
    """One container that runs Shoal, in Compose or in Kubernetes."""

    where: str
    name: str
    image: str
    arguments: tuple[str, ...]
    """After the image's ENTRYPOINT."""
    environment: Mapping[str, str]
    secrets: frozenset[str]
    """The variables whose values are not in the file."""

    @property
    def target(self) -> str:
        """The Dockerfile's target that the image is named for."""
        return self.image.removeprefix("shoal/").partition(":")[0]

    def parse(self, monkeypatch: pytest.MonkeyPatch) -> tuple[click.Command, click.Context]:
        """The command, and its options as the command line and the environment set them."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return parse_line(self.arguments)


def parse_line(arguments: tuple[str, ...]) -> tuple[click.Command, click.Context]:
    """The command of the ``shoal`` line, strictly parsed and not run."""
    command: click.Command = main
    rest = list(arguments)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    return command, command.make_context(" ".join(arguments), rest)


def read_stages(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in order."""
    stages: dict[str, Stage] = {}
    parent, name = "", ""
    own: list[tuple[str, str]] = []
    parser = DockerfileParser(fileobj=io.BytesIO(path.read_bytes()))
    for line in parser.structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "COMMENT":
            continue
        if instruction == "FROM":
            if name:
                stages[name] = _stage(name, parent, own, stages)
            parent, _, name = value.partition(" AS ")
            own = []
            continue
        own.append((instruction, value))
    stages[name] = _stage(name, parent, own, stages)
    return stages


def _stage(name: str, parent: str, own: list[tuple[str, str]], known: dict[str, Stage]) -> Stage:
    above = known.get(parent)
    inherited = above.all if above else ()
    return Stage(name, parent, above.base if above else parent, tuple(own), (*inherited, *own))


def compose_containers(compose: Mapping[str, Any], stages: Mapping[str, Stage]) -> Iterator[Any]:
    """Compose's services that run Shoal."""
    for name, service in compose["services"].items():
        if not service["image"].startswith("shoal/"):
            continue
        given = service.get("environment", {})
        secrets = {each for each, value in given.items() if "${" in value}
        command = service.get("command") or stages[service["build"]["target"]].command("CMD")
        yield Container(
            "compose",
            name,
            service["image"],
            tuple(command),
            {each: SECRET if each in secrets else value for each, value in given.items()},
            frozenset(secrets),
        )


def pod_specs(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each workload with its pod template."""
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield document, spec["template"]


def kubernetes_containers(documents: list[dict[str, Any]]) -> Iterator[Any]:
    """The manifests' containers that run Shoal."""
    configs = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    for _, template in pod_specs(documents):
        for container in template["spec"]["containers"]:
            if not container["image"].startswith("shoal/"):
                continue
            environment: dict[str, str] = {}
            for source in container.get("envFrom", []):
                environment |= configs[source["configMapRef"]["name"]]
            secrets = {each["name"] for each in container["env"] if "valueFrom" in each}
            environment |= {each["name"]: each.get("value", SECRET) for each in container["env"]}
            assert "command" not in container  # the ENTRYPOINT of the image
            yield Container(
                "kubernetes",
                container["name"],
                container["image"],
                tuple(container["args"]),
                environment,
                frozenset(secrets),
            )


@pytest.fixture(scope="session")
def stages() -> dict[str, Stage]:
    """The Dockerfile's stages."""
    return read_stages(DEPLOY / "Dockerfile")


@pytest.fixture(scope="session")
def targets(stages: dict[str, Stage]) -> dict[str, Stage]:
    """The stages that are shipped: those with a CMD."""
    return {name: each for name, each in stages.items() if "CMD" in dict(each.own)}


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """``compose.yaml``."""
    loaded = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="session")
def manifests() -> list[dict[str, Any]]:
    """The Kubernetes documents that the kustomization applies."""
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [each for name in listed for each in yaml.safe_load_all((folder / name).read_text())]


@pytest.fixture(scope="session")
def workloads(manifests: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each Kubernetes workload with its pod template."""
    return list(pod_specs(manifests))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options come from the files, not from where the tests run."""
    for name in [each for each in os.environ if each.startswith("SHOAL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def containers(
    compose: dict[str, Any], manifests: list[dict[str, Any]], stages: dict[str, Stage]
) -> list[Container]:
    """Every container that runs Shoal."""
    return [*compose_containers(compose, stages), *kubernetes_containers(manifests)]


@pytest.fixture
def parse() -> Callable[[tuple[str, ...]], tuple[click.Command, click.Context]]:
    """The parser of lines."""
    return parse_line
