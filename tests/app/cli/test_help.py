"""The command tree keeps its rules: help with an example, an environment twin per option."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal.app.cli import main
from shoal.app.cli.root import COMMANDS

ROOT = Path(__file__).parents[3]


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from walk(found, (*path, name))


TREE = dict(walk(main, ("shoal",)))


@pytest.mark.parametrize("path", TREE)
def test_help_shows_an_example_that_begins_with_the_command(path: str) -> None:
    """Each command's help has an Example, on lines of its own, with the command in it."""
    result = CliRunner().invoke(main, [*path.split()[1:], "--help"])
    assert result.exit_code == 0
    _, found, example = result.output.partition("\n  Example:\n")
    assert found
    assert example.startswith("    shoal " if path == "shoal" else f"    {path}")


@pytest.mark.parametrize("path", TREE)
def test_options_have_help_and_an_environment_twin_that_help_shows(path: str) -> None:
    """Each option but --help and --version says what it is, and has SHOAL_<OPTION>."""
    command = TREE[path]
    text = " ".join(CliRunner().invoke(main, [*path.split()[1:], "--help"]).output.split())
    for option in command.params:
        if not isinstance(option, click.Option) or option.name == "version":
            continue
        longest = max(option.opts, key=len).lstrip("-")
        twin = f"SHOAL_{longest.replace('-', '_').upper()}"
        assert option.help, longest
        assert option.envvar == twin
        assert f"env var: {twin}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_table_of_commands_agrees_with_the_commands(name: str) -> None:
    """The one line that ``shoal --help`` shows is the first line of the command's own help."""
    command = TREE[f"shoal {name}"]
    first = " ".join((command.help or "").split("\n\n")[0].split())
    assert first == COMMANDS[name][1]


def test_help_of_all_loads_no_heavy_module() -> None:
    """``shoal --help`` imports neither gRPC nor numpy, so it answers at once."""
    code = (
        "import sys; from shoal.app.cli import main; main(['--help'], standalone_mode=False); "
        "print(sorted({'grpc', 'numpy', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    assert done.stdout.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "embedder.config clusterer.config search.config shoal.rpc.config shoal.spark.config",
            "numpy grpc PIL onnxruntime scipy httpcore",
        ),
        ("shoal.app.cli.up shoal.app.cli.serve", "grpc PIL onnxruntime scipy qdrant_client"),
    ],
)
def test_settings_load_no_heavy_module(modules: str, heavy: str) -> None:
    """The help of a command that serves shows settings, and imports nothing that serves."""
    code = (
        f"import sys, {', '.join(modules.split())}; "
        f"print(sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    assert done.stdout.decode() == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["cluste"], "'cluster', 'clusters'"),
        (["serve", "embeder"], "'embedder'"),
        (["model", "lst"], "'list'"),
        (["clusters", "--exemplar", "3"], "'--exemplars'"),
        (["up", "--give-upp", "3"], "'--give-up'"),
    ],
)
def test_name_that_is_nearly_right_is_suggested(arguments: list[str], suggested: str) -> None:
    """Of commands, which are not imported for that, and of options."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "id you mean" in result.stderr
    assert suggested in result.stderr


def test_environment_twin_sets_the_option() -> None:
    """A value from the environment is as good as one on the line, and as strictly checked."""
    result = CliRunner().invoke(main, ["cluster"], env={"SHOAL_K": "none"})
    assert result.exit_code == 2
    assert "none" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest"],
        ["ingest", "x", "--window", "0"],
        ["ingest", "x", "--field", "novalue"],
        ["cluster"],
        ["cluster", "-k", "0"],
        ["cluster", "-k", "many"],
        ["search"],
        ["search", "x", "--id", "y"],
        ["search", "x", "--within", "here"],
        ["runs", "show"],
        ["runs", "list", "1234"],
        ["serve", "embedder"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    """A wrong usage is refused before anything is sent, with exit status 2."""
    assert CliRunner().invoke(main, arguments).exit_code == 2
