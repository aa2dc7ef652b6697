"""The main job on 1,000 real photographs, through the command line, against NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Up
from real_data import real
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from shoal.client import SearchOptions, StoredId


class House:
    """A running ``shoal up``, and its command line."""

    def __init__(self, up: Up, tar: Path) -> None:
        self.up = up
        self.tar = tar

    def shoal(self, *arguments: str) -> Any:
        """The JSON that a command prints; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "shoal", *arguments, "--address", self.up.address, "--json"],
            capture_output=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def everything(self) -> dict[str, tuple[int | None, np.ndarray]]:
        """Every point's cluster and vector by the member of the tar that it came from."""
        found = self.up.client.search(
            StoredId(self._any_id()), limit=10_000, options=SearchOptions(with_vectors=True)
        )
        hits = {str(h.payload["uri"]).partition("#")[2]: (h.cluster, h.vector) for h in found.hits}
        own = self.up.client.point(self._any_id(), with_vectors=True)
        hits[str(own.payload["uri"]).partition("#")[2]] = (
            own.cluster,
            next(iter(own.vectors.values())),
        )
        return hits  # type: ignore[return-value]

    def _any_id(self) -> str:
        return self.up.client.search(np.eye(1280, dtype=np.float32)[0], limit=1).hits[0].id


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    tar = real("imagenette-val-1000.tar")
    with Up(tmp_path_factory.mktemp("photos") / "data") as up:
        house = House(up, tar)
        counts = house.shoal("ingest", str(tar))
        assert (counts["stored"], counts["failed"]) == (1000, 0)
        assert house.shoal("cluster", "-k", "10")["state"] == "succeeded"
        yield house


def accuracy(truth: list[str], labels: list[int | None]) -> float:
    """Share of points in the cluster that the best one-to-one matching gives to their class."""
    classes, clusters = sorted(set(truth)), sorted({c for c in labels if c is not None})
    counts = np.zeros((len(classes), len(clusters)))
    for name, label in zip(truth, labels, strict=True):
        if label is not None:
            counts[classes.index(name), clusters.index(label)] += 1
    return float(counts[linear_sum_assignment(-counts)].sum() / len(truth))


def test_photos_fall_into_their_classes(house: House, capsys: Any) -> None:
    """ACC and NMI are what k-means reaches on these vectors, the inertia scikit-learn's best."""
    points = house.everything()
    truth = [member.split("/")[-2] for member in points]
    labels = [cluster for cluster, _ in points.values()]
    vectors = np.stack([vector for _, vector in points.values()])
    acc, nmi = accuracy(truth, labels), normalized_mutual_info_score(truth, labels)
    with capsys.disabled():
        sys.stdout.write(f" ACC {acc:.3f}, NMI {nmi:.3f} ")

    assert (len(points), len(set(labels))) == (1000, 10)
    assert acc >= 0.80
    assert nmi >= 0.83
    best = KMeans(10, n_init=10, random_state=0).fit(vectors).inertia_
    assert house.shoal("runs")[0]["plan"]["inertia"] <= best * 1.01


def test_photo_search_in_its_own_cluster_equals_brute_force(house: House, tmp_path: Path) -> None:
    """The 20 hits are all of the query's cluster, and the 20 nearest of it by NumPy."""
    points = house.everything()
    for member in sorted(points)[::250]:
        with tarfile.open(house.tar) as tar:
            file = tar.extractfile(member)
            assert file is not None
            (tmp_path / "query.jpg").write_bytes(file.read())
        found = house.shoal("search", str(tmp_path / "query.jpg"), "--within", "auto", "-n", "20")

        own, query = points[member]
        assert found["cluster"] == own
        assert {hit["cluster"] for hit in found["hits"]} == {own}
        scores = {m: float(v @ query) for m, (c, v) in points.items() if c == own}
        expected = sorted(scores, key=lambda m: -scores[m])[:20]
        got = [hit["payload"]["uri"].partition("#")[2] for hit in found["hits"]]
        assert got[0] == member
        np.testing.assert_allclose(
            [hit["score"] for hit in found["hits"]], [scores[m] for m in expected], atol=1e-5
        )
        assert got == expected


def test_photos_sent_again_change_nothing(house: House) -> None:
    """The same tar again: same counts, vectors and clusters."""
    before = house.everything()
    counts = house.shoal("ingest", str(house.tar))
    assert (counts["unchanged"], counts["stored"], counts["updated"]) == (1000, 0, 0)
    after = house.everything()
    assert before.keys() == after.keys()
    assert all(before[m][0] == after[m][0] for m in before)
    assert all(np.array_equal(before[m][1], after[m][1]) for m in before)


def test_photos_clustered_again_keep_ids_write_little_and_roll_back(house: House) -> None:
    """Another seed keeps continuing ids and writes what moved; rollback restores exactly."""
    before = {m: c for m, (c, _) in house.everything().items()}
    run = house.shoal("cluster", "-k", "10", "--seed", "5", "--cold-start")
    after = {m: c for m, (c, _) in house.everything().items()}
    moved = sum(before[m] != after[m] for m in before)
    assert run["plan"]["moved"] == moved
    assert run["points_written"] == moved
    continued = [line for line in run["plan"]["lineage"] if line["kind"] == "continued"]
    assert len(continued) >= 6
    for line in continued:
        kept = sum(before[m] == after[m] == line["cluster"] for m in before)
        assert kept >= 0.5 * line["size"]

    house.shoal("rollback")
    assert {m: c for m, (c, _) in house.everything().items()} == before
