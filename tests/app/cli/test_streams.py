"""Standard streams that are closed, broken, or cannot say a character."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.client import Client, IngestItem

ROOT = Path(__file__).parents[3]


@pytest.fixture
def collection(server: Any, one_picture: bytes) -> str:
    """Some images under names of several scripts."""
    name = "streams"
    with Client(server.address) as client:
        keys = [f"写真-é-{number}" for number in range(3)]
        for outcome in client.ingest(
            (IngestItem(one_picture, key=key) for key in keys), collection=name
        ):
            assert outcome.failure is None
    return name


def start(server: Any, *arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    environment = options.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "SHOAL_ADDRESS": server.address,
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        **options,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_a_stream_lacks_are_escapes(
    server: Any, collection: str, tmp_path: Path, encoding: str
) -> None:
    """Whatever the language of the terminal is, nothing ends in a traceback."""
    process = start(
        server,
        *("search", "写真-é-0", "--collection", collection),
        cwd=tmp_path,
        environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    said = {"ascii": r"\u5199\u771f-\xe9-0", "latin-1": r"\u5199\u771f-é-0"}[encoding]
    assert said in stderr.decode(encoding)
    found = start(
        server,
        *("duplicates", "--collection", collection),
        cwd=tmp_path,
        environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = found.communicate(timeout=60)
    assert (found.returncode, stderr) == (0, b"")
    assert said in stdout.decode(encoding)


def _closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_cost_nothing_but_what_they_would_say(
    server: Any, tmp_path: Path, pictures: Any, closed: tuple[int, ...]
) -> None:
    """Images are stored; the descriptors are taken by the null device, and by nothing of ours."""
    folder = pictures(tmp_path / "p", ["1.png"])
    (folder / "notes.txt").touch()
    name = f"closed-{len(closed)}-{closed[0]}"
    process = start(
        server,
        *("ingest", "p", "--collection", name),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_closing(*closed),
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert bool(stdout) is (1 not in closed)
    assert (stderr.decode().startswith("shoal: left out 1")) is (2 not in closed)
    with Client(server.address) as client:
        assert client.collection(name).points == 1


def test_closed_descriptors_are_the_null_device(tmp_path: Path) -> None:
    """So that no store or connection gets the number of standard error."""
    program = (
        "from shoal.app.cli.streams import mend_streams; mend_streams(); import os, sys;"
        "print('x'); print('y', file=sys.stderr);"
        f"open({str(tmp_path / 'out')!r}, 'w').write(' '.join(os.readlink(f'/proc/self/fd/{{n}}')"
        " for n in range(3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=_closing(0, 1, 2),
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "/dev/null /dev/null /dev/null"


def test_a_reader_that_leaves_ends_the_command_quietly(
    server: Any, collection: str, tmp_path: Path
) -> None:
    """As with `| head -1`: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(
        server,
        *("duplicates", "--collection", collection),
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, b"")


@pytest.mark.parametrize("bar", ["--progress", "--no-progress"])
def test_talk_that_nobody_reads_stops_nothing(
    server: Any, tmp_path: Path, pictures: Any, bar: str
) -> None:
    """As with `2>&1 | head -1`: all images are stored, and stdout has the report."""
    folder = pictures(tmp_path / "p", [f"{n}.png" for n in range(4)])
    for n in range(3):
        (folder / f"0{n}.png").write_bytes(b"bad")
    reading, writing = os.pipe()
    os.close(reading)
    process = start(
        server,
        *("ingest", "p", "--collection", f"unread{len(bar)}", "--window", "1", bar),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout.startswith(b"stored 4, updated 0, unchanged 0, failed 3 in ")


def test_json_of_a_poor_stream_is_whole(server: Any, collection: str, tmp_path: Path) -> None:
    """It is ASCII on any stream."""
    process = start(
        server,
        *("duplicates", "--collection", collection, "--json"),
        cwd=tmp_path,
        environment={"PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
    )
    stdout, _ = process.communicate(timeout=60)
    (group,) = json.loads(stdout)
    assert {member["key"] for member in group["members"]} == {f"写真-é-{n}" for n in range(3)}
