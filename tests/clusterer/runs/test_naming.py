from __future__ import annotations

import numpy as np
import pytest
from reclustering import blobs

from clusterer.runs import naming
from clusterer.runs.naming import NameSources, ValueCounts, Word, naming_of, nearest_words
from shoal.errors import InvalidArgument
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
    sources = NameSources(words=("two", "zero", "three", "one"), vectors=words)
    assert nearest_words(centroids, sources) == {0: "zero", 1: "one", 2: "two", 3: "three"}
    few = NameSources(words=("two", "zero"), vectors=words[:2])
    assert sorted(nearest_words(centroids, few).values()) == ["two", "zero"]
    assert nearest_words(centroids, NameSources()) == {}
    assert nearest_words(centroids[:1], NameSources(words=("zero",), vectors=words[1:2])) == {
        0: "zero"
    }


def test_value_that_names_is_a_fifth_of_its_cluster_and_half_as_much_again() -> None:
    """Below a fifth of a cluster's points, or of too little lift, a value names nothing."""
    others: list[tuple[int, Payload]] = [(1, {"k": "z"})] * 90
    fifth: list[tuple[int, Payload]] = [(0, {"k": "a"})] * 2 + [
        (0, {"k": str(i)}) for i in range(8)
    ]
    assert counted(fifth + others, "k") == {0: "a"}
    less = [(0, {"k": "a"})] * 2 + [(0, {"k": str(i)}) for i in range(9)]
    assert counted(less + others, "k") == {}

    def lift(inside: int, outside: int) -> dict[int, str]:
        """Of ten points of each of two clusters, this many have the value."""
        rows: list[tuple[int, Payload]] = []
        for cluster, some in ((0, inside), (1, outside)):
            rows += [(cluster, {"k": "a"})] * some + [(cluster, {})] * (10 - some)
        return counted(rows, "k")

    assert lift(9, 3) == {0: "a"}, "a share of 0.9 where it is 0.6 on average"
    assert lift(8, 3) == {}


def test_name_has_two_values_the_more_typical_first() -> None:
    """By share and lift; equals come in the order of their letters."""
    rows: list[tuple[int, Payload]] = [
        *[(0, {"k": ["c", "b", "a"]})] * 3,
        (0, {"k": ["c"]}),
        *[(1, {"k": ["z"]})] * 4,
    ]
    assert counted(rows, "k")[0] == "c, a"


def test_values_of_one_point_count_once() -> None:
    """A list that repeats itself is no more typical for it."""
    rows: list[tuple[int, Payload]] = [
        (0, {"k": ["a", "a", "a"]}),
        *[(0, {"k": "b"})] * 2,
        *[(0, {"k": "c"})] * 2,
        *[(1, {"k": "z"})] * 5,
    ]
    assert counted(rows, "k")[0] == "b, c"


def test_long_values_and_empty_ones_are_no_names() -> None:
    """A hundred characters may name, a caption of more may not, and neither may nothing."""
    for value, name in (("x" * 100, {0: "x" * 100}), ("x" * 101, {}), ("", {})):
        rows: list[tuple[int, Payload]] = [(0, {"k": value})] * 5 + [(1, {"k": "z"})] * 5
        assert counted(rows, "k") == {**name, 1: "z"}


def test_fields_with_too_many_values_name_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first values are counted to the end, and those that come when it is full are not."""
    monkeypatch.setattr(naming, "_MOST_DISTINCT", 2)
    rows: list[tuple[int, Payload]] = [(0, {"k": "a"}), (1, {"k": "b"}), (2, {"k": "c"})] * 3
    assert counted(rows, "k") == {0: "a", 1: "b"}
    first, second = ValueCounts(["k"]), ValueCounts(["k"])
    first.add([{"k": "a"}], np.array([0], np.int32))
    second.add([{"k": "b"}, {"k": "a"}, {"k": "c"}], np.array([1, 0, 2], np.int32))
    first.merge(second)
    assert first.names() == {0: "a", 1: "b"}


def test_merged_counts_are_those_of_all_points() -> None:
    """In whatever parts the points were counted; the parts stay as they were."""
    rows: list[tuple[int, Payload]] = [
        *[(0, {"k": "a"})] * 4,
        *[(0, {"k": "b"})] * 4,
        *[(1, {"k": "b"})] * 2,
        *[(1, {"k": "c"})] * 6,
    ]
    parts = [ValueCounts(["k"]) for _ in range(3)]
    for i, (cluster, payload) in enumerate(rows):
        parts[i % 3].add([payload], np.array([cluster], np.int32))
    before = parts[1].names()
    whole = ValueCounts(["k"])
    for part in parts:
        whole.merge(part)
    assert whole.names() == counted(rows, "k") == {0: "a", 1: "c"}
    assert parts[1].names() == before


def test_words_and_clusters_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit nothing is computed; at it, the words are given out."""
    words = NameSources(words=("a", "b"), vectors=blobs(2, centres=2))
    monkeypatch.setattr(naming, "_MOST_CELLS", 6)
    assert len(nearest_words(blobs(3), words)) == 2
    monkeypatch.setattr(naming, "_MOST_CELLS", 5)
    with pytest.raises(InvalidArgument, match=r"at most 5 .* got 3 clusters and 2 words") as caught:
        nearest_words(blobs(3), words)
    assert caught.value.metadata["field"] == "naming.vocabulary"
    assert nearest_words(np.zeros((0, 16), np.float32), words) == {}


def word(*numbers: float) -> Word:
    return Word("cat", np.array(numbers, "<f4").tobytes())


def test_sources_of_names_hold_the_words_and_their_vectors() -> None:
    """Bytes become float32 rows, in the order of the words."""
    found = naming_of(["kind"], [word(1, 2, 3), Word("dog", word(4, 5, 6).vector)], 3)
    assert (found.fields, found.words) == (("kind",), ("cat", "dog"))
    np.testing.assert_array_equal(found.vectors, [[1, 2, 3], [4, 5, 6]])
    assert naming_of([], [], 3).vectors.shape == (0, 3)


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (word(1, 2), 8),
        (word(1, 2, 3, 4), 16),
        (Word("cat", b"123"), 3),
        (Word("cat", b"1234567890123"), 13),
        (word(1, float("nan"), 3), 12),
        (word(1, float("inf"), 3), 12),
    ],
)
def test_word_without_a_vector_of_the_dimension_is_refused(bad: Word, got: int) -> None:
    """The error names the word, the dimension and the bytes that came."""
    wanted = f"'cat': expected a vector of 3 finite float32, got {got} bytes"
    with pytest.raises(InvalidArgument, match=wanted) as caught:
        naming_of([], [word(1, 2, 3), bad], 3)
    assert caught.value.metadata["field"] == "naming.vocabulary"


def test_too_many_words_are_refused() -> None:
    """Ten thousand may come, and one more may not."""
    limit = naming.MOST_WORDS
    assert len(naming_of([], [word(1)] * limit, 1).words) == limit
    with pytest.raises(InvalidArgument, match=f"at most {limit} words, got {limit + 1}"):
        naming_of([], [word(1)] * (limit + 1), 1)
