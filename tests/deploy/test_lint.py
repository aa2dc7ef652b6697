from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from yamllint import linter  # type: ignore[import-untyped]
from yamllint.config import YamlLintConfig  # type: ignore[import-untyped]

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
MANIFESTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}")
    for path in FILES
    if path.parent.name == "kubernetes" and path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_yaml_passes_yamllint(path: Path) -> None:
    """Every YAML file passes the strict configuration in deploy/.yamllint, warnings included."""
    config = YamlLintConfig(file=str(DEPLOY / ".yamllint"))
    problems = [str(problem) for problem in linter.run(path.read_text(), config, str(path))]
    assert problems == []


@pytest.mark.parametrize("document", MANIFESTS)
def test_manifest_is_valid_for_the_newest_kubernetes(document: dict[str, Any]) -> None:
    """Every manifest is valid by the newest schema, and has no field that it does not know."""
    newest = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    kubernetes_validate.validate(document, newest, strict=True)


def test_kustomization_lists_every_manifest() -> None:
    """What lies in the folder is applied, but for the example of the secret."""
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    others = {"kustomization.yaml", "secret.example.yaml"}
    assert sorted(listed) == sorted({path.name for path in folder.glob("*.yaml")} - others)
