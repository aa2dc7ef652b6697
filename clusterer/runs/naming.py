"""Names for clusters: of the caller's payload fields, or of the words nearest to them. Pure.

By fields: the values that are most typical of a cluster, by lift (Brin et al., SIGMOD 1997), the
share of the value inside over its share everywhere. By words: both sides are centred first,
because texts and images lie in different cones of the space (the modality gap, Liang et al.,
NeurIPS 2022), and each word names one cluster at most (Hungarian assignment).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shoal.errors import InvalidArgument
from shoal.store.model import Payload
from shoal.values import Json
from shoal.vectors import Labels, Vectors

_LEAST_SHARE: Final = 0.2
"""The least share of a cluster's points that have a value, for the value to name it."""
_LEAST_LIFT: Final = 1.5
_MOST_VALUES: Final = 2
"""The most values in one name."""
_MOST_DISTINCT: Final = 20_000
"""The most different values that are counted, of all fields together. A field with more of them,
such as file names, names nothing."""
_LONGEST: Final = 100
"""The most characters of a value that names; a longer value, such as a caption, is no name."""
MOST_WORDS: Final = 10_000
"""The most words: to assign them takes 80 MB of memory with 1,000 clusters."""
_MOST_CELLS: Final = 50_000_000
"""The most clusters times words: their cosines are held twice, 600 MB."""


@dataclass(frozen=True, slots=True)
class NameSources:
    """What names clusters: payload ``fields`` first, then ``words`` with ``vectors`` (W, D)."""

    fields: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    vectors: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class Word:
    """A word that may name a cluster; ``vector`` is float32, little-endian."""

    text: str
    vector: bytes


def naming_of(fields: Sequence[str], vocabulary: Sequence[Word], dim: int) -> NameSources:
    """The sources of names for clusters of ``dim``-d vectors.

    Raises:
        InvalidArgument: too many words, or a word whose vector is not ``dim`` finite numbers.
    """
    if len(vocabulary) > MOST_WORDS:
        msg = f"naming.vocabulary: expected at most {MOST_WORDS} words, got {len(vocabulary)}"
        raise InvalidArgument(msg, field="naming.vocabulary")
    vectors = np.zeros((len(vocabulary), dim), np.float32)
    for row, word in enumerate(vocabulary):
        vector = np.frombuffer(word.vector, np.dtype("<f4")) if len(word.vector) % 4 == 0 else ()
        if len(vector) != dim or not np.isfinite(vector).all():
            msg = (
                f"naming.vocabulary: {word.text!r}: expected a vector of {dim} finite float32, "
                f"got {len(word.vector)} bytes"
            )
            raise InvalidArgument(msg, field="naming.vocabulary")
        vectors[row] = vector
    return NameSources(tuple(fields), tuple(word.text for word in vocabulary), vectors)


class ValueCounts:
    """How often each value of some payload fields occurs in each cluster, block by block."""

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = tuple(fields)
        self._points: Counter[int] = Counter()
        self._counts: dict[tuple[str, str], Counter[int]] = {}

    def add(self, payloads: Sequence[Payload], labels: Labels) -> None:
        """Counts a block; noise counts for nothing."""
        if not self._fields:
            return
        for payload, label in zip(payloads, labels.tolist(), strict=True):
            if label < 0:
                continue
            self._points[label] += 1
            for name in self._fields:
                for value in set(_values(payload, name)):
                    self._count((name, value), label)

    def merge(self, other: ValueCounts) -> None:
        """Adds the counts of ``other``, which has the same fields."""
        self._points.update(other._points)
        for key, counts in other._counts.items():
            if key in self._counts:
                self._counts[key].update(counts)
            elif len(self._counts) < _MOST_DISTINCT:
                self._counts[key] = Counter(counts)

    def _count(self, key: tuple[str, str], label: int) -> None:
        if key not in self._counts:
            if len(self._counts) >= _MOST_DISTINCT:
                return
            self._counts[key] = Counter()
        self._counts[key][label] += 1

    def names(self) -> dict[int, str]:
        """The name of each cluster that has typical values."""
        total = self._points.total()
        typical: dict[int, list[tuple[float, str]]] = {}
        for (_, value), counts in self._counts.items():
            share_of_all = counts.total() / total
            for label, count in counts.items():
                share = count / self._points[label]
                lift = share / share_of_all
                if share >= _LEAST_SHARE and lift >= _LEAST_LIFT:
                    typical.setdefault(label, []).append((-share * math.log(lift), value))
        return {
            label: ", ".join(value for _, value in sorted(found)[:_MOST_VALUES])
            for label, found in typical.items()
        }


def nearest_words(centroids: Vectors, naming: NameSources) -> dict[int, str]:
    """The word of each of ``centroids`` (K, D), by row; of some rows if there are fewer words.

    Raises:
        InvalidArgument: clusters times words are too many.
    """
    if not naming.words or not len(centroids):
        return {}
    if len(centroids) * len(naming.words) > _MOST_CELLS:
        got = f"{len(centroids)} clusters and {len(naming.words)} words"
        msg = f"naming: expected at most {_MOST_CELLS} clusters times words, got {got}"
        raise InvalidArgument(msg, field="naming.vocabulary")
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes half a second

    cosines = _centred(centroids) @ _centred(naming.vectors).T
    rows, columns = linear_sum_assignment(-cosines)
    return {int(k): naming.words[w] for k, w in zip(rows, columns, strict=True)}


def _centred(vectors: Vectors) -> Vectors:
    """``vectors`` less their mean, at unit length; a single one stays as it is."""
    moved = vectors - vectors.mean(axis=0) if len(vectors) > 1 else vectors
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    unit: Vectors = np.divide(moved, norms, out=np.zeros_like(moved), where=norms > 0)
    return unit


def _values(payload: Mapping[str, Json], path: str) -> list[str]:
    """The values at ``path`` as texts; "a.b" looks inside objects, and a list gives several."""
    found: Json = dict(payload)
    for key in path.split("."):
        if not isinstance(found, dict):
            return []
        found = found.get(key)
    every = found if isinstance(found, list) else [found]
    texts = (_text(value) for value in every if isinstance(value, str | int | float))
    return [text for text in texts if 0 < len(text) <= _LONGEST]


def _text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
