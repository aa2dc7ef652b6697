"""Joint vectors: two stored ones read as one, on every engine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shoal.errors import InvalidArgument
from shoal.store import Point, Query, Store, VectorInfo, VectorScan, point_id
from shoal.store.clusterings import Clusterings, ClusterRecord
from shoal.vectors import Vectors, unit

CLIP, DINO = VectorInfo("clip", 4, "cd" * 32), VectorInfo("dino", 6, "ef" * 32)
N = 9


def directions(count: int, dim: int) -> Vectors:
    return unit(np.random.default_rng(dim).normal(size=(count, dim)))


@pytest.fixture
def name(store: Store, fresh_name: str) -> str:
    """A collection of nine points with two vectors, and one with the first only."""
    store.create_collection(fresh_name, [CLIP, DINO])
    clip, dino = directions(N + 1, 4), directions(N, 6)
    points = [Point(point_id(f"{i}"), {"clip": clip[i], "dino": dino[i]}, {}) for i in range(N)]
    store.upsert(fresh_name, [*points, Point(point_id("half"), {"clip": clip[N]}, {})])
    return fresh_name


def test_a_joint_vector_is_both_one_after_the_other(store: Store, name: str) -> None:
    """Scanned and retrieved, in the order of its name, at length 1; half a point has none."""
    spec = store.collection(name).vector("dino+clip")
    print_of_both = hashlib.sha256(f"{DINO.fingerprint}+{CLIP.fingerprint}".encode()).hexdigest()
    assert spec == VectorInfo("dino+clip", 10, print_of_both)
    expected = np.concatenate([directions(N, 6), directions(N + 1, 4)[:N]], axis=1) / np.sqrt(2)
    rows = {point_id(f"{i}"): row for i, row in enumerate(expected)}
    blocks = list(store.scan(name, VectorScan(vector="dino+clip", block_size=4)))
    scanned = {i: row for b in blocks for i, row in zip(b.ids, b.vectors, strict=True)}
    assert scanned.keys() == rows.keys()
    for one, row in rows.items():
        np.testing.assert_allclose(scanned[one], row, atol=1e-6)
    read = store.retrieve(name, [*rows, point_id("half")], vectors=("dino+clip", "clip"))
    for record, row in zip(read, rows.values(), strict=False):
        assert record is not None
        np.testing.assert_allclose(record.vectors["dino+clip"], row, atol=1e-6)
        np.testing.assert_allclose(record.vectors["clip"], row[6:] * np.sqrt(2), atol=1e-6)
    assert read[-1] is not None
    assert set(read[-1].vectors) == {"clip"}


def test_what_is_no_joint_vector_is_refused(store: Store, name: str) -> None:
    """An unknown part, one twice, and a search, which only a stored vector can answer."""
    with pytest.raises(InvalidArgument, match=r"no vector 'clip\+ghost': expected one of clip"):
        store.scan(name, VectorScan(vector="clip+ghost"))
    with pytest.raises(InvalidArgument, match="expected different vectors"):
        store.retrieve(name, [], vectors=("clip+clip",))
    query = Query(vector=directions(1, 10)[0], vector_name="clip+dino", limit=1)
    with pytest.raises(InvalidArgument, match=r"\(clip or dino\), got the joint vector clip\+dino"):
        store.search(name, query)


def test_centroids_of_a_joint_vector_come_back_as_they_were(store: Store, name: str) -> None:
    """Also where one part is longer than the other, or has no direction at all."""
    clusterings = Clusterings(store, name)
    clusterings.ensure("default")
    centroids = unit(np.array([[3, 0, 0, 0, 1, 2, 0, 0, 0, 0], [0] * 4 + [1, 2, 3, 4, 5, 6]]))
    records = [ClusterRecord(i, 1, 0.5, row, {}) for i, row in enumerate(centroids)]
    clusterings.put_clusters("default", "run", records, vector="clip+dino", fence=1)
    assert clusterings.vector_name_of("default", "run") == "clip+dino"
    found = clusterings.clusters("default", "run")
    np.testing.assert_allclose([each.centroid for each in found], centroids, atol=1e-6)
