"""The tour's commands do what the page says."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from tour import TOUR, Step, steps, walk

_VARIES = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8}\b"), "RUN"),
    (re.compile(r"clusters over .*"), "clusters over"),
    (re.compile(r"\b(born|one|two|three|four|five|six|seven|eight|nine|zero|split)\b,? ?"), ""),
    (re.compile(r"[0-9][0-9,.:-]*%?"), "N"),
    (re.compile(r"\s+"), " "),
)
"""What differs between two runs on two machines: ids, numbers, and how clusters came to be."""


def shape(lines: list[str] | tuple[str, ...]) -> list[str]:
    """``lines`` without what differs from run to run."""
    found = []
    for line in lines:
        for pattern, name in _VARIES:
            line = pattern.sub(name, line)  # noqa: PLW2901 - step by step
        found.append(line.strip())
    return found


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.timeout(600)
def test_tour_prints_what_the_page_shows(tmp_path: Path) -> None:
    """Each command of docs/tour.md prints the lines below it, but for numbers and ids."""
    page = steps(TOUR.read_text(encoding="utf-8"))
    with walk(tmp_path, free_port()) as made:
        server = None
        try:
            for step in page:
                if step.source.endswith("&"):
                    server, lines = made.start(step)
                else:
                    lines = made.run(step)
                if step.kind == "python":
                    assert lines == ["succeeded 10", "5"], step.source
                else:
                    assert shape(lines) == shape(step.output), step.source
        finally:
            if server is not None:
                server.terminate()
                server.communicate(timeout=60)  # also closes the pipe


def test_tour_steps_are_read_with_their_output() -> None:
    """A console block has a step for each ``$`` line; the lines below it are its output."""
    text = "```console\n$ a b\none\n$ c\n```\nwords\n```python\nprint(1)\n```\n"
    assert steps(text) == [
        Step("console", "a b", ("one",)),
        Step("console", "c", ()),
        Step("python", "print(1)\n", ()),
    ]
