"""``shoal train``, and what is done with its heads, against ``shoal up``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clusterer.heads.session import HeadSession
from clusterer.heads.store import HeadStore
from shoal.vectors import unit
from tests.app.cli.conftest import clean_environment

Run = Callable[..., Any]
COLLECTION = ("--collection", "trained")
N = 24
FAST = ("--epochs", "1", "--seeds", "2", "--keep", "1", "--neighbours", "3", "--device", "cpu")


@pytest.fixture
def stored(shoal: Run, tmp_path: Path, pictures: Any) -> Path:
    """A folder of 24 pictures that is stored."""
    folder: Path = pictures(tmp_path / "p", [f"{i:02d}.png" for i in range(N)])
    result = shoal("ingest", "p", "--keys", "name", *COLLECTION)
    assert result.code == 0, result.stderr
    return folder


@pytest.fixture
def heads(server: Any) -> str:
    """Where the server looks for heads."""
    return str(server.data / "heads")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("objective", ["scp", "temi"])
def test_a_head_is_trained_listed_and_applied(objective: str, shoal: Run, heads: str) -> None:
    """From the command to clusters: the id that is printed is the one that is listed and run."""
    done = shoal("train", objective, "-k", "3", *FAST, "--heads", heads, "--json", *COLLECTION)
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["clusters"] == 3
    assert (made["objective"], made["pairs"]) == (objective, "neighbours")
    assert made["metrics"]["pictures"] == N
    assert len(made["curves"]) == 2
    assert [str(each["seed"]) for each in made["seeds"]] == list(made["curves"])
    listed = json.loads(shoal("model", "list", "--heads", heads, "--json").stdout)
    assert made["id"] in [each["id"] for each in listed]
    run = shoal("cluster", "--method", "scp", "--head", made["hash"], "--json", *COLLECTION)
    assert run.code == 0, run.stderr
    assert json.loads(run.stdout)["state"] == "succeeded"
    assert json.loads(run.stdout)["config"]["head"] == made["id"]
    assert f"scp head={made['id']} seed=0" in shoal("runs", *COLLECTION).stdout
    more = ("cluster", "--method", "scp", "--head", "trained", "--retrain", "--force")
    again = json.loads(shoal(*more, "--json", *COLLECTION).stdout)
    assert again["config"]["head"] == made["id"]
    listed = json.loads(shoal("model", "list", "--heads", heads, "--json").stdout)
    parents = {each["id"]: each["parent"] for each in listed}
    assert again["plan"]["head"] in parents
    assert parents[again["plan"]["head"]] in {"", made["id"]}
    assert again["config"]["retrain"] is True
    missing = shoal("cluster", "--method", "scp", "--head", "nope", *COLLECTION)
    assert missing.code == 1
    assert "head 'nope': expected a head at" in missing.stderr
    assert made["id"] in missing.stderr


def test_the_environment_says_where_heads_are_but_not_that_they_are_listed(
    tmp_path: Path, run_shoal: Run, server: Any
) -> None:
    """SHOAL_HEADS is also for training: `model list` alone still lists encoders."""
    (tmp_path / "h" / "odd-0000").mkdir(parents=True)
    (tmp_path / "h" / "odd-0000" / "head.json").write_text("{")
    environment = {"SHOAL_HEADS": "h", "SHOAL_ADDRESS": server.address}
    encoders = run_shoal("model", "list", cwd=tmp_path, environment=environment)
    assert (encoders.code, "efficientnet-lite0" in encoders.stdout) == (0, True)
    listed = run_shoal("model", "list", "--heads", cwd=tmp_path, environment=environment)
    assert (listed.code, "odd-0000/head.json: expected a head" in listed.stderr) == (1, True)


@pytest.mark.usefixtures("stored")
def test_without_a_number_many_clusters_are_trained_and_merged(shoal: Run, heads: str) -> None:
    """-k auto --overcluster: fewer clusters than were trained, and the run has no more."""
    options = ("-k", "auto", "--overcluster", "8", "--epochs", "20", "--seeds", "1", "--json")
    done = shoal("train", "scp", *options, "--heads", heads, "--name", "merged", *COLLECTION)
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    assert 2 <= made["clusters"] < 8
    assert (made["options"]["clusters"], made["options"]["merge"]) == (8, True)
    run = shoal("cluster", "--method", "scp", "--head", "merged", "--json", *COLLECTION)
    assert run.code == 0, run.stderr
    assert json.loads(run.stdout)["plan"]["clusters"] <= made["clusters"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of torch: on a busy machine two add up in another order each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("stored", "one_thread")
def test_a_killed_training_goes_on_to_the_same_head(
    shoal: Run, heads: str, server: Any, tmp_path: Path
) -> None:
    """SIGKILL between two seeds, the same command again: the head of one that nobody killed."""
    # Seeds enough that it is not done before the kill comes, however late on a busy machine.
    command = ("train", "scp", "-k", "3", "--epochs", "30", "--seeds", "6", "--device", "cpu")
    to = (*COLLECTION, "--heads", heads, "--name", "killed", "--json")
    whole = json.loads(shoal(*command, *to, "--work", "whole").stdout)
    ranked = sorted(whole["seeds"], key=lambda one: (one["used"], one["agreement"]), reverse=True)
    assert [one["kept"] for one in ranked] == [True] * 3 + [False] * 3
    environment = {
        **clean_environment(),
        "SHOAL_ADDRESS": server.address,
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-m", "shoal", *command, *to, "--work", "work"]
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment) as process:
        while not list(Path("work").glob("seeds-*/seed-1.pt")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    kept = [each.id for each in HeadStore(heads).manifests() if each.name == "killed"]
    assert kept == [whole["id"]]
    (first,) = Path("work").glob("seeds-*/seed-0.pt")
    before = first.stat().st_mtime_ns
    Path("file").write_text("")
    failed = shoal(*command, *COLLECTION, "--heads", "file/heads", "--work", "work")
    assert failed.code == 1
    assert first.stat().st_mtime_ns == before  # seed 0 was done, and is not done again
    again = json.loads(shoal(*command, *to, "--work", "work").stdout)
    assert again["curves"].keys() == whole["curves"].keys()
    for seed, curve in whole["curves"].items():
        np.testing.assert_allclose(again["curves"][seed], curve, rtol=1e-4, atol=1e-5)
    vectors = unit(np.random.default_rng(0).normal(size=(50, 1280)))
    votes = [
        HeadSession(HeadStore(heads).graph(HeadStore(heads).find(each["id"]))).probabilities(
            vectors
        )
        for each in (whole, again)
    ]
    np.testing.assert_allclose(votes[1], votes[0], atol=1e-3)
    assert not list(Path("work").glob("seeds-*"))


def test_views_are_made_by_the_server(shoal: Run, heads: str, stored: Path) -> None:
    """--pairs both reads the images by their URIs; gone ones are looked up under --images."""
    arguments = ("train", "scp", "-k", "2", *FAST, "--pairs", "both", "--views", "2")
    done = shoal(*arguments, "--heads", heads, "--name", "seen", "--json", *COLLECTION)
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["id"].startswith("seen-")
    assert (made["metrics"]["views"], made["metrics"]["pictures"]) == (3, N)
    moved = stored.parent / "moved"
    moved.mkdir()
    names = sorted(file.name for file in stored.iterdir())
    for name in names[:12]:
        (stored / name).rename(moved / name)
    half = shoal(*arguments, "--views", "3", "--heads", heads, "--json", *COLLECTION)
    assert half.code == 0, half.stderr
    assert "12 images cannot be read, and are left out" in half.stderr
    assert json.loads(half.stdout)["metrics"]["pictures"] == 12
    (stored / names[12]).rename(moved / names[12])
    gone = shoal(*arguments, "--views", "4", "--heads", heads, *COLLECTION)
    assert gone.code == 1
    assert "expected to read at least half of 24 images, got 11" in gone.stderr
    for name in names[13:]:
        (stored / name).rename(moved / name)
    Image.new("RGB", (8, 8)).save(moved / "other.png")
    found = shoal(*arguments, "--views", "4", "--images", "moved", "--heads", heads, *COLLECTION)
    assert found.code == 0, found.stderr
    assert "cannot be read" not in found.stderr


@pytest.mark.usefixtures("stored")
def test_views_alone_are_pairs(shoal: Run, heads: str) -> None:
    """--pairs augment, as in the paper: two views of one image; the head remembers it."""
    arguments = ("train", "scp", "-k", "2", *FAST, "--pairs", "augment", "--views", "2")
    done = shoal(*arguments, "--heads", heads, "--name", "paper", "--json", *COLLECTION)
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["pairs"], made["metrics"]["views"]) == ("augment", 3)
    run = shoal("cluster", "--method", "scp", "--head", "paper", "--json", *COLLECTION)
    assert json.loads(run.stdout)["state"] == "succeeded"


@pytest.mark.usefixtures("stored")
def test_the_number_of_clusters_is_estimated(shoal: Run, heads: str) -> None:
    """-k auto without more: the votes of `cluster -k auto` decide, on the same vectors."""
    done = shoal("train", "scp", "-k", "auto", *FAST, "--heads", heads, "--json", *COLLECTION)
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    estimated = shoal("cluster", "-k", "auto", "--plan", "--json", *COLLECTION)
    assert estimated.code == 0, estimated.stderr
    assert made["clusters"] == json.loads(estimated.stdout)["plan"]["clusters"]
    assert made["options"]["merge"] is False


@pytest.mark.usefixtures("stored")
def test_what_cannot_be_trained_is_said_in_a_line(shoal: Run, heads: str) -> None:
    """Too few points, no collection, a bad name, device or place; scp without a head."""
    few = shoal("train", "scp", "-k", "24", *FAST, "--heads", heads, *COLLECTION)
    expected = "k = 24: expected at least 25 pictures, got 24"
    assert (few.code, expected in few.stderr) == (1, True)
    none = shoal("train", "scp", "-k", "2", "--collection", "nothere", "--heads", heads)
    assert (none.code, "nothere" in none.stderr) == (1, True)
    name = shoal("train", "scp", "-k", "2", *FAST, "--name", "../x", "--heads", heads, *COLLECTION)
    assert (name.code, "head name '../x'" in name.stderr) == (1, True)
    device = shoal("train", "scp", "-k", "2", "--device", "bogus", "--heads", heads, *COLLECTION)
    assert (device.code, "(cpu), got 'bogus'" in device.stderr) == (1, True)
    Path("file").write_text("")
    kept = shoal("train", "scp", "-k", "2", *FAST, "--heads", "file/heads", *COLLECTION)
    assert (kept.code, "file/heads cannot be written" in kept.stderr) == (1, True)
    assert list(Path("shoal-data/train").glob("seeds-*/seed-*.pt"))  # the work is not lost
    many = shoal("train", "scp", "-k", "2", "--overcluster", "9", "--heads", heads, *COLLECTION)
    assert (many.code, "--overcluster is for -k auto" in many.stderr) == (2, True)
    both = shoal("train", "scp", "-k", "2", "--encoders", "a,b", "--vector", "a", *COLLECTION)
    assert (both.code, "give one" in both.stderr) == (2, True)
    bare = shoal("cluster", "--method", "scp", *COLLECTION)
    assert (bare.code, "needs --head" in bare.stderr) == (2, True)
