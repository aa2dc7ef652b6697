from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_bench_search_is_exact_and_prints_every_layer(tmp_path: Path, run_shoal: Any) -> None:
    """A small run has all rows, and in-cluster search misses nothing that brute force finds."""
    size = ["--points", "800", "--dim", "16", "--clusters", "4", "--queries", "20"]
    done = run_shoal("bench", "search", *size, "--rounds", "1", "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["recall"] == 1.0
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["engine, in its cluster", "store, in its cluster"]
    assert len(names) == 5
    assert all(len(row["latencies_s"]) == 20 for row in result["rows"])


def test_bench_embed_ceiling_follows_from_its_rows(tmp_path: Path, run_shoal: Any) -> None:
    """The ceiling is 1 / (1/bare + 1/decode) of the same run, and each row has its rate."""
    done = run_shoal("bench", "embed", "--count", "6", "--rounds", "1", "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    rates = {row["name"]: row["rates"][0] for row in result["rows"]}
    bare = max(rate for name, rate in rates.items() if name.startswith("bare session"))
    assert result["ceiling"] == pytest.approx(1 / (1 / bare + 1 / rates["decode only"]))
    assert len(rates) == 6
    assert result["resident_mib"] > 50


def test_bench_wrong_size_is_one_line(tmp_path: Path, run_shoal: Any) -> None:
    """More clusters than points is refused before anything is started."""
    done = run_shoal("bench", "search", "--points", "100", "--clusters", "101", cwd=tmp_path)
    assert done.code == 1
    assert done.stderr.splitlines() == [
        "shoal: error: --clusters: expected at most 100 (--points), got 101"
    ]
