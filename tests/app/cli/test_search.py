"""``shoal search``: what the server is asked for, and what is printed of its answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Self

import pytest

from shoal.app.cli.options.target import Target
from shoal.client import AnyOf, Empty, Filter, Hit, SearchOptions, SearchResult, StoredId, Text

RUN = "0123456789abcdef"
HITS = (
    Hit("a", 0.9, 4, {"uri": "file:///a.png", "tag": "x"}),
    Hit("b", 0.25, -1, {"key": "b.png"}),
    Hit("c", 0.0, None, {}),
)


class Server:
    """A client that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.cluster: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is open."""

    def search(self, query: Any, **options: Any) -> SearchResult:
        self.asked.append((query, options))
        return SearchResult(RUN, self.cluster, HITS)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server of all commands."""
    found = Server()
    monkeypatch.setattr(Target, "connect", lambda _: found)
    return found


PLAIN: dict[str, Any] = {
    "collection": "images",
    "within": "any",
    "limit": 10,
    "options": SearchOptions(),
}


def where(*conditions: tuple[str, Any]) -> dict[str, Any]:
    """What is asked for with a filter."""
    return {"options": SearchOptions(where=Filter(must=conditions))}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), {}),
        (("--within", "auto"), {"within": "auto"}),
        (("--within", "any"), {"within": "any"}),
        (("--within", "7"), {"within": 7}),
        (("--within", "-7"), {"within": -7}),
        (("-n", "10000"), {"limit": 10_000}),
        (("--limit", "1"), {"limit": 1}),
        (("--collection", "c"), {"collection": "c"}),
        (("--clustering", "fine"), {"options": SearchOptions(clustering="fine")}),
        (("--offset", "100000"), {"options": SearchOptions(offset=100_000)}),
        (("--min-score", "0"), {"options": SearchOptions(min_score=0.0)}),
        (("--min-score", "-1"), {"options": SearchOptions(min_score=-1.0)}),
        (("--vector", "v"), {"options": SearchOptions(vector="v")}),
        (("--where", "tag=x"), where(("tag", "x"))),
        (("--where", "tag=x=y"), where(("tag", "x=y"))),
        (("--where", "tag="), where(("tag", ""))),
        (("--where", "year=2024", "--where", "ok=true"), where(("year", 2024), ("ok", True))),
        (("--where", "score=0.5"), where(("score", 0.5))),
        (("--where", 'year="2024"'), where(("year", "2024"))),
        (("--where", 'tag=["x", "y", 3]'), where(("tag", AnyOf(["x", "y", 3])))),
        (("--where", "tag=null"), where(("tag", Empty()))),
    ],
    ids=str,
)
def test_options_reach_the_server(
    server: Server, in_process: Any, words: tuple[str, ...], asked: dict[str, Any]
) -> None:
    """Each of them alone; a value that is JSON is read as JSON."""
    result = in_process("search", "--id", "x", *words)
    assert result.code == 0, result.stderr
    assert server.asked == [(StoredId("x"), {**PLAIN, **asked})]


def test_query_is_a_file_stdin_an_id_or_a_text(server: Server, in_process: Any) -> None:
    """The bytes of the image, wherever they come from."""
    Path("photo.png").write_bytes(b"of the file")
    in_process("search", "photo.png")
    in_process("search", "-", stdin=b"of stdin")
    in_process("search", "--id", "key/1")
    in_process("search", "--text", "a red bicycle")
    queries = [query for query, _ in server.asked]
    assert queries == [b"of the file", b"of stdin", StoredId("key/1"), Text("a red bicycle")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected exactly one of IMAGE, --id and --text"),
        (("x.png", "--id", "y"), "expected exactly one of IMAGE, --id and --text"),
        (("--text", "x", "--id", "y"), "expected exactly one of IMAGE, --id and --text"),
        (("x.png", "--text", "y"), "expected exactly one of IMAGE, --id and --text"),
        (("--id", "x", "--within", "here"), "expected any, auto or the number of a cluster"),
        (("--id", "x", "--within", str(2**63)), "expected any, auto or the number of a cluster"),
        (("--id", "x", "-n", "0"), "0 is not in the range 1<=x<=10000"),
        (("--id", "x", "-n", "10001"), "10001 is not in the range 1<=x<=10000"),
        (("--id", "x", "--offset", "-1"), "-1 is not in the range 0<=x<=100000"),
        (("--id", "x", "--offset", "100001"), "100001 is not in the range 0<=x<=100000"),
        (("--id", "x", "--min-score", "1.01"), "1.01 is not in the range -1<=x<=1"),
        (("--id", "x", "--where", "tag"), "expected NAME=VALUE, got 'tag'"),
        (("--id", "x", "--where", "=x"), "expected NAME=VALUE, got '=x'"),
        (("--id", "x", "--where", "year>=2000"), "expected NAME=VALUE, which is all that there is"),
        (("--id", "x", "--where", "year==2000"), "expected NAME=VALUE, which is all that there is"),
        (("--id", "x", "--where", 'tag={"a": 1}'), "--where tag: expected a string, number,"),
        (("--id", "x", "--where", "tag=[0.5]"), "--where tag: expected strings and whole numbers"),
        (("--id", "x", "--where", "tag=[null]"), "--where tag: expected strings and whole numbers"),
    ],
    ids=str,
)
def test_wrong_usage_is_told_and_nothing_is_asked(
    server: Server, in_process: Any, words: tuple[str, ...], said: str
) -> None:
    """A filter that the server does not know is not made into another one."""
    result = in_process("search", *words)
    assert (result.code, said in result.stderr) == (2, True), result.stderr
    assert server.asked == []


def test_file_that_cannot_be_read_is_one_line(server: Server, in_process: Any) -> None:
    """With the reason of the system."""
    result = in_process("search", "gone.png")
    assert (result.code, server.asked) == (1, [])
    assert result.stderr == ("shoal: error: gone.png cannot be read: no such file or directory\n")


def test_hits_are_a_table_and_where_they_were_found_is_talk(
    server: Server, in_process: Any
) -> None:
    """An image is named by its uri, else its key, else its id; noise is -1, no cluster a dash."""
    result = in_process("search", "--id", "x")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows == [
        ["score", "cluster", "id", "image"],
        ["0.9000", "4", "a", "file:///a.png"],
        ["0.2500", "-1", "b", "b.png"],
        ["0.0000", "-", "c", "c"],
    ]
    assert result.stderr == "shoal: 3 hits, everywhere, run 01234567\n"
    server.cluster = 4
    assert "3 hits, cluster 4, run" in in_process("search", "--id", "x").stderr


def test_json_is_run_cluster_and_hits(server: Server, in_process: Any) -> None:
    """Nothing else is on stdout, and nothing on stderr."""
    server.cluster = 4
    result = in_process("search", "--id", "x", "--json")
    found = json.loads(result.stdout)
    assert (found["run"], found["cluster"], result.stderr) == (RUN, 4, "")
    assert found["hits"][0] == {
        "id": "a",
        "score": 0.9,
        "cluster": 4,
        "payload": {"uri": "file:///a.png", "tag": "x"},
    }
    assert [hit["cluster"] for hit in found["hits"]] == [4, -1, None]


def test_stdin_is_read_as_bytes(server: Server, in_process: Any) -> None:
    """An image is no text."""
    data = io.BytesIO(bytes(range(256))).getvalue()
    in_process("search", "-", stdin=data)
    assert server.asked[0][0] == data
