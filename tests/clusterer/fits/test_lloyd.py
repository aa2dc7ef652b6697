"""Lloyd on the sphere, on cases that are solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
from reclustering import DIM, blobs

from clusterer.fits import lloyd as module
from clusterer.fits.lloyd import lloyd
from shoal.errors import FitFailed
from shoal.vectors import Vectors, unit


def circle(*degrees: float) -> Vectors:
    """Unit vectors in the plane at these angles, (N, 2)."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_lloyd_moves_each_centroid_to_the_direction_of_its_members() -> None:
    """Two pairs on a circle: each centroid halves its pair, and the inertia is 2 sum(1 - cos)."""
    found = lloyd(circle(0, 20, 90, 110), circle(30, 80), most_steps=10, tolerance=0)
    np.testing.assert_allclose(found.centroids, circle(10, 100), atol=1e-6)
    assert found.inertia == pytest.approx(4 * 2 * (1 - np.cos(np.radians(10))), rel=1e-5)
    assert found.settled


def test_lloyd_starts_from_centroids_of_any_length() -> None:
    """A centroid's length makes it no nearer."""
    found = lloyd(circle(0, 20, 90, 110), circle(30, 80) * [[9], [0.1]], most_steps=10)
    np.testing.assert_allclose(found.centroids, circle(10, 100), atol=1e-6)


def test_lloyd_says_whether_it_settled() -> None:
    """A start that the number of steps ends has not; one that comes to rest at the last has."""
    vectors = circle(*range(0, 170, 2))
    start = circle(0, 2, 4)
    whole = lloyd(vectors, start, most_steps=200, tolerance=0)
    assert whole.settled
    steps = next(n for n in range(200) if lloyd(vectors, start, most_steps=n, tolerance=0).settled)
    assert steps > 3
    cut = lloyd(vectors, start, most_steps=steps - 1, tolerance=0)
    np.testing.assert_allclose(cut.centroids, whole.centroids)
    assert lloyd(vectors, start, most_steps=1, tolerance=0).inertia > whole.inertia


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_lloyd_takes_no_more_steps_than_it_may(steps: int) -> None:
    """The start is moved once in any case, then once for each step."""
    vectors, expected = circle(*range(0, 170, 2)), circle(0, 2, 4)
    for _ in range(steps + 1):
        nearest = (vectors @ expected.T).argmax(axis=1)
        expected = unit([vectors[nearest == k].sum(axis=0) for k in range(3)])
    found = lloyd(vectors, circle(0, 2, 4), most_steps=steps, tolerance=0)
    np.testing.assert_allclose(found.centroids, expected, atol=1e-6)


def test_lloyd_stops_where_a_step_hardly_helps() -> None:
    """With a tolerance, a step that lowers the inertia by less is the last."""
    vectors = circle(*range(0, 170, 2))
    rough = lloyd(vectors, circle(0, 2, 4), most_steps=200, tolerance=0.5)
    exact = lloyd(vectors, circle(0, 2, 4), most_steps=200, tolerance=0)
    assert rough.settled
    assert rough.inertia > exact.inertia * 1.01


def test_lloyd_gives_an_empty_cluster_the_farthest_vector() -> None:
    """A centroid that is nobody's nearest starts anew where the others do worst."""
    vectors = circle(0, 1, 2, 90)
    found = lloyd(vectors, circle(1, 180), most_steps=10, tolerance=0)
    np.testing.assert_allclose(found.centroids, circle(1, 90), atol=1e-5)
    assert found.settled


def test_lloyd_has_no_more_centroids_than_different_vectors() -> None:
    """Three copies of two vectors support two of four clusters."""
    vectors = np.repeat(circle(0, 90), 3, axis=0)
    found = lloyd(vectors, circle(0, 5, 80, 90), most_steps=10, tolerance=0)
    order = np.argsort(found.centroids[:, 1])
    np.testing.assert_allclose(found.centroids[order], circle(0, 90), atol=1e-6)
    assert found.inertia == pytest.approx(0, abs=1e-5)


def test_lloyd_refuses_vectors_that_cancel_out() -> None:
    """A start at their mean, as batches of opposite vectors end, has no direction."""
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    with pytest.raises(FitFailed, match="cancel out"):
        lloyd(opposite, opposite.mean(axis=0, keepdims=True), most_steps=5)


def test_lloyd_in_parts_is_lloyd_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that threads share add up to the whole, in the vectors' order."""
    vectors = unit(np.random.default_rng(0).normal(size=(700, DIM)))
    start = blobs(6, spread=1.0)
    whole = lloyd(vectors, start, most_steps=30, tolerance=0)
    monkeypatch.setattr(module, "_LEAST_ROWS", 100)
    parts = lloyd(vectors, start, most_steps=30, tolerance=0)
    np.testing.assert_allclose(parts.centroids, whole.centroids, atol=1e-5)
    assert parts.inertia == pytest.approx(whole.inertia, rel=1e-6)
