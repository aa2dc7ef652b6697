"""How the tests are shared out among processes, so that no long file is left for the end."""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling

TOGETHER: Final = ("tests/spark",)
"""Directories whose tests stay in one process: they share a Spark cluster, which is slow to start.
The tests of any other file share servers and exported models, and stay together by file."""

FIRST: Final = (
    "tests/spark",
    "tests/clusterer/fits/test_methods.py",
    "tests/embedder/export",
    "tests/packaging",
    "tests/app/cli/test_bench.py",
    "tests/app/cli/test_up.py",
    "tests/e2e",
    "tests/docs",
    "tests/clusterer/heads",
    "tests/app/cli",
)
"""Files and directories that take longest, in the order in which they are started."""


def scope_of(nodeid: str) -> str:
    """The directory or the file whose tests run in the same process as the test ``nodeid``."""
    file = nodeid.partition("::")[0]
    return next((place for place in TOGETHER if file.startswith(f"{place}/")), file)


def rank_of(nodeid: str) -> int:
    """The place of a test among FIRST; all others come after them."""
    file = nodeid.partition("::")[0]
    places = enumerate(FIRST)
    return next((at for at, place in places if f"{file}/".startswith(f"{place}/")), len(FIRST))


class LongestFirst(LoadScopeScheduling):
    """Gives each process whole scopes, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
