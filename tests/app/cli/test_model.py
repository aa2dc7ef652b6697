"""``shoal model``: artefacts shown, verified, varied, mixed and exported at the prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from encoders import other_encoder
from small_timm import VIT, smaller

from embedder.encoding.artefact import bundled_artefact, load_any_artefact
from shoal.app.cli import main


def shoal(*arguments: object) -> Result:
    """What a command prints, in this process."""
    return CliRunner().invoke(main, ["model", *map(str, arguments)])


def error_line(result: Result) -> str:
    """The one line of a failed command."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(("Error: ", "shoal: error: "))
    return str(line)


def test_show_tells_what_an_artefact_is() -> None:
    """Name, dim, fingerprint, source and input, for people and for programs."""
    result = shoal("show", bundled_artefact())
    assert result.exit_code == 0, result.output
    assert "224x224, shortest_edge 256, bicubic" in result.stdout
    assert "matte        #ffffff" in result.stdout
    facts = json.loads(shoal("show", bundled_artefact(), "--json").stdout)
    assert (facts["name"], facts["dim"], facts["precision"]) == (
        "efficientnet-lite0",
        1280,
        "float32",
    )


def test_verify_runs_the_model(tmp_path: Path) -> None:
    """A sound artefact is told so; a damaged one, and one with other vectors, are one line."""
    result = shoal("verify", bundled_artefact())
    assert result.exit_code == 0, result.output
    assert "gives its reference vectors on CPUExecutionProvider" in result.stdout

    damaged = other_encoder(tmp_path / "damaged")
    with (damaged / "image.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xff")
    assert "sha256" in error_line(shoal("verify", damaged))
    assert "gone" in error_line(shoal("verify", tmp_path / "gone"))
    assert "CUDAExecutionProvider" in error_line(
        shoal("verify", bundled_artefact(), "--provider", "cuda")
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A timm model with random weights as an artefact, and what its export printed."""
    out = tmp_path_factory.mktemp("exported") / "tiny"
    with smaller(**VIT):
        result = shoal(
            *("export", "timm", "vit_tiny_patch16_224", "--random-seed", 1, "--image-size", 64),
            *("--output", out, "--name", "tiny", "--licence", "Apache-2.0", "--json"),
        )
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_export_writes_an_artefact(exported: tuple[Path, dict[str, Any]]) -> None:
    """It is what was asked for, and it verifies."""
    out, facts = exported
    assert (facts["name"], facts["licence"]) == ("tiny", "Apache-2.0")
    assert facts["input"].startswith("64x64, ")
    assert "random, seed 1" in facts["source"]
    assert facts["directory"] == str(out)
    assert shoal("verify", out).exit_code == 0


def test_mix_makes_an_artefact(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """What is printed as JSON is what was written; nothing is written over."""
    tiny, out = exported[0], tmp_path / "mix"
    result = shoal("mix", bundled_artefact(), tiny, "--output", out, "--name", "both", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["name"], facts["dim"]) == ("both", 1280 + 192)
    assert facts["parts"] == ["efficientnet-lite0", "tiny"]
    assert load_any_artefact(out).fingerprint == facts["fingerprint"]
    assert "exists" in error_line(shoal("mix", bundled_artefact(), tiny, "--output", out))


def test_variant_makes_an_artefact(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """It is measured against the one that it was made of."""
    half = shoal("variant", exported[0], "float16", "--output", tmp_path / "half")
    assert half.exit_code == 0, half.output
    assert "recall_at_10" in half.stdout
    assert load_any_artefact(tmp_path / "half").name == "tiny-fp16"


def test_export_needs_weights_and_a_known_model(tmp_path: Path) -> None:
    """Without weights nothing is made up; an unknown model is one line."""
    out = ("--output", tmp_path / "x")
    for arguments in (["open_clip", "ViT-B-32"], ["timm", "resnet18"]):
        assert "expected weights" in error_line(shoal("export", *arguments, *out))
    unknown = shoal("export", "timm", "resnet19", "--random-seed", 0, *out)
    assert "timm has no model 'resnet19'" in error_line(unknown)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("export", "open_clip", "ViT-Z-1", "--random-seed", 0),
        ("export", "timm", "resnet19", "--random-seed", 0),
        ("variant", "gone", "float16"),
        ("mix", "gone", "away"),
    ],
)
def test_impossible_name_is_told_first(command: tuple[object, ...], tmp_path: Path) -> None:
    """In one line, with what a name may be, before a model or an artefact is looked for."""
    for name in ("My Dino", "A+B"):
        line = error_line(shoal(*command, "--output", tmp_path / "x", "--name", name))
        assert "name: expected 1 to 64 of a-z, 0-9, '.', '_' and '-'" in line
        assert f"got {name!r}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["timm", "torch"])
def test_export_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Where the extra is missing, the one line names the package and the command."""
    for name in [n for n in sys.modules if n.startswith("embedder.export.")]:
        monkeypatch.delitem(sys.modules, name)
    modules: Any = sys.modules
    monkeypatch.setitem(modules, package, None)
    line = error_line(
        shoal("export", "timm", "resnet18", "--random-seed", 0, "--output", tmp_path / "x")
    )
    assert package in line
    assert "pip install 'shoal[export]'" in line
