from __future__ import annotations

import numpy as np
from reclustering import blobs

from clusterer.runs.naming import NameSources, ValueCounts, nearest_words
from shoal.store.model import Payload


def counted(rows: list[tuple[int, Payload]], *fields: str) -> dict[int, str]:
    counts = ValueCounts(fields)
    for at in range(0, len(rows), 3):  # in blocks, as they come
        some = rows[at : at + 3]
        counts.add([p for _, p in some], np.array([c for c, _ in some], np.int32))
    return counts.names()


def test_names_are_the_values_of_highest_lift() -> None:
    """A value that is everywhere names nothing; one that is typical of a cluster names it."""
    rows: list[tuple[int, Payload]] = [
        *[(0, {"kind": "dog", "place": "park"})] * 8,
        *[(0, {"kind": "cat", "place": "park"})] * 2,
        *[(1, {"kind": "car", "place": "park"})] * 9,
        (1, {"kind": "dog", "place": "street"}),
        *[(-1, {"kind": "dog", "place": "noise"})] * 50,
    ]
    assert counted(rows, "kind") == {0: "dog, cat", 1: "car"}
    assert counted(rows, "place") == {}
    assert counted(rows) == {}


def test_names_come_from_lists_numbers_and_nested_fields() -> None:
    """Each entry of a list counts; "a.b" looks inside; true and 2.5 are words; else nothing."""
    rows: list[tuple[int, Payload]] = [
        *[(0, {"a": {"b": ["x", "y"]}, "n": 2.5, "flag": True})] * 4,
        *[(1, {"a": "no object", "n": 7, "flag": None})] * 4,
    ]
    assert counted(rows, "a.b") == {0: "x, y"}
    assert counted(rows, "n") == {0: "2.5", 1: "7"}
    assert counted(rows, "flag") == {0: "true"}


def test_each_word_names_one_cluster_across_the_gap() -> None:
    """Words shifted as a whole (the modality gap) still find their clusters, each its own."""
    centroids = blobs(4, centres=4, spread=0.0)
    shift = np.full(16, 0.6, np.float32)
    words = centroids[[2, 0, 3, 1]] + shift
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    naming = NameSources(words=("two", "zero", "three", "one"), vectors=words)
    assert nearest_words(centroids, naming) == {0: "zero", 1: "one", 2: "two", 3: "three"}
    few = NameSources(words=("two", "zero"), vectors=words[:2])
    assert sorted(nearest_words(centroids, few).values()) == ["two", "zero"]
    assert nearest_words(centroids, NameSources()) == {}
    assert nearest_words(centroids[:1], NameSources(words=("zero",), vectors=words[1:2])) == {
        0: "zero"
    }
