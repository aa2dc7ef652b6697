"""Near-duplicates among unit vectors, in time and memory linear in their number. Pure.

Random hyperplanes (Charikar, STOC 2002): two vectors at an angle ``a`` lie on the same side of a
plane with probability ``p = 1 - a / pi``. Each ``b`` of the BITS planes make the key of one of
``t = BITS // b`` tables; a pair shares a bucket of some table with probability
``1 - (1 - p^b)^t`` (Indyk and Motwani, STOC 1998). The planes pass through a centre near the mean:
vectors of images share a large mean, and planes through the origin would hardly part them.

The cosines of candidates are then checked. Groups are stars (Aslam, Pelekhov and Rus, JGAA 2004):
each member is a near-duplicate of the group's representative. Connected components would chain
unlike images together, frame by frame of a film.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import asin, pi, sqrt
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from shoal.errors import InvalidArgument
from shoal.vectors import Labels, Vectors

Signatures: TypeAlias = npt.NDArray[np.uint64]
"""uint64 (N, BITS / 64), 64 bytes per vector: each bit says on which side of a plane it lies."""

Rows: TypeAlias = npt.NDArray[np.int64]
"""int64 (M,), rows of vectors; pairs are (M, 2), the smaller row first."""

BITS = 512
DEFAULT_THRESHOLD = 0.95
"""The cosine from which on `shoal duplicates` lists two images together. With the bundled encoder
88 to 100% of images that were saved anew at JPEG quality 60, cropped by 4% or mirrored are as near
to the original; no different one of 6,400 images was nearer than 0.93."""

LEAST_THRESHOLD = 0.9
"""The least cosine of near-duplicates: below it, keys that are short enough to find them are too
short to part a million vectors."""

_RECALL = 0.99
"""The share of the pairs at the threshold that share a bucket."""

_WORD = 64
_LONGEST_KEY = 32
"""The most bits of a key: two keys make one word to sort by."""

_LONGEST_CENTRE = 0.6
"""The greatest length of the centre. Identical vectors would lie on a longer one, and rounding
would decide their side of a plane."""

_CLOSE = 0.7
"""The squared distance of close vectors to the centre, as a share of the average: there, angles are
widest. The first percentile is 0.66 to 0.82 on three sets of images by two encoders."""

_SIGMAS = 3
"""The distance of the bounds on differing bits from the mean, in standard deviations."""

_WINDOW = 8
"""Neighbours in its bucket that each row is compared with; small buckets are compared whole."""

_PAIRS_PER_ROW = 8
"""The most candidates per vector, on average; the closest stay."""

_BLOCK = 4096
"""Vectors to sign, or pairs to check, at a time: at most 84 MB for pairs at 1280-d."""


@dataclass(frozen=True, slots=True)
class Lsh:
    """A draw of planes.

    Attributes:
        planes: float32 (D, BITS).
        offsets: float32 (BITS,), their products with the centre.
        key_bits: b.
        sure_bits: Nearly all pairs that differ in at most this many bits are above the threshold.
        most_bits: Pairs that differ in more bits are no candidates.
    """

    planes: Vectors
    offsets: Vectors
    key_bits: int
    sure_bits: int
    most_bits: int

    @property
    def tables(self) -> int:
        """The number of keys in a signature, t."""
        return BITS // self.key_bits

    def signatures(self, vectors: Vectors) -> Signatures:
        """The signatures of ``vectors`` (N, D), in blocks."""
        signed = np.empty((len(vectors), BITS // _WORD), np.uint64)
        for at in range(0, len(vectors), _BLOCK):
            sides = vectors[at : at + _BLOCK] @ self.planes > self.offsets
            signed[at : at + _BLOCK] = np.packbits(sides, axis=1, bitorder="little").view("<u8")
        return signed

    def candidates(self, signatures: Signatures) -> Rows:
        """Pairs (M, 2) that may be near-duplicates, ascending, M at most 8 N.

        Each row is compared with its bucket's first row, and with the next _WINDOW rows in the
        order of another table's key. So time stays linear even if all rows share a bucket.
        """
        n = max(1, len(signatures))
        # Pairs are numbers, (differing bits * n + row) * n + row: the closest sort first.
        best = np.zeros(0, np.int64)
        for table in range(self.tables):
            order, starts, sizes = self._buckets(signatures, table)
            first = np.repeat(np.minimum.reduceat(order, starts) if len(order) else order, sizes)
            bits = _differing(signatures, first, order)
            # Pairs with the bucket's first row sort before all others: a group needs a centre.
            near = (bits <= self.most_bits) & (first != order)
            unsure = bits > self.sure_bits
            others = self._neighbours(signatures, order[unsure], first[unsure])
            best = _distinct(np.concatenate([best, first[near] * n + order[near], *others]))
            best = best[: _PAIRS_PER_ROW * n]
        return np.stack(np.divmod(_distinct(best % (n * n)), n), axis=1)

    def _buckets(self, signatures: Signatures, table: int) -> tuple[Rows, Rows, Rows]:
        """Rows that share a bucket, bucket after bucket, and the buckets' starts and sizes."""
        key = self._keys(signatures, table)
        order = np.argsort(key << np.uint64(self.key_bits) | self._keys(signatures, table + 1))
        sizes = np.diff(_starts(key[order]), append=len(order))
        order, sizes = order[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
        return order, np.cumsum(sizes) - sizes, sizes

    def _neighbours(self, signatures: Signatures, order: Rows, bucket: Rows) -> list[Rows]:
        """The close pairs of ``order`` within _WINDOW of each other in one ``bucket``, as numbers.

        ``bucket`` (M,) is the same for all rows of a bucket.
        """
        n, at, found = len(signatures), np.arange(len(order)), []
        for step in range(1, _WINDOW + 1):
            at = at[: np.searchsorted(at, len(order) - step)]
            at = at[bucket[at] == bucket[at + step]]
            a, b = np.minimum(order[at], order[at + step]), np.maximum(order[at], order[at + step])
            bits = _differing(signatures, a, b)
            found.append((((bits + 1) * n + a) * n + b)[bits <= self.most_bits])
        return found

    def _keys(self, signatures: Signatures, table: int) -> Signatures:
        """The key of each row in ``table``, (N,); after the last table comes the first."""
        word, shift = divmod(table % self.tables * self.key_bits, _WORD)
        keys = signatures[:, word] >> np.uint64(shift)
        if shift + self.key_bits > _WORD:
            keys |= signatures[:, word + 1] << np.uint64(_WORD - shift)
        return keys & np.uint64((1 << self.key_bits) - 1)


def plan_lsh(mean: Vectors, *, threshold: float, seed: int) -> Lsh:
    """A draw with the longest keys that find 0.99 of the pairs at the threshold.

    Args:
        mean: (D,), the mean of the vectors, or of a sample of them.
        threshold: the least cosine of near-duplicates, LEAST_THRESHOLD to 1.
        seed: the seed of the draw.

    Raises:
        InvalidArgument: the threshold is out of range.
    """
    if not LEAST_THRESHOLD <= threshold <= 1:
        raise InvalidArgument(
            f"threshold: expected {LEAST_THRESHOLD} to 1, got {threshold}", field="threshold"
        )
    length = float(np.linalg.norm(mean))
    radius = min(length, _LONGEST_CENTRE)
    centre = mean * np.float32(min(1.0, _LONGEST_CENTRE / max(length, _LONGEST_CENTRE)))
    # The average of |x - c|^2 over unit vectors x with this mean; each is at least (1 - |c|)^2.
    average = 1 - 2 * radius * length + radius**2
    p = same_side(threshold, sqrt(max(_CLOSE * average, (1 - radius) ** 2)))
    planes = np.random.default_rng(seed).standard_normal((len(mean), BITS), np.float32)
    keys = [b for b in range(1, _LONGEST_KEY + 1) if recall(p, b) >= _RECALL]
    sure, most = _differing_bits(same_side(threshold, 1.0), -_SIGMAS), _differing_bits(p, _SIGMAS)
    return Lsh(planes, np.asarray(centre @ planes, np.float32), max(keys), sure, most)


def same_side(cosine: float, distance: float) -> float:
    """The p of two vectors of this cosine, both at ``distance`` from the centre."""
    return 1 - 2 * asin(min(1.0, sqrt((1 - cosine) / 2) / distance)) / pi


def recall(p: float, key_bits: int) -> float:
    """The probability that a pair shares a bucket of some table."""
    return float(1 - (1 - p**key_bits) ** (BITS // key_bits))


def duplicate_groups(vectors: Vectors, *, threshold: float, seed: int) -> Labels:
    """The group of each of ``vectors`` (N, D), int32 (N,): the row of its representative.

    A representative, and a vector without near-duplicates, has its own row.

    Raises:
        InvalidArgument: the threshold is out of range.
    """
    mean = vectors.sum(axis=0) / np.float32(max(1, len(vectors)))
    lsh = plan_lsh(mean, threshold=threshold, seed=seed)
    pairs = lsh.candidates(lsh.signatures(vectors))
    return verified_groups(pairs, vectors.__getitem__, n=len(vectors), threshold=threshold)


def verified_groups(
    pairs: Rows, fetch: Callable[[Rows], Vectors], *, n: int, threshold: float
) -> Labels:
    """The groups of ``n`` vectors, as ``duplicate_groups`` gives them.

    Args:
        pairs: (M, 2), candidates.
        fetch: gives the vectors (B, D) of rows (B,): ascending, without repeats, 8192 at most. It
            is called once for every 4096 pairs.
        n: the number of vectors.
        threshold: the least cosine of near-duplicates, in float32.
    """
    kept = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        rows, at = np.unique(block, return_inverse=True)
        vectors, (left, right) = fetch(rows), at.reshape(-1, 2).T
        kept.append(block[np.einsum("ij,ij->i", vectors[left], vectors[right]) >= threshold])
    return _stars(np.concatenate(kept), n)


def _stars(pairs: Rows, n: int) -> Labels:
    """Groups around the rows with the most near-duplicates; among equals the first row wins."""
    ends = np.concatenate([pairs, pairs[:, ::-1]]).T
    near = coo_array((np.ones(ends.shape[1], bool), tuple(ends)), shape=(n, n)).tocsr()
    degrees = np.diff(near.indptr)
    groups, free = np.arange(n, dtype=np.int32), np.ones(n, bool)
    for row in np.argsort(-degrees, kind="stable")[: np.count_nonzero(degrees)]:
        if free[row]:
            members = near.indices[near.indptr[row] : near.indptr[row + 1]]
            members = members[free[members]]
            groups[members] = row
            free[members] = free[row] = False
    return groups


def _differing_bits(p: float, sigmas: float) -> int:
    """The number of bits that a pair differs in, ``sigmas`` deviations off its mean.

    A normal distribution stands for the binomial.
    """
    return int(max(0.0, BITS * (1 - p) + sigmas * sqrt(BITS * p * (1 - p))))


def _differing(signatures: Signatures, a: Rows, b: Rows) -> Rows:
    """The numbers of bits in which rows ``a`` and ``b`` differ, (M,)."""
    sides = signatures.take(a, axis=0) ^ signatures.take(b, axis=0)
    return np.asarray(np.bitwise_count(sides).sum(axis=1, dtype=np.int64))


def _starts(ordered: Signatures | Rows) -> Rows:
    """The places where runs of equal numbers start."""
    return np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))


def _distinct(numbers: Rows) -> Rows:
    """The distinct numbers, ascending: ``np.unique``, whose hashes are ten times slower here."""
    ordered = np.sort(numbers)
    return ordered[_starts(ordered)]
