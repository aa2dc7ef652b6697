"""What commands print: nothing from outside acts on a terminal, in tables, lines and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

import shoal.app
from shoal.app.cli.printing.output import print_json, print_table, say, talk
from shoal.app.cli.root import DomainError, Interrupted

HOSTILE = "a\x1b[2Jb\u202e\x9b31m\nc"
SAFE = r"a\u001b[2Jb\u202e\u009b31m\nc"


def test_lines_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout and stderr; a line stays one line."""
    say(f"name {HOSTILE}")
    talk(f"shoal: {HOSTILE}")
    say()
    found = capsys.readouterr()
    assert (found.out, found.err) == (f"name {SAFE}\n\n", f"shoal: {SAFE}\n")


def test_tables_are_safe_and_stay_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """A cell is as wide as what is printed of it."""
    print_table(("name", "size"), [(HOSTILE, "1"), ("b", "22")])
    assert capsys.readouterr().out.splitlines() == [
        f"{'name':<{len(SAFE)}}  size",
        f"{SAFE}     1",
        f"{'b':<{len(SAFE)}}    22",
    ]


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no escaping of ours, and gives back what it was made of."""
    print_json({"name": HOSTILE, "other": "日本"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == {"name": HOSTILE, "other": "日本"}


@pytest.mark.parametrize("kind", [DomainError, Interrupted])
def test_errors_are_safe(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """They quote names of files, keys and answers of servers."""
    kind(HOSTILE).show()
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert r"a\u001b[2Jb\u202e\u009b31m c" in found


@pytest.mark.parametrize(
    "arguments",
    [
        (HOSTILE,),
        (f"--{HOSTILE}",),
        ("search", HOSTILE, HOSTILE),
        ("search", HOSTILE),
        ("search", "x", "--where", f"{HOSTILE}>1"),
        ("ingest", HOSTILE),
        ("ingest", ".", "--field", HOSTILE),
        ("clusters", HOSTILE),
    ],
)
def test_wrong_usage_is_safe(in_process: Any, arguments: tuple[str, ...]) -> None:
    """What the command line has, as a shell's pattern gives it, is quoted as escapes."""
    result = in_process(*arguments)
    assert result.code in {1, 2}
    assert "2Jb" in result.stderr
    assert not re.search("[\x1b\x9b\u202e]", result.stderr)
    assert "m\nc" not in result.stderr


def test_commands_print_through_one_function() -> None:
    """Nothing else prints text; click.echo is called where the text is safe already."""
    allowed = {"cli/printing/output.py", "cli/root.py"}
    root = Path(shoal.app.__file__).parent
    found = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if re.search(r"click\.(echo|secho|echo_via_pager)\(|\bprint\(", file.read_text())
    }
    assert found == allowed
    assert callable(click.echo)
