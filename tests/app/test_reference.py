"""``docs/reference.md`` says what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from shoal import errors
from shoal.app import reference
from shoal.app.cli import main


@pytest.fixture(scope="module")
def page() -> str:
    """The page as it would be written now."""
    return reference.page()


def test_page_is_what_would_be_written_now(page: str) -> None:
    """A new option, default, metric or reason changes it: `make reference` writes it anew."""
    assert reference.PAGE.read_text(encoding="utf-8") == page


def commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """All commands below ``command``."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    return [
        each
        for name in command.list_commands(context)
        if (found := command.get_command(context, name))
        for each in commands(found, f"{path} {name}")
    ]


def test_each_command_is_there_with_all_of_its_options(page: str) -> None:
    """In its own section, or in that of options which several have and to which it points."""
    sections = dict(
        re.findall(r"^### ([^\n]+)\n(.*?)(?=^##)", page + "## ", re.MULTILINE | re.DOTALL)
    )
    for path, command in commands(main, "shoal"):
        text = sections[path]
        for group in re.findall(r"\(#options-of-([a-z-]+)\)", text):
            text += sections[f"Options of {group.replace('-', ' ')}"]
        for option in command.params:
            if isinstance(option, click.Option):
                assert f"`{option.envvar}`" in text, (path, option.opts)


@pytest.mark.parametrize(
    "row",
    [
        (
            "| `--give-up SECONDS` | `SHOAL_GIVE_UP` | `300.0` | End the process, to be started "
            "anew, once a model has failed its self-test, or one run of it has taken, this long. "
            "inf: never. (x>0) |"
        ),
        (
            "| `--store-url URL` | `SHOAL_STORE_URL` | required | The Qdrant server, "
            "`http(s)://HOST:6333`. Points travel over its gRPC port. |"
        ),
        (
            "| `-k N\\|auto` | `SHOAL_K` |  | With kmeans or gmm: A number of clusters, or auto: "
            "estimators vote for it. |"
        ),
        (
            "| `shoal_rpc_requests_total` | counter | `method`, `code` | Calls that have ended, by "
            "method and gRPC status code. |"
        ),
        "| `shoal_build_info` | info |  | Shoal's version. |",
        "| &emsp;&emsp;&emsp;`LEASE_HELD` | `ABORTED` | Another run owns the clustering. |",
        "| &emsp;CallerError | `INVALID_ARGUMENT` | The caller must change the request. |",
    ],
)
def test_rows_say_name_default_range_and_meaning(page: str, row: str) -> None:
    """One of each kind, word for word."""
    assert row in page.splitlines()


def test_each_reason_of_an_error_is_there(page: str) -> None:
    """With the code that it travels with."""

    def reasons(error: type[errors.ShoalError]) -> set[str]:
        own = {error.reason} if error.__module__ == errors.__name__ else set()
        return own.union(*(reasons(each) for each in error.__subclasses__()))

    listed = set(re.findall(r"^\| (?:&emsp;)*`([A-Z_]+)` \| `[A-Z_]+` \|", page, re.MULTILINE))
    assert listed == reasons(errors.ShoalError)


def test_check_tells_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing or was changed by hand; what it checks it does not write."""
    file = tmp_path / "reference.md"
    monkeypatch.setattr(reference, "PAGE", file)
    monkeypatch.setattr(reference, "page", lambda: "fresh\n")
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    assert not file.exists()
    file.write_text("stale\n")
    assert reference.main() == 1
    assert file.read_text() == "stale\n"
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    assert file.read_text() == "fresh\n"
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0


def test_the_command_checks_the_page() -> None:
    """As `make check` runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "shoal.app.reference", "--check"],
        cwd=reference.PAGE.parents[1],
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
